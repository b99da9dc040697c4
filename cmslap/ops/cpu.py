"""The CPU backend: the kernels of csrc/cpu.

They compute in float32 on images in channels_last memory; half-precision tensors are converted on the way in and out.
Features in bfloat16 stay so in a forward pass that saves nothing, where the processor multiplies bfloat16. Parameters'
gradients are added to their buffers, so these start as zeros; everything else the kernels write in full. Gradients go
to the kernels by name: what is ``u`` here is ``grad_u`` there.
"""

from __future__ import annotations

import functools
import os

import torch
from torch import Tensor

from cmslap.ops.backend import Backend, Call, by_name
from cmslap.ops.extension import MISSING
from cmslap.ops.operation import Arguments, Operation

_kernels = torch.ops.cmslap_cpu


def _unsupported(operation: Operation, arguments: Arguments) -> str | None:
    activation = operation.activation(arguments)
    if activation.device.type != "cpu":
        return f"runs on cpu, not on {activation.device.type}"
    if activation.dtype == torch.float64:
        return "float32, bfloat16 and float16 only, not float64"
    return None


@functools.cache
def multiplies_bfloat16() -> bool:
    """Whether the kernels, those CMSLAP_ISA allows, multiply bfloat16 on this processor. Needs the extension."""
    return _kernels.multiplies_bfloat16()


def missing_bfloat16() -> str | None:
    """Why features in bfloat16 are not multiplied as such, or None."""
    if MISSING is not None:
        return MISSING
    if multiplies_bfloat16():
        return None
    forced = os.environ.get("CMSLAP_ISA")
    return f"CMSLAP_ISA={forced} leaves it out" if forced else "this processor has no AVX512-BF16"


def _features_dtype(features: Tensor, save: bool = False) -> torch.dtype:
    """What the forward kernels take features in."""
    bfloat16 = features.dtype == torch.bfloat16 and not save and multiplies_bfloat16()
    return torch.bfloat16 if bfloat16 else torch.float32


