"""The CPU backend: the kernels of csrc/cpu.

They compute in float32 on images in channels_last memory; half-precision tensors are converted on the way in and out.
Features in bfloat16 stay so in a forward pass that saves nothing, where the processor multiplies bfloat16. Parameters'
gradients are added to their buffers, so these start as zeros; everything else the kernels write in full.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from cmslap.ops.backend import Backend, saved_maps, saved_shape
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


def _features_dtype(features: Tensor, save: bool = False) -> torch.dtype:
    """What the forward kernels take features in."""
    bfloat16 = features.dtype == torch.bfloat16 and not save and multiplies_bfloat16()
    return torch.bfloat16 if bfloat16 else torch.float32


def _image(tensor: Tensor | None, dtype: torch.dtype = torch.float32) -> Tensor | None:
    return None if tensor is None else tensor.to(dtype).contiguous(memory_format=torch.channels_last)


def _array(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.to(torch.float32).contiguous()


def _new_image(like: Tensor, channels: int, factor: int = 1, dtype: torch.dtype = torch.float32) -> Tensor:
    """Memory for images of ``like``'s batch, ``factor`` times as high and wide."""
    n, _, height, width = like.shape
    shape = (n, channels, factor * height, factor * width)
    return torch.empty(shape, dtype=dtype, memory_format=torch.channels_last)


def _zeros(like: Tensor) -> Tensor:
    return torch.zeros(like.shape, dtype=torch.float32)


def _conv2d_lrelu(x: Tensor, weight: Tensor, bias: Tensor | None, skip: Tensor | None, negative_slope: float) -> Tensor:
    dtype = _features_dtype(x)
    out = _new_image(x, weight.shape[0], dtype=dtype)
    _kernels.conv2d_lrelu(_image(x, dtype), _array(weight), _array(bias), _image(skip, dtype), negative_slope, out)
    return out.to(x.dtype)


def _conv2d_lrelu_backward(
    grad: Tensor,
    output: Tensor,
    saved: None,
    wanted: tuple[str, ...],
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    skip: Tensor | None,
    negative_slope: float,
) -> dict[str, Tensor]:
    parameters = "weight" in wanted or "bias" in wanted
    gradients = {
        "x": _new_image(x, x.shape[1]) if "x" in wanted else None,
        "weight": _zeros(weight) if parameters else None,
        "bias": torch.zeros(weight.shape[0]) if parameters else None,
        "skip": _new_image(x, weight.shape[0]),
    }
    inputs = _image(x), _array(weight), _image(output), _image(grad)
    _kernels.conv2d_lrelu_backward(*inputs, negative_slope, *gradients.values())
    return gradients


def _new_saved(u: Tensor, maps: int) -> Tensor:
    n, channels, height, width = u.shape
    return torch.empty(maps, n, height, width, channels, dtype=torch.float32)


def _recursive_embedding(
    u: Tensor,
    weights: Tensor,
    biases: Tensor,
    recursions: int,
    negative_slope: float,
    recompute: bool,
    save: bool,
) -> tuple[Tensor, Tensor]:
    dtype = _features_dtype(u, save)
    out = _new_image(u, u.shape[1], dtype=dtype)
    saved = _new_saved(u, saved_maps(recursions, recompute, weights) if save else 0)
    block = _array(weights), _array(biases), recursions, negative_slope, recompute
    _kernels.recursive_embedding(_image(u, dtype), *block, saved, out)
    return out.to(u.dtype), saved.to(u.dtype)


def _recursive_embedding_backward(
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
) -> dict[str, Tensor]:
    gradients = {"u": _new_image(u, u.shape[1]), "weights": _zeros(weights), "biases": _zeros(biases)}
    block = _array(weights), _array(biases), recursions, negative_slope, recompute
    _kernels.recursive_embedding_backward(*block, _array(saved), _image(output), _image(grad), *gradients.values())
    return gradients


