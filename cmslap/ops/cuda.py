"""The CUDA backend: the kernels of csrc/cuda.

They run on maps in channels_last memory of bfloat16 or float16 and images of float32, and sum in float32, on the
current stream of the tensors' device; the features that a float32 image becomes are float32, too. Parameters' gradients
are float32 and added to their buffers, so these start as zeros; everything else the kernels write in full. Gradients go
to the kernels by name: what is ``u`` here is ``grad_u`` there.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from cmslap.ops.backend import Backend, Call, by_name
from cmslap.ops.extension import CUDA_MISSING
from cmslap.ops.operation import Arguments, Operation

DTYPES = (torch.bfloat16, torch.float16)
CHANNELS = range(16, 257, 16)
CAPABILITY = (8, 0)  # the oldest there are kernels for

_kernels = torch.ops.cmslap_cuda


def _unsupported(operation: Operation, arguments: Arguments) -> str | None:
    activation = operation.activation(arguments)
    if activation.device.type != "cuda":
        return f"runs on cuda, not on {activation.device.type}"
    properties = torch.cuda.get_device_properties(activation.device)
    if (properties.major, properties.minor) < CAPABILITY:
        return f"needs compute capability 8.0, not {properties.major}.{properties.minor}"
    return _unsupported_sizes(operation, arguments)


def _from_image(x: Tensor) -> bool:
    return x.shape[1] == 1


def _unsupported_sizes(operation: Operation, arguments: Arguments) -> str | None:
    dtype = arguments[operation.features_name].dtype
    from_image = operation.name == "conv2d_lrelu" and _from_image(arguments["x"])
    if dtype not in DTYPES and not (from_image and dtype == torch.float32):
        return f"bfloat16 and float16 only, not {str(dtype).removeprefix('torch.')}"
    if operation.name == "residual_head":
        channels = arguments["f"].shape[1:2]
    elif from_image:
        if arguments["skip"] is not None:
            return "no skip where the input has one channel"
        channels = arguments["weight"].shape[:1]
    else:
        channels = next(arguments[name] for name in ("weight", "weights") if name in arguments).shape[-4:-2]
    unfit = [count for count in channels if count not in CHANNELS]
    return f"channels must be a multiple of 16 up to 256, got {unfit[0]}" if unfit else None


def _on_its_device(kernel: Callable[[Call], object]) -> Callable[[Call], object]:
    """Memory and launches of ``kernel`` go to the device of the call."""

    def run(call: Call) -> object:
        with torch.cuda.device_of(call.activation):
            return kernel(call)

    return run


def _stream(call: Call) -> int:
    """The handle of the stream that PyTorch queues work on tensors of this device on; 0 on a CPU, which has none."""
    tensor = call.activation
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


def _new_maps(call: Call, *names: str) -> dict[str, Tensor]:
    """Memory for the gradients of features."""
    return {name: _new_map(getattr(call, name), getattr(call, name).shape[1]) for name in names}


def _new_image(like: Tensor, factor: int = 1) -> Tensor:
    """Memory for images of ``like``'s batch, ``factor`` times as high and wide: float32."""
    n, _, height, width = like.shape
    return like.new_empty(n, 1, factor * height, factor * width, dtype=torch.float32)


def _zeros(like: Tensor, *shape: int) -> Tensor:
    return torch.zeros(shape, dtype=torch.float32, device=like.device)


def _conv2d_lrelu(call: Call) -> Tensor:
    out = _new_map(call.x, call.weight.shape[0])
    if _from_image(call.x):
        inputs = _floats(call.x), _floats(call.weight), _floats(call.bias)
        _kernels.image_conv(*inputs, call.negative_slope, _stream(call), out)
    else:
        inputs = _map(call.x), call.weight.contiguous(), _floats(call.bias), _map(call.skip)
        _kernels.conv2d_lrelu(*inputs, call.negative_slope, _stream(call), out)
    return out


def _conv2d_lrelu_backward(call: Call) -> dict[str, Tensor]:
    if _from_image(call.x):
        return _image_conv_backward(call)
    gradients = {"skip": _new_map(call.x, call.weight.shape[0])}
    gradients |= _new_maps(call, *call.wanting("x")) | call.zeros(*call.wanting("weight", "bias"))
    inputs = _map(call.x), call.weight.contiguous(), _map(call.output), _map(call.grad)
    _kernels.conv2d_lrelu_backward(*inputs, call.negative_slope, _stream(call), **by_name(gradients))
    return gradients


