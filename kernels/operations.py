"""The public operations over these kernels: NCHW tensors in, NCHW tensors out.

A channels_last NCHW tensor is an NHWC map under another name; any other is copied into one. Signatures are those
``cmslap.ops.backend`` asks of a backend.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from . import level
from .conv import conv_data_gradient, conv_lrelu
from .derivative import derivative
from .tiles import pack_weights, unpack_weights
from .transposed_conv import transposed_conv, transposed_conv_data_gradient
from .weight_gradient import weight_gradient_shares

Gradients = dict[str, Tensor]


def nhwc(x: Tensor) -> Tensor:
    """[N, C, H, W] of any strides -> contiguous [N, H, W, C]; a view where it lies so already."""
    return x.permute(0, 2, 3, 1).contiguous()


def nchw(x: Tensor) -> Tensor:
    """[N, H, W, C] -> [N, C, H, W] in channels_last memory."""
    return x.permute(0, 3, 1, 2)


def _weight_gradient(left: Tensor, right: Tensor, stride: int) -> Tensor:
    """[Cout, Cin, 3, 3] float32 of maps [N, H, W, C]."""
    return unpack_weights(weight_gradient_shares(left[None], right[None], stride).sum(1)[0])


def _over_pixels(x: Tensor) -> Tensor:
    return x.sum((0, 1, 2), dtype=torch.float32)


def conv2d_lrelu(x: Tensor, weight: Tensor, bias: Tensor | None, skip: Tensor | None, negative_slope: float) -> Tensor:
    """See ``cmslap.ops.conv2d_lrelu``."""
    skip = None if skip is None else nhwc(skip)
    return nchw(conv_lrelu(nhwc(x), pack_weights(weight, x.dtype), bias, skip, negative_slope))


def conv2d_lrelu_backward(
    grad: Tensor,
    output: Tensor,
    saved: None,
    wanted: tuple[str, ...],
    x: Tensor,
    weight: Tensor,
    negative_slope: float,
    **_: Tensor | None,
) -> Gradients:
    """φ' is a pass of its own here, as its result is also the skip's gradient; in a level it is part of an epilogue."""
    before, sums = derivative(nhwc(grad), nhwc(output), negative_slope)
    gradients = {"skip": nchw(before), "bias": sums}
    if "x" in wanted:
        gradients["x"] = nchw(conv_data_gradient(before, pack_weights(weight, before.dtype)))
    if "weight" in wanted:
        gradients["weight"] = _weight_gradient(before, nhwc(x), 1)
    return gradients


def tied_conv_transpose2d(a: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """See ``cmslap.ops.tied_conv_transpose2d``."""
    return nchw(transposed_conv(nhwc(a), pack_weights(weight, a.dtype), bias))


def tied_conv_transpose2d_backward(
    grad: Tensor, output: None, saved: None, wanted: tuple[str, ...], a: Tensor, weight: Tensor, bias: Tensor | None
) -> Gradients:
    grad, gradients = nhwc(grad), {}
    if "a" in wanted:
        gradients["a"] = nchw(transposed_conv_data_gradient(grad, pack_weights(weight, grad.dtype))[0])
    if "weight" in wanted:
        gradients["weight"] = _weight_gradient(nhwc(a), grad, 2)
    if "bias" in wanted:
        gradients["bias"] = _over_pixels(grad)
    return gradients


def _room(maps: int, u: Tensor, save: bool) -> Tensor | None:
    return u.new_empty(maps, *u.shape) if save else None


def recursive_embedding(
    u: Tensor, weights: Tensor, biases: Tensor, recursions: int, negative_slope: float, recompute: bool, save: bool
) -> tuple[Tensor, Tensor | None]:
    """See ``cmslap.ops.recursive_embedding``."""
    u, depth = nhwc(u), weights.shape[0]
    packed, step = pack_weights(weights, u.dtype), depth if recompute else 1
    saved = _room(recursions * depth // step, u, save)
    return nchw(level.embedding(u, packed, biases, recursions, negative_slope, saved, step)), saved


def recursive_embedding_backward(
    grad: Tensor,
    output: Tensor,
    saved: Tensor,
    wanted: tuple[str, ...],
    u: Tensor,
    weights: Tensor,
    biases: Tensor,
    recursions: int,
    negative_slope: float,
    recompute: bool,
) -> Gradients:
    before, last_sums = derivative(nhwc(grad), nhwc(output), negative_slope)
    packed, step = pack_weights(weights, before.dtype), weights.shape[0] if recompute else 1
    grad_u, matrices, sums = level.embedding_gradient(
        before, last_sums, saved, packed, biases, recursions, negative_slope, step
    )
    return {"u": nchw(grad_u), "weights": unpack_weights(matrices), "biases": sums}


def lapsrn_level(
    u: Tensor,
    weights: Tensor,
    biases: Tensor,
    shared_conv: int | None,
    upsample_bias: Tensor,
    recursions: int,
    negative_slope: float,
    recompute: bool,
    upsample_weight: Tensor | None,
    save: bool,
) -> tuple[Tensor, Tensor | None]:
    """See ``cmslap.ops.lapsrn_level``."""
    u, depth = nhwc(u), weights.shape[0]
    packed, step = pack_weights(weights, u.dtype), depth if recompute else 1
    saved = _room(recursions * depth // step + 1, u, save)
    upsample = packed[shared_conv - 1] if shared_conv else pack_weights(upsample_weight, u.dtype)
    f = level.level(u, packed, biases, upsample, upsample_bias, recursions, negative_slope, saved, step)
    return nchw(f), saved


def lapsrn_level_backward(
    grad: Tensor,
    output: None,
    saved: Tensor,
    wanted: tuple[str, ...],
    u: Tensor,
    weights: Tensor,
    biases: Tensor,
    shared_conv: int | None,
    upsample_bias: Tensor,
    recursions: int,
    negative_slope: float,
    recompute: bool,
    upsample_weight: Tensor | None,
) -> Gradients:
    packed, step = pack_weights(weights, grad.dtype), weights.shape[0] if recompute else 1
    upsample = packed[shared_conv - 1] if shared_conv else pack_weights(upsample_weight, grad.dtype)
    grad_u, matrices, sums, upsample_matrices, upsample_sums = level.level_gradient(
        nhwc(grad), saved, packed, biases, upsample, recursions, negative_slope, step
    )
    gradients = {"u": nchw(grad_u), "biases": sums, "upsample_bias": upsample_sums}
    if shared_conv:
        matrices[shared_conv - 1].add_(upsample_matrices)
    else:
        gradients["upsample_weight"] = unpack_weights(upsample_matrices)
    return gradients | {"weights": unpack_weights(matrices)}


def residual_head(
    f: Tensor, image: Tensor, residual_weight: Tensor, residual_bias: Tensor, image_weight: Tensor
) -> Tensor:
    """See ``cmslap.ops.residual_head``: one pass over f. The image has a 64th of its bytes and is left to PyTorch."""
    upsampled = nhwc(F.conv_transpose2d(image, image_weight, stride=2, padding=1))
    weight = pack_weights(residual_weight, f.dtype)
    return nchw(conv_lrelu(nhwc(f), weight, residual_bias, upsampled, slope=1.0, out=torch.empty_like(upsampled)))


def residual_head_backward(
    grad: Tensor,
    output: None,
    saved: None,
    wanted: tuple[str, ...],
    f: Tensor,
    image: Tensor,
    residual_weight: Tensor,
    residual_bias: Tensor,
    image_weight: Tensor,
) -> Gradients:
    gradients, pixels = {}, nhwc(grad.to(f.dtype))
    if "f" in wanted:
        gradients["f"] = nchw(conv_data_gradient(pixels, pack_weights(residual_weight, f.dtype)))
    if "residual_weight" in wanted:
        gradients["residual_weight"] = _weight_gradient(pixels, nhwc(f), 1)
    gradients["residual_bias"] = _over_pixels(nhwc(grad))
    gradients["image"], gradients["image_weight"], _ = torch.ops.aten.convolution_backward(
        grad, image, image_weight, None, [2, 2], [1, 1], [1, 1], True, [0, 0], 1, [True, True, False]
    )
    return gradients
