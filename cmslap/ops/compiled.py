"""What the backends of csrc share: memory for results, and one operator's call an operation.

csrc/cpu and csrc/cuda have the same operators. They read features in channels_last memory and sum in float32.
Parameters' gradients are float32 and added to their buffers, so these start as zeros; everything else the kernels write
in full, on a CPU the gradients of one convolution or upsampling, too. Gradients go to them by name: what is ``u`` here
is ``grad_u`` there.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from cmslap.ops.backend import Call


class Library:
    """The operators of one compiled library; a subclass says what their tensors must be."""

    differentiates_in_place = True  # whether they need memory for the skip's gradient, which is that before φ, anyway
    adds_to_gradients = True  # whether those of a single convolution's or upsampling's parameters, too, start as zeros

    def __init__(self, operators: object) -> None:
        self.operators = operators

    def dtype(self, features: Tensor, save: bool = False) -> torch.dtype:
        """What the kernels take features in; ``save``: those of a gradient and of a forward pass that one follows."""
        raise NotImplementedError

    def weight(self, weight: Tensor) -> Tensor:
        raise NotImplementedError

    def conv_weight(self, weight: Tensor) -> Tensor:
        """That of conv2d_lrelu, whose gradient will lie as it does."""
        return self.weight(weight)

    def stream(self, call: Call) -> tuple[int, ...]:
        """What the operators take besides: the stream to queue work on, if there is one."""
        raise NotImplementedError

    def empty(self, shape: Sequence[int], **layout: object) -> Tensor:
        """Memory for a result: what ``torch.empty`` gives for ``dtype``, ``device`` and ``memory_format``."""
        return torch.empty(shape, **layout)

    def zeros(self, call: Call, *names: str) -> dict[str, Tensor]:
        """Buffers to add up the gradients of parameters in."""
        return call.zeros(*names, empty=self.empty)

    def weight_and_bias(self, call: Call, weight: Tensor, channels: int) -> dict[str, Tensor]:
        """Buffers for both gradients, also where there is no bias, or for none: one pass sums both."""
        if not call.wanting("weight", "bias"):
            return {}
        weight_gradient = torch.empty_like(weight, dtype=torch.float32)
        buffers = {"weight": weight_gradient, "bias": weight_gradient.new_empty(channels)}
        if self.adds_to_gradients:
            for buffer in buffers.values():
                buffer.zero_()
        return buffers

    def map(self, x: Tensor | None, dtype: torch.dtype = torch.float32) -> Tensor | None:
        """Features or an image as the kernels read them."""
        return None if x is None else as_dtype(x, dtype).contiguous(memory_format=torch.channels_last)

    def new_map(self, like: Tensor, channels: int, dtype: torch.dtype = torch.float32, factor: int = 1) -> Tensor:
        """Memory for features or images of ``like``'s batch, ``factor`` times as high and wide."""
        n, _, height, width = like.shape
        shape = n, channels, factor * height, factor * width
        return self.empty(shape, dtype=dtype, device=like.device, memory_format=torch.channels_last)

    def new_maps(self, call: Call, *names: str) -> dict[str, Tensor]:
        """Memory for the gradients of features."""
        features = {name: getattr(call, name) for name in names}
        return {name: self.new_map(x, x.shape[1], self.dtype(x, save=True)) for name, x in features.items()}

    def block(self, call: Call) -> tuple[object, ...]:
        return self.weight(call.weights), floats(call.biases), call.recursions, call.negative_slope, call.recompute

    def conv2d_lrelu(self, call: Call) -> Tensor:
        dtype = self.dtype(call.x)
        out = self.new_map(call.x, call.weight.shape[0], dtype)
        inputs = self.map(call.x, dtype), self.conv_weight(call.weight), floats(call.bias), self.map(call.skip, dtype)
        self.operators.conv2d_lrelu(*inputs, call.negative_slope, *self.stream(call), out)
        return out

    def conv2d_lrelu_backward(self, call: Call) -> dict[str, Tensor]:
        weight, channels, dtype = self.conv_weight(call.weight), call.weight.shape[0], self.dtype(call.x, save=True)
        gradients = self.new_maps(call, *call.wanting("x"))
        if call.wanting("skip") or self.differentiates_in_place:
            gradients["skip"] = self.new_map(call.x, channels, dtype)
        gradients |= self.weight_and_bias(call, weight, channels)
        maps = self.map(call.output, dtype), self.map(call.grad, dtype)
        inputs = self.map(call.x, dtype), weight, *maps, call.negative_slope
        self.operators.conv2d_lrelu_backward(*inputs, *self.stream(call), **by_name(gradients))
        return gradients

    def recursive_embedding(self, call: Call) -> Tensor:
        dtype = self.dtype(call.u, call.save)
        out, saved = self.new_map(call.u, call.u.shape[1], dtype), call.new_saved(dtype, self.empty)
        self.operators.recursive_embedding(self.map(call.u, dtype), *self.block(call), *self.stream(call), saved, out)
        return out

    def recursive_embedding_backward(self, call: Call) -> dict[str, Tensor]:
        dtype = self.dtype(call.u, save=True)
        gradients = self.new_maps(call, "u") | self.zeros(call, "weights", "biases")
        maps = as_dtype(call.saved, dtype), self.map(call.output, dtype), self.map(call.grad, dtype)
        self.operators.recursive_embedding_backward(*self.block(call), *maps, *self.stream(call), **by_name(gradients))
        return gradients

    def tied_conv_transpose2d(self, call: Call) -> Tensor:
        dtype = self.dtype(call.a)
        out = self.new_map(call.a, call.weight.shape[1], dtype, factor=2)
        inputs = self.map(call.a, dtype), self.weight(call.weight), floats(call.bias)
        self.operators.tied_conv_transpose2d(*inputs, *self.stream(call), out)
        return out

    def tied_conv_transpose2d_backward(self, call: Call) -> dict[str, Tensor]:
        weight, dtype = self.weight(call.weight), self.dtype(call.a, save=True)
        gradients = self.new_maps(call, *call.wanting("a")) | self.weight_and_bias(call, weight, weight.shape[1])
        inputs = self.map(call.a, dtype), weight, self.map(call.grad, dtype)
        self.operators.tied_conv_transpose2d_backward(*inputs, *self.stream(call), **by_name(gradients))
        return gradients

    def lapsrn_level(self, call: Call) -> Tensor:
        dtype = self.dtype(call.u, call.save)
        out, saved = self.new_map(call.u, call.u.shape[1], dtype, factor=2), call.new_saved(dtype, self.empty)
        inputs = self.map(call.u, dtype), self.weight(call.upsample_weight), floats(call.upsample_bias)
        self.operators.lapsrn_level(*inputs, *self.block(call), *self.stream(call), saved, out)
        return out

    def lapsrn_level_backward(self, call: Call) -> dict[str, Tensor]:
        dtype = self.dtype(call.u, save=True)
        gradients = self.new_maps(call, "u") | self.zeros(call, "weights", "biases", "upsample_weight", "upsample_bias")
        maps = as_dtype(call.saved, dtype), self.map(call.grad, dtype)
        inputs = self.weight(call.upsample_weight), *self.block(call), *maps
        self.operators.lapsrn_level_backward(*inputs, *self.stream(call), **by_name(gradients))
        return gradients

    def head(self, call: Call) -> tuple[Tensor, ...]:
        return floats(call.residual_weight), floats(call.residual_bias), floats(call.image_weight)

    def residual_head(self, call: Call) -> Tensor:
        out = self.new_map(call.image, 1, factor=2)
        maps = self.map(call.f, self.dtype(call.f)), self.map(call.image)
        self.operators.residual_head(*maps, *self.head(call), *self.stream(call), out)
        return out


def floats(tensor: Tensor | None) -> Tensor | None:
    """Biases, and what else the kernels read in float32 on every device."""
    return None if tensor is None else as_dtype(tensor, torch.float32).contiguous()


def by_name(gradients: dict[str, Tensor]) -> dict[str, Tensor]:
    """Buffers as the operators' keyword arguments: u's gradient is their ``grad_u``."""
    return {f"grad_{name}": buffer for name, buffer in gradients.items()}


def as_dtype(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor if tensor.dtype == dtype else tensor.to(dtype)
