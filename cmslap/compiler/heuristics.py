"""Where the kernels are worth calling: small convolutions take PyTorch's own no longer, or less."""

from __future__ import annotations

from torch import Tensor, float32

from cmslap.ops.dispatch import REFERENCE, choose, forced
from cmslap.ops.operation import OPERATIONS

# Measured on AVX-512 cores against channels_last eager, forward and backward. From few channels a convolution is as
# fast as its result is written; into few, even one, the kernels are faster. In smaller images what a call costs
# whatever its size, and the transformation of its kernel, take more time than the fewer multiplications save.
MIN_CHANNELS = 16
MIN_PIXELS = 1024


def objection(x: Tensor, weight: Tensor, needs_grad: bool) -> str | None:  # [N, Cin, H, W], [Cout, Cin, 3, 3]
    """Why ``conv2d_lrelu(x, weight)``, or the transposed convolution, is left to PyTorch; None where a kernel pays.

    Where the user forces a backend, that one is meant to run. Sizes that vary are compared too: the comparison becomes
    a guard of the compiled graph.
    """
    channels = (x.shape[1], weight.shape[1]) if x.device.type == "cpu" else weight.shape[:2]
    if min(channels) < MIN_CHANNELS:
        return f"fewer than {MIN_CHANNELS} channels: PyTorch is as fast"
    if forced() is not None:
        return None
    if x.dtype != float32:
        return f"{str(x.dtype).removeprefix('torch.')}; only float32 is"  # in half precision no gain was measured
    operation = OPERATIONS["conv2d_lrelu"]
    arguments = {"x": x, "weight": weight, "bias": None, "skip": None, "negative_slope": 1.0}
    if choose(operation, arguments, needs_grad) is REFERENCE:
        return f"no kernel on {x.device.type}"
    if x.shape[0] * x.shape[2] * x.shape[3] < MIN_PIXELS:
        return "too small an image: PyTorch is as fast"
    return None
