"""The CPU backend: the kernels of csrc/cpu.

They compute in float32; half-precision tensors are converted on the way in and out. Features in bfloat16 stay so in a
forward pass that saves nothing, where the processor multiplies bfloat16.
"""

import functools
import math
import os
from collections.abc import Sequence

import torch
from torch import Tensor

from cmslap.ops.backend import NAMES, Backend, Call
from cmslap.ops.compiled import Library, as_dtype, by_name, floats
from cmslap.ops.extension import MISSING
from cmslap.ops.operation import OPERATIONS, Arguments, Operation

_kernels = torch.ops.cmslap_cpu
_SMALLEST_SHARED = 1 << 16  # bytes; the allocator of the system is faster below
_DENSE_BLOCK = tuple(name for name in OPERATIONS["dense_recursion"].shapes if name != "u")


def _unsupported(operation: Operation, arguments: Arguments) -> str | None:
    activation = operation.activation(arguments)
    if activation.device.type != "cpu":
        return f"runs on cpu, not on {activation.device.type}"
    if activation.dtype == torch.float64:
        return "float32, bfloat16 and float16 only, not float64"
    return None


@functools.cache
def reuses_memory() -> bool:
    """Whether PyTorch, 2.11 or later, takes memory of ours for its tensors. Needs the extension."""
    return _kernels.reuses_memory()


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


class _Kernels(Library):
    differentiates_in_place = False
    adds_to_gradients = False

    def dtype(self, features: Tensor, save: bool = False) -> torch.dtype:
        bfloat16 = features.dtype == torch.bfloat16 and not save and multiplies_bfloat16()
        return torch.bfloat16 if bfloat16 else torch.float32

    def empty(self, shape: Sequence[int], *, dtype: torch.dtype, **layout: object) -> Tensor:
        """Large results share memory with those that are gone: fresh pages can take longer than what fills them."""
        if math.prod(shape) * dtype.itemsize < _SMALLEST_SHARED or not reuses_memory():
            return torch.empty(shape, dtype=dtype, **layout)
        channels_last = layout.get("memory_format") == torch.channels_last
        result = _kernels.empty(shape, channels_last, dtype == torch.bfloat16)
        if torch.are_deterministic_algorithms_enabled() and torch.utils.deterministic.fill_uninitialized_memory:
            result.fill_(torch.nan)
        return result

    def weight(self, weight: Tensor) -> Tensor:
        return floats(weight)

    def conv_weight(self, weight: Tensor) -> Tensor:
        weight = as_dtype(weight, torch.float32)
        return weight if weight.is_contiguous(memory_format=torch.channels_last) else weight.contiguous()

    def stream(self, call: Call) -> tuple[int, ...]:
        return ()

    def residual_head_backward(self, call: Call) -> dict[str, Tensor]:
        parameters = self.zeros(call, "residual_weight", "residual_bias", "image_weight")
        gradients = self.new_maps(call, "f", "image") | parameters
        inputs = self.map(call.f), self.map(call.image), floats(call.residual_weight), floats(call.image_weight)
        self.operators.residual_head_backward(*inputs, self.map(call.grad), **by_name(gradients))
        return gradients

    def lapsrn_last_level(self, call: Call) -> Tensor:
        out = self.new_map(call.image, 1, factor=2)
        maps = self.map(call.u, self.dtype(call.u)), self.map(call.image)
        upsampling = floats(call.upsample_weight), floats(call.upsample_bias)
        self.operators.lapsrn_last_level(*maps, *upsampling, *self.block(call)[:-1], *self.head(call), out)
        return out

    def dense_block(self, call: Call) -> tuple[object, ...]:
        return *(floats(getattr(call, name)) for name in _DENSE_BLOCK), call.recursions, call.negative_slope

    def dense_recursion(self, call: Call) -> Tensor:
        out, saved = self.new_map(call.u, call.u.shape[1]), call.new_saved(torch.float32, self.empty)
        self.operators.dense_recursion(self.map(call.u), *self.dense_block(call), saved, out)
        return out

    def dense_recursion_backward(self, call: Call) -> dict[str, Tensor]:
        gradients = self.new_maps(call, "u") | self.zeros(call, *_DENSE_BLOCK)
        maps = floats(call.saved), self.map(call.grad)
        self.operators.dense_recursion_backward(*self.dense_block(call), *maps, **by_name(gradients))
        return gradients

    def dense_network(self, call: Call) -> Tensor:
        out = self.new_map(call.image, call.tail_bias.shape[0])
        head, tail = (call.head_weight, call.head_bias), (call.tail_weight, call.tail_bias)
        *block, recursions, negative_slope = self.dense_block(call)
        parameters = *map(floats, head), *block, *map(floats, tail)
        bfloat16 = self.dtype(call.pointwise1) == torch.bfloat16
        self.operators.dense_network(self.map(call.image), *parameters, recursions, negative_slope, bfloat16, out)
        return out


_library = _Kernels(_kernels)
_BACKWARD = *NAMES, "dense_recursion"

CPU = Backend(
    "cpu",
    MISSING,
    _unsupported,
    forward={name: getattr(_library, name) for name in (*_BACKWARD, "dense_network", "lapsrn_last_level")},
    backward={name: getattr(_library, f"{name}_backward") for name in _BACKWARD},
)
