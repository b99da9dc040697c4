"""The CUDA backend: the kernels of csrc/cuda.

They run on maps in channels_last memory of bfloat16 or float16 and images of float32, and sum in float32, on the
current stream of the tensors' device. Parameters' gradients are float32 and added to their buffers, so these start as
zeros; everything else the kernels write in full.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import Tensor

from cmslap.ops.backend import Backend, saved_maps, saved_shape
from cmslap.ops.extension import CUDA_MISSING
from cmslap.ops.operation import Arguments, Operation

DTYPES = (torch.bfloat16, torch.float16)
CHANNELS = range(16, 257, 16)
CAPABILITY = (8, 0)  # the oldest there are kernels for

_kernels = torch.ops.cmslap_cuda
Gradients = dict[str, Tensor]


def _unsupported(operation: Operation, arguments: Arguments) -> str | None:
    activation = operation.activation(arguments)
    if activation.device.type != "cuda":
        return f"runs on cuda, not on {activation.device.type}"
    properties = torch.cuda.get_device_properties(activation.device)
    if (properties.major, properties.minor) < CAPABILITY:
        return f"needs compute capability 8.0, not {properties.major}.{properties.minor}"
    return _unsupported_sizes(operation, arguments)


def _unsupported_sizes(operation: Operation, arguments: Arguments) -> str | None:
    dtype = arguments[operation.features_name].dtype
    if dtype not in DTYPES:
        return f"bfloat16 and float16 only, not {str(dtype).removeprefix('torch.')}"
    if operation.name == "residual_head":
        channels = arguments["f"].shape[1:2]
    elif operation.name == "conv2d_lrelu" and arguments["x"].shape[1] == 1:  # from an image
        if arguments["skip"] is not None:
            return "no skip where the input has one channel"
        channels = arguments["weight"].shape[:1]
    else:
        channels = next(arguments[name] for name in ("weight", "weights") if name in arguments).shape[-4:-2]
    unfit = [count for count in channels if count not in CHANNELS]
    return f"channels must be a multiple of 16 up to 256, got {unfit[0]}" if unfit else None


def _on_its_device(kernel: Callable[..., Any]) -> Callable[..., Any]:
    """Memory and launches of ``kernel`` go to the device of its first tensor."""

    @wraps(kernel)
    def run(*args: object, **kwargs: object) -> Tensor | tuple[Tensor, Tensor | None] | Gradients:
        with torch.cuda.device_of((*args, *kwargs.values())[0]):
            return kernel(*args, **kwargs)

    return run


def _stream(tensor: Tensor) -> int:
    """The handle of the stream that PyTorch queues work on tensors of this device on; 0 on a CPU, which has none."""
    return torch.cuda.current_stream(tensor.device).cuda_stream if tensor.is_cuda else 0


def _map(tensor: Tensor | None) -> Tensor | None:
    """The same values as the kernels read them: channels_last, aligned."""
    if tensor is None:
        return None
    tensor = tensor.contiguous(memory_format=torch.channels_last)
    return tensor if tensor.data_ptr() % 16 == 0 else tensor.clone()


def _floats(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.to(torch.float32).contiguous()


def _new_map(like: Tensor, channels: int, factor: int = 1) -> Tensor:
    """Memory for maps of ``like``'s batch, ``factor`` times as high and wide."""
    n, _, height, width = like.shape
    return like.new_empty(n, factor * height, factor * width, channels).permute(0, 3, 1, 2)


def _new_image(like: Tensor, factor: int = 1) -> Tensor:
    """Memory for images of ``like``'s batch, ``factor`` times as high and wide: float32."""
    n, _, height, width = like.shape
    return like.new_empty(n, 1, factor * height, factor * width, dtype=torch.float32)


def _zeros(like: Tensor, *shape: int) -> Tensor:
    """A float32 buffer on ``like``'s device, of its shape if no other is given."""
    return torch.zeros(shape or like.shape, dtype=torch.float32, device=like.device)


def _from_image(x: Tensor) -> bool:
    return x.shape[1] == 1


def _conv2d_lrelu(x: Tensor, weight: Tensor, bias: Tensor | None, skip: Tensor | None, negative_slope: float) -> Tensor:
    out = _new_map(x, weight.shape[0])
    if _from_image(x):
        _kernels.image_conv(_floats(x), _floats(weight), _floats(bias), negative_slope, _stream(x), out)
    else:
        inputs = _map(x), weight.contiguous(), _floats(bias), _map(skip)
        _kernels.conv2d_lrelu(*inputs, negative_slope, _stream(x), out)
    return out


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
) -> Gradients:
    if _from_image(x):
        return _image_conv_backward(grad, output, wanted, x, weight, negative_slope)
    gradients = {
        "x": _new_map(x, x.shape[1]) if "x" in wanted else None,
        "weight": _zeros(weight) if "weight" in wanted else None,
        "bias": _zeros(weight, weight.shape[0]) if "bias" in wanted else None,
        "skip": _new_map(x, weight.shape[0]),
    }
    inputs = _map(x), weight.contiguous(), _map(output), _map(grad)
    _kernels.conv2d_lrelu_backward(*inputs, negative_slope, _stream(x), *gradients.values())
    return gradients


def _image_conv_backward(
    grad: Tensor, output: Tensor, wanted: tuple[str, ...], x: Tensor, weight: Tensor, negative_slope: float
) -> Gradients:
    """The image's own gradient, which training never asks for, is left to PyTorch."""
    before, parameters = _new_map(x, weight.shape[0]), _zeros(weight, weight.shape[0], 10)
    _kernels.image_conv_backward(_floats(x), _map(output), _map(grad), negative_slope, _stream(x), before, parameters)
    gradients = {"weight": parameters[:, :9].reshape(weight.shape), "bias": parameters[:, 9]}
    if "x" in wanted:
        gradients["x"] = torch.nn.grad.conv2d_input(x.shape, weight, before, padding=1)
    return gradients


