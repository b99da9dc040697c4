"""Bicubic enlargement inside a network: by a whole factor, on any device, and in exported programs.

The values are those of ``cmslap.imaging.imresize``, whose matrices depend on the image's size. Here it is the same few
operators whatever the size, so a network can be exported.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

_REACH = 2  # source pixels on either side that a target pixel reads at most


def enlarge(image: Tensor, scale: int) -> Tensor:  # [N, C, H, W] -> [N, C, scale H, scale W]
    """``image`` enlarged by a whole factor, as MATLAB's ``imresize`` does it; not clamped."""
    n, channels, height, width = image.shape
    phases = bicubic_phases(image.reshape(n * channels, 1, height, width), scale)
    return F.pixel_shuffle(phases, scale).reshape(n, channels, scale * height, scale * width)


def bicubic_phases(
    y: Tensor,  # [N, 1, H, W]
    scale: int,
) -> Tensor:  # [N, scale², H, W], which PixelShuffle makes the enlarged image
    """MATLAB's bicubic enlargement by an integer as one convolution, in the precision of ``y``."""
    taps = range(-_REACH, _REACH + 1)
    places = [(phase + 0.5) / scale - 0.5 for phase in range(scale)]  # of target pixels, from the source pixel's centre
    rows = [[_cubic(place - tap) for tap in taps] for place in places]
    rows = torch.tensor(rows, dtype=torch.float64)
    kernel = torch.einsum("pk,ql->pqkl", rows, rows).reshape(scale * scale, 1, len(taps), len(taps)).to(y)
    with torch.autocast(y.device.type, enabled=False):
        return F.conv2d(_mirrored(_mirrored(y, 2), 3), kernel)


def _cubic(distance: float) -> float:
    """Keys' cubic convolution kernel with a = -0.5."""
    x = abs(distance)
    if x <= 1:
        return 1.5 * x**3 - 2.5 * x**2 + 1
    return -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2 if x <= 2 else 0.0


def _mirrored(y: Tensor, dim: int) -> Tensor:
    """Two more pixels at both ends, mirrored: 1 0 | 0 1 2 ... as MATLAB does."""
    size = y.shape[dim]
    index = torch.arange(-_REACH, size + _REACH, device=y.device)
    index = torch.where(index < 0, -1 - index, torch.where(index >= size, 2 * size - 1 - index, index))
    return y.index_select(dim, index.clamp(0, size - 1))


def first_pixel(pixel: int, scale: int) -> int:
    """The first source pixel that the target pixels from ``pixel`` on, to the right, read.

    ``pixel`` lies at c = (pixel + 1/2) / scale - 1/2 and reads from ⌊c⌋ - 1 on; if c is whole, its neighbour does.
    """
    return (2 * pixel + 1 - scale) // (2 * scale) - 1