def _tied_conv_transpose2d(a: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    dtype = _features_dtype(a)
    out = _new_image(a, weight.shape[1], factor=2, dtype=dtype)
    _kernels.tied_conv_transpose2d(_image(a, dtype), _array(weight), _array(bias), out)
    return out.to(a.dtype)


def _tied_conv_transpose2d_backward(
    grad: Tensor,
    output: None,
    saved: None,
    wanted: tuple[str, ...],
    a: Tensor,
    weight: Tensor,
    bias: Tensor | None,
) -> dict[str, Tensor]:
    parameters = "weight" in wanted or "bias" in wanted
    gradients = {
        "a": _new_image(a, a.shape[1]) if "a" in wanted else None,
        "weight": _zeros(weight) if parameters else None,
        "bias": torch.zeros(weight.shape[1]) if parameters else None,
    }
    _kernels.tied_conv_transpose2d_backward(_image(a), _array(weight), _image(grad), *gradients.values())
    return gradients


def _lapsrn_level(
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
) -> tuple[Tensor, Tensor]:
    dtype = _features_dtype(u, save)
    out = _new_image(u, u.shape[1], factor=2, dtype=dtype)
    saved = _new_saved(u, saved_maps(recursions, recompute, weights) + 1 if save else 0)
    kernel = upsample_weight if shared_conv is None else weights[shared_conv - 1]
    parameters = _array(weights), _array(biases), _array(kernel), _array(upsample_bias)
    _kernels.lapsrn_level(_image(u, dtype), *parameters, recursions, negative_slope, recompute, saved, out)
    return out.to(u.dtype), saved.to(u.dtype)


def _lapsrn_level_backward(
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
) -> dict[str, Tensor]:
    gradients = {"u": _new_image(u, u.shape[1]), "weights": _zeros(weights), "biases": _zeros(biases)}
    # The tied kernel's two gradients go to one place.
    gradients["upsample_weight"] = (
        _zeros(upsample_weight) if shared_conv is None else gradients["weights"][shared_conv - 1]
    )
    gradients["upsample_bias"] = _zeros(upsample_bias)
    kernel = upsample_weight if shared_conv is None else weights[shared_conv - 1]
    block = _array(weights), _array(biases), _array(kernel), recursions, negative_slope, recompute
    _kernels.lapsrn_level_backward(*block, _array(saved), _image(grad), *gradients.values())
    return gradients


def _residual_head(
    f: Tensor, image: Tensor, residual_weight: Tensor, residual_bias: Tensor, image_weight: Tensor
) -> Tensor:
    out = _new_image(image, 1, factor=2)
    parameters = _array(residual_weight), _array(residual_bias), _array(image_weight)
    _kernels.residual_head(_image(f, _features_dtype(f)), _image(image), *parameters, out)
    return out.to(image.dtype)


def _residual_head_backward(
    grad: Tensor,
    output: None,
    saved: None,
    wanted: tuple[str, ...],
    f: Tensor,
    image: Tensor,
    residual_weight: Tensor,
    residual_bias: Tensor,
    image_weight: Tensor,
) -> dict[str, Tensor]:
    gradients = {
        "f": _new_image(f, f.shape[1]),
        "image": _new_image(image, 1),
        "residual_weight": _zeros(residual_weight),
        "residual_bias": _zeros(residual_bias),
        "image_weight": _zeros(image_weight),
    }
    parameters = _array(residual_weight), _array(image_weight)
    _kernels.residual_head_backward(_image(f), _image(image), *parameters, _image(grad), *gradients.values())
    return gradients


def _lapsrn_last_level(
    u: Tensor,
    image: Tensor,
    weights: Tensor,
    biases: Tensor,
    shared_conv: int | None,
    upsample_bias: Tensor,
    recursions: int,
    residual_weight: Tensor,
    residual_bias: Tensor,
    image_weight: Tensor,
    negative_slope: float,
    recompute: bool,
    upsample_weight: Tensor | None,
) -> Tensor:
    out = _new_image(image, 1, factor=2)
    kernel = upsample_weight if shared_conv is None else weights[shared_conv - 1]
    block = _array(weights), _array(biases), _array(kernel), _array(upsample_bias), recursions, negative_slope
    head = _array(residual_weight), _array(residual_bias), _array(image_weight)
    _kernels.lapsrn_last_level(_image(u, _features_dtype(u)), _image(image), *block, *head, out)
    return out.to(image.dtype)


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
    saved_shape=saved_shape,
)