def _as(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor if tensor.dtype == dtype else tensor.to(dtype)


def _image(tensor: Tensor | None, dtype: torch.dtype = torch.float32) -> Tensor | None:
    return None if tensor is None else _as(tensor, dtype).contiguous(memory_format=torch.channels_last)


def _array(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else _as(tensor, torch.float32).contiguous()


def _new_image(like: Tensor, channels: int, factor: int = 1, dtype: torch.dtype = torch.float32) -> Tensor:
    """Memory for images of ``like``'s batch, ``factor`` times as high and wide."""
    n, _, height, width = like.shape
    shape = (n, channels, factor * height, factor * width)
    return torch.empty(shape, dtype=dtype, memory_format=torch.channels_last)


def _new_images(call: Call, *names: str) -> dict[str, Tensor]:
    """Memory for the gradients of images and features."""
    return {name: _new_image(getattr(call, name), getattr(call, name).shape[1]) for name in names}


def _conv2d_lrelu(call: Call) -> Tensor:
    dtype = _features_dtype(call.x)
    out = _new_image(call.x, call.weight.shape[0], dtype=dtype)
    inputs = _image(call.x, dtype), _array(call.weight), _array(call.bias), _image(call.skip, dtype)
    _kernels.conv2d_lrelu(*inputs, call.negative_slope, out)
    return out


def _conv2d_lrelu_backward(call: Call) -> dict[str, Tensor]:
    gradients = _new_images(call, *call.wanting("x"))
    # Also the gradient before the activation. Without one that is the given gradient.
    activated = call.negative_slope != 1.0 or "skip" in call.wanted
    gradients["skip"] = _new_image(call.x, call.weight.shape[0]) if activated else None
    if call.wanting("weight", "bias"):
        gradients |= call.zeros("weight") | {"bias": torch.zeros(call.weight.shape[0])}
    inputs = _image(call.x), _array(call.weight), _image(call.output), _image(call.grad)
    _kernels.conv2d_lrelu_backward(*inputs, call.negative_slope, **by_name(gradients))
    return gradients


def _block(call: Call) -> tuple[object, ...]:
    return _array(call.weights), _array(call.biases), call.recursions, call.negative_slope, call.recompute


def _recursive_embedding(call: Call) -> Tensor:
    dtype = _features_dtype(call.u, call.save)
    out, saved = _new_image(call.u, call.u.shape[1], dtype=dtype), call.new_saved(torch.float32)
    _kernels.recursive_embedding(_image(call.u, dtype), *_block(call), saved, out)
    return out


def _recursive_embedding_backward(call: Call) -> dict[str, Tensor]:
    gradients = _new_images(call, "u") | call.zeros("weights", "biases")
    images = _array(call.saved), _image(call.output), _image(call.grad)
    _kernels.recursive_embedding_backward(*_block(call), *images, **by_name(gradients))
    return gradients


def _tied_conv_transpose2d(call: Call) -> Tensor:
    dtype = _features_dtype(call.a)
    out = _new_image(call.a, call.weight.shape[1], factor=2, dtype=dtype)
    _kernels.tied_conv_transpose2d(_image(call.a, dtype), _array(call.weight), _array(call.bias), out)
    return out


def _tied_conv_transpose2d_backward(call: Call) -> dict[str, Tensor]:
    gradients = _new_images(call, *call.wanting("a"))
    if call.wanting("weight", "bias"):
        gradients |= call.zeros("weight") | {"bias": torch.zeros(call.weight.shape[1])}
    inputs = _image(call.a), _array(call.weight), _image(call.grad)
    _kernels.tied_conv_transpose2d_backward(*inputs, **by_name(gradients))
    return gradients


def _lapsrn_level(call: Call) -> Tensor:
    dtype = _features_dtype(call.u, call.save)
    out, saved = _new_image(call.u, call.u.shape[1], factor=2, dtype=dtype), call.new_saved(torch.float32)
    upsampling = _array(call.upsample_weight), _array(call.upsample_bias)
    _kernels.lapsrn_level(_image(call.u, dtype), *upsampling, *_block(call), saved, out)
    return out


def _lapsrn_level_backward(call: Call) -> dict[str, Tensor]:
    gradients = _new_images(call, "u") | call.zeros("weights", "biases", "upsample_weight", "upsample_bias")
    parameters = _array(call.upsample_weight), *_block(call)
    _kernels.lapsrn_level_backward(*parameters, _array(call.saved), _image(call.grad), **by_name(gradients))
    return gradients


def _head(call: Call) -> tuple[object, ...]:
    return _array(call.residual_weight), _array(call.residual_bias), _array(call.image_weight)


def _residual_head(call: Call) -> Tensor:
    out = _new_image(call.image, 1, factor=2)
    _kernels.residual_head(_image(call.f, _features_dtype(call.f)), _image(call.image), *_head(call), out)
    return out


def _residual_head_backward(call: Call) -> dict[str, Tensor]:
    gradients = _new_images(call, "f", "image") | call.zeros("residual_weight", "residual_bias", "image_weight")
    inputs = _image(call.f), _image(call.image), _array(call.residual_weight), _array(call.image_weight)
    _kernels.residual_head_backward(*inputs, _image(call.grad), **by_name(gradients))
    return gradients


def _lapsrn_last_level(call: Call) -> Tensor:
    out = _new_image(call.image, 1, factor=2)
    images = _image(call.u, _features_dtype(call.u)), _image(call.image)
    upsampling = _array(call.upsample_weight), _array(call.upsample_bias)
    _kernels.lapsrn_last_level(*images, *upsampling, *_block(call)[:-1], *_head(call), out)
    return out


CPU = Backend(
    "cpu",
    MISSING,
    _unsupported,
    forward={
        "conv2d_lrelu": _conv2d_lrelu,
        "recursive_embedding": _recursive_embedding,
        "tied_conv_transpose2d": _tied_conv_transpose2d,
        "lapsrn_level": _lapsrn_level,
        "residual_head": _residual_head,
        "lapsrn_last_level": _lapsrn_last_level,
    },
    backward={
        "conv2d_lrelu": _conv2d_lrelu_backward,
        "recursive_embedding": _recursive_embedding_backward,
        "tied_conv_transpose2d": _tied_conv_transpose2d_backward,
        "lapsrn_level": _lapsrn_level_backward,
        "residual_head": _residual_head_backward,
    },
)
