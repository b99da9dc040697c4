"""The CUDA backend: the kernels of csrc/cuda.

They run on features of bfloat16 or float16 and images of float32, on the current stream of the tensors' device; the
features that a float32 image becomes are float32, too.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from cmslap.ops.backend import NAMES, Backend, Call
from cmslap.ops.compiled import Library, by_name, floats
from cmslap.ops.extension import CUDA_MISSING
from cmslap.ops.operation import Arguments, Operation

DTYPES = (torch.bfloat16, torch.float16)
CHANNELS = range(16, 257, 16)
CAPABILITY = (8, 0)  # the oldest there are kernels for


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


class _Kernels(Library):
    def dtype(self, features: Tensor, save: bool = False) -> torch.dtype:
        return features.dtype

    def weight(self, weight: Tensor) -> Tensor:
        return weight.contiguous()

    def stream(self, call: Call) -> tuple[int, ...]:
        """The handle of the one that PyTorch queues work on tensors of this device on; 0 on a CPU, which has none."""
        tensor = call.activation
        return (torch.cuda.current_stream(tensor.device).cuda_stream if tensor.is_cuda else 0,)

    def map(self, x: Tensor | None, dtype: torch.dtype = torch.float32) -> Tensor | None:
        x = super().map(x, dtype)
        return x if x is None or x.data_ptr() % 16 == 0 else x.clone()  # they copy 16 bytes at a time

    def conv2d_lrelu(self, call: Call) -> Tensor:
        if not _from_image(call.x):
            return super().conv2d_lrelu(call)
        out = self.new_map(call.x, call.weight.shape[0], call.x.dtype)
        inputs = floats(call.x), floats(call.weight), floats(call.bias)
        self.operators.image_conv(*inputs, call.negative_slope, *self.stream(call), out)
        return out

    def conv2d_lrelu_backward(self, call: Call) -> dict[str, Tensor]:
        """The image's own gradient, which training never asks for, is left to PyTorch."""
        if not _from_image(call.x):
            return super().conv2d_lrelu_backward(call)
        x, weight, slope = call.x, call.weight, call.negative_slope
        parameters = _zeros(x, weight.shape[0], 10)
        inputs = floats(x), self.map(call.output, x.dtype), self.map(call.grad, x.dtype)
        self.operators.image_conv_backward(*inputs, slope, *self.stream(call), parameters)
        gradients = {"weight": parameters[:, :9].reshape(weight.shape), "bias": parameters[:, 9]}
        if "x" in call.wanted:
            before = torch.where(call.output > 0, call.grad, slope * call.grad)
            gradients["x"] = torch.nn.grad.conv2d_input(x.shape, weight, before, padding=1)
        return gradients

    def residual_head_backward(self, call: Call) -> dict[str, Tensor]:
        """The parameters' gradients are parts of one buffer, in the order the kernel has them."""
        shapes = {name: getattr(call, name).shape for name in ("residual_weight", "residual_bias", "image_weight")}
        parameters = _zeros(call.f, sum(shape.numel() for shape in shapes.values()))
        gradients = self.new_maps(call, *call.wanting("f"))
        if "image" in call.wanted:
            gradients["image"] = self.new_map(call.image, 1)
        inputs = self.map(call.f, call.f.dtype), *map(floats, (call.image, call.residual_weight, call.image_weight))
        self.operators.residual_head_backward(
            *inputs, floats(call.grad), *self.stream(call), parameters, **by_name(gradients)
        )
        parts = parameters.split([shape.numel() for shape in shapes.values()])
        return gradients | {name: part.view(shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)}


def _zeros(like: Tensor, *shape: int) -> Tensor:
    return torch.zeros(shape, dtype=torch.float32, device=like.device)


def _on_its_device(name: str) -> Callable[[Call], object]:
    """Memory and launches of an operation's kernel go to the device of the call."""

    def run(call: Call) -> object:
        with torch.cuda.device_of(call.activation):
            return getattr(LIBRARY, name)(call)

    return run


LIBRARY = _Kernels(torch.ops.cmslap_cuda)

CUDA = Backend(
    "cuda",
    CUDA_MISSING,
    _unsupported,
    forward={name: _on_its_device(name) for name in NAMES},
    backward={name: _on_its_device(f"{name}_backward") for name in NAMES},
    only_forced="never run on a GPU yet; CMSLAP_BACKEND=cuda runs it",
)
