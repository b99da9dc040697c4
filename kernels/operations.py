"""The public operations over these kernels, as ``cmslap.ops.backend`` asks of a backend: each takes one Call.

A channels_last NCHW tensor is an NHWC map under another name; any other is copied into one.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from . import dense_block, level
from .conv import conv_data_gradient, conv_lrelu
from .derivative import derivative
from .tiles import pack_weights, unpack_weights
from .transposed_conv import transposed_conv, transposed_conv_data_gradient
from .weight_gradient import weight_gradient_shares


def nhwc(x: Tensor | None) -> Tensor | None:
    """[N, C, H, W] of any strides -> contiguous [N, H, W, C]; a view where it lies so already."""
    return None if x is None else x.permute(0, 2, 3, 1).contiguous()


def nchw(x: Tensor) -> Tensor:
    """[N, H, W, C] -> [N, C, H, W] in channels_last memory."""
    return x.permute(0, 3, 1, 2)


def _weight_gradient(left: Tensor, right: Tensor, stride: int) -> Tensor:
    """[Cout, Cin, 3, 3] float32 of maps [N, H, W, C]."""
    return unpack_weights(weight_gradient_shares(left[None], right[None], stride).sum(1)[0])


def _over_pixels(x: Tensor) -> Tensor:
    return x.sum((0, 1, 2), dtype=torch.float32)


def conv2d_lrelu(call) -> Tensor:
    packed = pack_weights(call.weight, call.x.dtype)
    return nchw(conv_lrelu(nhwc(call.x), packed, call.bias, nhwc(call.skip), call.negative_slope))


def conv2d_lrelu_backward(call) -> dict[str, Tensor]:
    """φ' is a pass of its own here, as its result is also the skip's gradient; in a level it is part of an epilogue."""
    before, sums = derivative(nhwc(call.grad), nhwc(call.output), call.negative_slope)
    gradients = {"skip": nchw(before), "bias": sums}
    if "x" in call.wanted:
        gradients["x"] = nchw(conv_data_gradient(before, pack_weights(call.weight, before.dtype)))
    if "weight" in call.wanted:
        gradients["weight"] = _weight_gradient(before, nhwc(call.x), 1)
    return gradients


def tied_conv_transpose2d(call) -> Tensor:
    return nchw(transposed_conv(nhwc(call.a), pack_weights(call.weight, call.a.dtype), call.bias))


def tied_conv_transpose2d_backward(call) -> dict[str, Tensor]:
    grad, gradients = nhwc(call.grad), {}
    if "a" in call.wanted:
        gradients["a"] = nchw(transposed_conv_data_gradient(grad, pack_weights(call.weight, grad.dtype))[0])
    if "weight" in call.wanted:
        gradients["weight"] = _weight_gradient(nhwc(call.a), grad, 2)
    if "bias" in call.wanted:
        gradients["bias"] = _over_pixels(grad)
    return gradients


def _step(call) -> int:
    """From one saved activation to the next, in convolutions."""
    return call.weights.shape[0] if call.recompute else 1


def _upsample_weight(call, packed: Tensor) -> Tensor:
    """Of the convolutions' packed weights where one is shared."""
    return call.shared_part(packed) if call.shared_conv else pack_weights(call.upsample_weight, packed.dtype)


def recursive_embedding(call) -> Tensor:
    block = pack_weights(call.weights, call.u.dtype), call.biases, call.recursions, call.negative_slope
    return nchw(level.embedding(nhwc(call.u), *block, call.new_saved(call.u.dtype), _step(call)))


def recursive_embedding_backward(call) -> dict[str, Tensor]:
    start = derivative(nhwc(call.grad), nhwc(call.output), call.negative_slope)
    block = pack_weights(call.weights, call.u.dtype), call.biases, call.recursions, call.negative_slope
    grad_u, matrices, sums = level.embedding_gradient(*start, call.saved, *block, _step(call))
    return {"u": nchw(grad_u), "weights": unpack_weights(matrices), "biases": sums}