def _new_saved(u: Tensor, maps: int) -> Tensor:
    n, channels, height, width = u.shape
    return u.new_empty(maps, n, height, width, channels)


def _recursive_embedding(
    u: Tensor, weights: Tensor, biases: Tensor, recursions: int, negative_slope: float, recompute: bool, save: bool
) -> tuple[Tensor, Tensor | None]:
    out = _new_map(u, u.shape[1])
    saved = _new_saved(u, saved_maps(recursions, recompute, weights)) if save else None
    block = weights.contiguous(), _floats(biases), recursions, negative_slope, recompute
    _kernels.recursive_embedding(_map(u), *block, _stream(u), saved, out)
    return out, saved


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
) -> Gradients:
    gradients = {"u": _new_map(u, u.shape[1]), "weights": _zeros(weights), "biases": _zeros(biases)}
    block = weights.contiguous(), _floats(biases), recursions, negative_slope, recompute
    maps = saved, _map(output), _map(grad)
    _kernels.recursive_embedding_backward(*block, *maps, _stream(u), *gradients.values())
    return gradients


def _tied_conv_transpose2d(a: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    out = _new_map(a, weight.shape[1], factor=2)
    _kernels.tied_conv_transpose2d(_map(a), weight.contiguous(), _floats(bias), _stream(a), out)
    return out


def _tied_conv_transpose2d_backward(
    grad: Tensor, output: None, saved: None, wanted: tuple[str, ...], a: Tensor, weight: Tensor, bias: Tensor | None
) -> Gradients:
    gradients = {
        "a": _new_map(a, a.shape[1]) if "a" in wanted else None,
        "weight": _zeros(weight) if "weight" in wanted else None,
        "bias": _zeros(weight, weight.shape[1]) if "bias" in wanted else None,
    }
    inputs = _map(a), weight.contiguous(), _map(grad)
    _kernels.tied_conv_transpose2d_backward(*inputs, _stream(a), *gradients.values())
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
) -> tuple[Tensor, Tensor | None]:
    weights = weights.contiguous()
    kernel = upsample_weight.contiguous() if shared_conv is None else weights[shared_conv - 1]
    out = _new_map(u, u.shape[1], factor=2)
    saved = _new_saved(u, saved_maps(recursions, recompute, weights) + 1) if save else None
    parameters = weights, _floats(biases), kernel, _floats(upsample_bias)
    _kernels.lapsrn_level(_map(u), *parameters, recursions, negative_slope, recompute, _stream(u), saved, out)
    return out, saved


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
) -> Gradients:
    weights = weights.contiguous()
    kernel = upsample_weight.contiguous() if shared_conv is None else weights[shared_conv - 1]
    gradients = {"u": _new_map(u, u.shape[1]), "weights": _zeros(weights), "biases": _zeros(biases)}
    # The tied kernel's two gradients go to one place.
    gradients["upsample_weight"] = _zeros(kernel) if shared_conv is None else gradients["weights"][shared_conv - 1]
    gradients["upsample_bias"] = _zeros(upsample_bias)
    block = weights, _floats(biases), kernel, recursions, negative_slope, recompute
    _kernels.lapsrn_level_backward(*block, saved, _map(grad), _stream(u), *gradients.values())
    return gradients


def _residual_head(
    f: Tensor, image: Tensor, residual_weight: Tensor, residual_bias: Tensor, image_weight: Tensor
) -> Tensor:
    out = _new_image(image, factor=2)
    parameters = _floats(residual_weight), _floats(residual_bias), _floats(image_weight)
    _kernels.residual_head(_map(f), _floats(image), *parameters, _stream(f), out)
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
) -> Gradients:
    shapes = {"residual_weight": residual_weight.shape, "residual_bias": (1,), "image_weight": image_weight.shape}
    parameters = _zeros(f, 9 * f.shape[1] + 17)
    gradients = {
        "f": _new_map(f, f.shape[1]) if "f" in wanted else None,
        "image": _new_image(image) if "image" in wanted else None,
    }
    inputs = _map(f), _floats(image), _floats(residual_weight), _floats(image_weight), _floats(grad)
    _kernels.residual_head_backward(*inputs, _stream(f), *gradients.values(), parameters)
    parts = parameters.split([9 * f.shape[1], 1, 16])
    return gradients | {name: part.reshape(shapes[name]) for name, part in zip(shapes, parts, strict=True)}


FORWARD = {
    "conv2d_lrelu": _conv2d_lrelu,
    "recursive_embedding": _recursive_embedding,
    "tied_conv_transpose2d": _tied_conv_transpose2d,
    "lapsrn_level": _lapsrn_level,
    "residual_head": _residual_head,
}
BACKWARD = {
    "conv2d_lrelu": _conv2d_lrelu_backward,
    "recursive_embedding": _recursive_embedding_backward,
    "tied_conv_transpose2d": _tied_conv_transpose2d_backward,
    "lapsrn_level": _lapsrn_level_backward,
    "residual_head": _residual_head_backward,
}

CUDA = Backend(
    "cuda",
    CUDA_MISSING,
    _unsupported,
    forward={name: _on_its_device(kernel) for name, kernel in FORWARD.items()},
    backward={name: _on_its_device(kernel) for name, kernel in BACKWARD.items()},
    saved_shape=saved_shape,
    only_forced="never run on a GPU yet; CMSLAP_BACKEND=cuda runs it",
)
