"""Bicubic enlargement inside a network: by a whole factor, on any device, and in exported programs.

The values are those of ``cmslap.imaging.imresize``. That one takes any factor, and makes its tables outside of the
graph that an exporter records.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

_REACH = 2  # source pixels on either side that a target pixel reads at most


def _cubic(distance: float) -> float:
    """Keys' cubic convolution kernel with a = -0.5."""
    x = abs(distance)
    if x <= 1:
        return 1.5 * x**3 - 2.5 * x**2 + 1
    return -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2 if x <= 2 else 0.0


def _offset(phase: int, scale: int) -> float:
    """Where target pixel ``phase`` of a source pixel lies, in source pixels from that one's centre."""
    return (phase + 0.5) / scale - 0.5


def _mirrored(length: int, device: torch.device) -> Tensor:  # [length + 4]
    """Source pixels from -2 to length + 1; those outside are mirrored at the edge, which belongs to both sides."""
    index = torch.arange(-_REACH, length + _REACH, device=device)
    index = torch.maximum(index, -1 - index)
    return torch.minimum(index, 2 * length - 1 - index).clamp(min=0)


def enlarge(image: Tensor, scale: int) -> Tensor:  # [N, C, H, W] -> [N, C, scale H, scale W]
    """``image`` enlarged by a whole factor, as MATLAB's ``imresize`` does it; not clamped."""
    n, channels, height, width = image.shape
    taps = range(-_REACH, _REACH + 1)
    rows = [[_cubic(_offset(phase, scale) - tap) for tap in taps] for phase in range(scale)]
    rows = torch.tensor(rows, dtype=torch.float64)
    kernel = torch.einsum("pi,qj->pqij", rows, rows).reshape(scale * scale, 1, len(taps), len(taps)).to(image)
    padded = image.index_select(2, _mirrored(height, image.device)).index_select(3, _mirrored(width, image.device))
    phases = F.conv2d(padded.reshape(n * channels, 1, height + 2 * _REACH, width + 2 * _REACH), kernel)
    return F.pixel_shuffle(phases, scale).reshape(n, channels, scale * height, scale * width)


def first_pixel(pixel: int, scale: int) -> int:
    """The first source pixel that the target pixels from ``pixel`` on, to the right, read."""
    return min(_first_tap(target, scale) for target in range(pixel, pixel + scale))


def _first_tap(pixel: int, scale: int) -> int:
    source, phase = divmod(pixel, scale)
    offset = _offset(phase, scale)
    return source if offset == 0 else source - 1 - (offset < 0)