def lapsrn_level(call) -> Tensor:
    packed = pack_weights(call.weights, call.u.dtype)
    parameters = packed, call.biases, _upsample_weight(call, packed), call.upsample_bias
    options = call.recursions, call.negative_slope, call.new_saved(call.u.dtype), _step(call)
    return nchw(level.level(nhwc(call.u), *parameters, *options))


def lapsrn_level_backward(call) -> dict[str, Tensor]:
    packed = pack_weights(call.weights, call.u.dtype)
    parameters = packed, call.biases, _upsample_weight(call, packed)
    grad_u, matrices, sums, upsample_matrices, upsample_sums = level.level_gradient(
        nhwc(call.grad), call.saved, *parameters, call.recursions, call.negative_slope, _step(call)
    )
    gradients = {"u": nchw(grad_u), "biases": sums, "upsample_bias": upsample_sums}
    if call.shared_conv:
        call.shared_part(matrices).add_(upsample_matrices)
    else:
        gradients["upsample_weight"] = unpack_weights(upsample_matrices)
    return gradients | {"weights": unpack_weights(matrices)}


def _dense_block(call) -> dense_block.Block:
    def matrix(weight: Tensor) -> Tensor:
        return weight.flatten(1).contiguous()

    separable = (
        (matrix(call.depthwise1), matrix(call.pointwise1), call.bias1),
        (matrix(call.depthwise2), matrix(call.pointwise2), call.bias2),
    )
    return dense_block.Block(separable, matrix(call.pointwise3), call.bias3)


def dense_recursion(call) -> Tensor:
    u, block = nhwc(call.u), _dense_block(call)
    if call.save:
        call.saved = u.new_empty(call.recursions, *u.shape[:3], block.mix.shape[1])
    return nchw(dense_block.recursion(u, block, call.recursions, call.negative_slope, call.saved))


def dense_recursion_backward(call) -> dict[str, Tensor]:
    block = _dense_block(call)
    grad_u, gradients = dense_block.recursion_gradient(nhwc(call.grad), call.saved, block, call.negative_slope)
    names = [name for name in call.operation.shapes if name != "u"]
    gradients = {name: part.view(getattr(call, name).shape) for name, part in zip(names, gradients, strict=True)}
    return {"u": nchw(grad_u), **gradients}


def dense_network(call) -> Tensor:
    """Head and tail, which are a few percent of the work, are left to PyTorch."""
    u = F.conv2d(call.image, call.head_weight, call.head_bias, padding=1).to(call.tail_weight.dtype)
    x = dense_block.recursion(nhwc(u), _dense_block(call), call.recursions, call.negative_slope)
    return F.conv2d(nchw(x), call.tail_weight, call.tail_bias, padding=1).to(call.image.dtype)


def residual_head(call) -> Tensor:
    """One pass over f. The image has a 64th of its bytes and is left to PyTorch."""
    upsampled = nhwc(F.conv_transpose2d(call.image, call.image_weight, stride=2, padding=1))
    weight, out = pack_weights(call.residual_weight, call.f.dtype), torch.empty_like(upsampled)
    return nchw(conv_lrelu(nhwc(call.f), weight, call.residual_bias, upsampled, slope=1.0, out=out))


def residual_head_backward(call) -> dict[str, Tensor]:
    f, grad = nhwc(call.f), nhwc(call.grad)
    gradients, pixels = {"residual_bias": _over_pixels(grad)}, grad.to(f.dtype)
    if "f" in call.wanted:
        gradients["f"] = nchw(conv_data_gradient(pixels, pack_weights(call.residual_weight, f.dtype)))
    if "residual_weight" in call.wanted:
        gradients["residual_weight"] = _weight_gradient(pixels, f, 1)
    gradients["image"], gradients["image_weight"], _ = torch.ops.aten.convolution_backward(
        call.grad, call.image, call.image_weight, None, [2, 2], [1, 1], [1, 1], True, [0, 0], 1, [True, True, False]
    )
    return gradients
