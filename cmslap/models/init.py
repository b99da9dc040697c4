"""What the networks share: argument checks, the bilinear start of the image upsampling, precision of the image."""

from __future__ import annotations

import torch
from torch import Tensor


def check_scale(scale: int) -> int:
    if isinstance(scale, bool) or not isinstance(scale, int) or scale < 2 or scale & (scale - 1):
        raise ValueError(f"scale must be a power of two, 2 or more, got {scale!r}")
    return scale


def check_positive(name: str, value: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} must be an integer of at least 1, got {value!r}")
    return value


def bilinear_kernel() -> Tensor:  # [1, 1, 4, 4]
    """Bilinear 2× interpolation as the kernel of a transposed convolution with stride 2 and padding 1."""
    taps = torch.tensor([0.25, 0.75, 0.75, 0.25])
    return torch.outer(taps, taps)[None, None]


def unrounded(y: Tensor) -> torch.autocast:
    """The context of the first convolution: under autocast, too, it reads the image as it is.

    Rounding the image costs more than rounding every feature does, and this convolution is a thousandth of the work.
    """
    return torch.autocast(y.device.type, enabled=False)