def _image_conv_backward(call: Call) -> dict[str, Tensor]:
    """The image's own gradient, which training never asks for, is left to PyTorch."""
    x, weight, slope = call.x, call.weight, call.negative_slope
    parameters = _zeros(x, weight.shape[0], 10)
    inputs = _floats(x), _map(call.output), _map(call.grad)
    _kernels.image_conv_backward(*inputs, slope, _stream(call), parameters)
    gradients = {"weight": parameters[:, :9].reshape(weight.shape), "bias": parameters[:, 9]}
    if "x" in call.wanted:
        before = torch.where(call.output > 0, call.grad, slope * call.grad)
        gradients["x"] = torch.nn.grad.conv2d_input(x.shape, weight, before, padding=1)
    return gradients


def _block(call: Call) -> tuple[object, ...]:
    return call.weights.contiguous(), _floats(call.biases), call.recursions, call.negative_slope, call.recompute


def _recursive_embedding(call: Call) -> Tensor:
    out, saved = _new_map(call.u, call.u.shape[1]), call.new_saved(call.u.dtype)
    _kernels.recursive_embedding(_map(call.u), *_block(call), _stream(call), saved, out)
    return out


def _recursive_embedding_backward(call: Call) -> dict[str, Tensor]:
    gradients = _new_maps(call, "u") | call.zeros("weights", "biases")
    maps = call.saved, _map(call.output), _map(call.grad)
    _kernels.recursive_embedding_backward(*_block(call), *maps, _stream(call), **by_name(gradients))
    return gradients


def _tied_conv_transpose2d(call: Call) -> Tensor:
    out = _new_map(call.a, call.weight.shape[1], factor=2)
    _kernels.tied_conv_transpose2d(_map(call.a), call.weight.contiguous(), _floats(call.bias), _stream(call), out)
    return out


def _tied_conv_transpose2d_backward(call: Call) -> dict[str, Tensor]:
    gradients = _new_maps(call, *call.wanting("a")) | call.zeros(*call.wanting("weight", "bias"))
    inputs = _map(call.a), call.weight.contiguous(), _map(call.grad)
    _kernels.tied_conv_transpose2d_backward(*inputs, _stream(call), **by_name(gradients))
    return gradients


def _lapsrn_level(call: Call) -> Tensor:
    out, saved = _new_map(call.u, call.u.shape[1], factor=2), call.new_saved(call.u.dtype)
    upsampling = call.upsample_weight.contiguous(), _floats(call.upsample_bias)
    _kernels.lapsrn_level(_map(call.u), *upsampling, *_block(call), _stream(call), saved, out)
    return out


def _lapsrn_level_backward(call: Call) -> dict[str, Tensor]:
    gradients = _new_maps(call, "u") | call.zeros("weights", "biases", "upsample_weight", "upsample_bias")
    maps = call.saved, _map(call.grad)
    _kernels.lapsrn_level_backward(
        call.upsample_weight.contiguous(), *_block(call), *maps, _stream(call), **by_name(gradients)
    )
    return gradients


def _residual_head(call: Call) -> Tensor:
    out = _new_image(call.image, factor=2)
    parameters = _floats(call.residual_weight), _floats(call.residual_bias), _floats(call.image_weight)
    _kernels.residual_head(_map(call.f), _floats(call.image), *parameters, _stream(call), out)
    return out


def _residual_head_backward(call: Call) -> dict[str, Tensor]:
    shapes = {name: getattr(call, name).shape for name in ("residual_weight", "residual_bias", "image_weight")}
    parameters = _zeros(call.f, sum(shape.numel() for shape in shapes.values()))
    gradients = _new_maps(call, *call.wanting("f"))
    if "image" in call.wanted:
        gradients["image"] = _new_image(call.image)
    inputs = _map(call.f), _floats(call.image), _floats(call.residual_weight), _floats(call.image_weight)
    _kernels.residual_head_backward(*inputs, _floats(call.grad), _stream(call), parameters, **by_name(gradients))
    parts = parameters.split([shape.numel() for shape in shapes.values()])
    return gradients | {name: part.view(shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)}


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
    only_forced="never run on a GPU yet; CMSLAP_BACKEND=cuda runs it",
)
