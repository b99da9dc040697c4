"""Where the kernels are worth calling: small convolutions take PyTorch's own no longer, or less."""

from __future__ import annotations

from torch import Tensor, dtype, float32

from cmslap.ops.dispatch import REFERENCE, choose, forced
from cmslap.ops.operation import OPERATIONS

# Measured on AVX-512 cores against channels_last eager, forward and backward: below these, what a call costs
# whatever its size and the transformation of its kernel take more time than the fewer multiplications save.
MIN_CHANNELS = 16
MIN_PIXELS = 1024
MIN_PRODUCTS = 2**22  # pixels × input channels × output channels: 32→32 at 64×64, 64→64 at 32×32

DTYPES: tuple[dtype, ...] = (float32,)  # of convolutions called one by one; in half precision no gain was measured


def few_channels(weight: Tensor) -> bool:  # [Cout, Cin, 3, 3]
    """Whether a convolution with this kernel is left to PyTorch whatever the image."""
    return min(weight.shape[:2]) < MIN_CHANNELS


def too_small(x: Tensor, weight: Tensor) -> bool:
    """Whether a first, cheap look says that :func:`pays` is False."""
    return forced() is None and x.numel() * weight.shape[0] < MIN_PRODUCTS


def pays(x: Tensor, weight: Tensor) -> bool:  # [N, Cin, H, W], [Cout, Cin, 3, 3]
    """Whether a kernel serves ``conv2d_lrelu(x, weight)``, or the transposed convolution, and beats PyTorch's own.

    Where the user forces a backend, that one is meant to run: always True.
    """
    if forced() is not None:
        return True
    pixels = x.shape[0] * x.shape[2] * x.shape[3]
    if too_small(x, weight) or x.dtype not in DTYPES or few_channels(weight) or pixels < MIN_PIXELS:
        return False
    arguments = {"x": x, "weight": weight, "bias": None, "skip": None, "negative_slope": 1.0}
    return choose(OPERATIONS["conv2d_lrelu"], arguments, needs_grad=True) is not REFERENCE
