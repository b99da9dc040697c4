"""The Triton backend: the kernels of kernels/, for CUDA tensors, and for CPU tensors in Triton's interpreter."""

import importlib.util
import os
from collections.abc import Callable

import torch

from cmslap.ops.backend import NAMES, Backend, Call, saved_shape
from cmslap.ops.operation import Arguments, Operation

DEVICE = "cpu" if os.environ.get("TRITON_INTERPRET") == "1" else "cuda"  # which Triton itself reads
DTYPES = (torch.bfloat16, torch.float16, torch.float32)
CHANNELS = range(16, 257, 16)
DENSE = 128  # the most that x and `a` of a dense block may have together
ONE_CHANNEL = ("conv2d_lrelu", "residual_head")  # from or to an image


def _unsupported(operation: Operation, arguments: Arguments) -> str | None:
    activation = operation.activation(arguments)
    if activation.device.type != DEVICE:
        return f"runs on {DEVICE}, not on {activation.device.type}"
    if activation.dtype not in DTYPES:
        return f"bfloat16, float16 or float32 only, not {str(activation.dtype).removeprefix('torch.')}"
    if "pointwise3" in arguments:
        dense = arguments["depthwise2"].shape[0]
        counts = arguments["bias3"].shape[0], arguments["bias1"].shape[0]
        fits = all(count in CHANNELS for count in counts) and dense <= DENSE
        return None if fits else f"channels and growth must be multiples of 16 up to {DENSE} in all, got {counts}"
    weight = next(arguments[name] for name in ("weight", "weights", "residual_weight") if name in arguments)
    for channels in weight.shape[-4:-2]:
        if channels not in CHANNELS and not (channels == 1 and operation.name in ONE_CHANNEL):
            return f"channels must be a multiple of 16 up to 256, got {channels}"
    return None


def _kernel(name: str) -> Callable[[Call], object]:
    def run(call: Call) -> object:
        from cmslap.kernels import operations  # imports Triton, which takes a moment: not before the first launch

        with torch.cuda.device_of(call.activation):  # Triton launches on the current device
            return getattr(operations, name)(call)

    return run


def _saved_shape(call: Call) -> tuple[int, ...]:
    """As elsewhere; of a dense recursion [R, N, H, W, C + 2G]: each [x, a, b]."""
    if call.operation.name != "dense_recursion":
        return saved_shape(call)
    n, channels, height, width = call.u.shape
    return call.recursions, n, height, width, channels + 2 * call.bias1.shape[0]


_BACKWARD = *NAMES, "dense_recursion"

TRITON = Backend(
    "triton",
    missing="Triton is not installed" if importlib.util.find_spec("triton") is None else None,
    only_forced="never run on a GPU yet; CMSLAP_BACKEND=triton runs it",
    unsupported=_unsupported,
    forward={name: _kernel(name) for name in (*_BACKWARD, "dense_network")},
    backward={name: _kernel(f"{name}_backward") for name in _BACKWARD},
    saved_shape=_saved_shape,
)
