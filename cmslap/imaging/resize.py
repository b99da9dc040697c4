"""MATLAB's ``imresize(..., 'bicubic')``: antialiased when shrinking, a = -0.5, symmetric edges.

One implementation for single pictures and for batches, on any device and in any floating type. Super-resolution
papers are measured with this resampling; PIL's, OpenCV's and torch's own bicubic differ from it visibly in PSNR.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor


def _cubic(x: Tensor) -> Tensor:
    """Keys' cubic convolution kernel with a = -0.5."""
    x = x.abs()
    near = 1.5 * x**3 - 2.5 * x**2 + 1
    far = -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
    return torch.where(x <= 1, near, torch.where(x <= 2, far, torch.zeros_like(x)))


@lru_cache(maxsize=256)
def _taps(length: int, out_length: int, scale: float) -> tuple[Tensor, Tensor]:
    """Source index and weight of every tap: two [P, out_length] tensors, int64 and float64, on the CPU."""
    stretch = min(scale, 1.0)  # the kernel widens when shrinking: that is the antialiasing
    width = 4.0 / stretch
    centre = torch.arange(1, out_length + 1, dtype=torch.float64) / scale + 0.5 * (1 - 1 / scale)
    first = torch.floor(centre - width / 2)
    count = math.ceil(width) + 2
    source = first[None] + torch.arange(count, dtype=torch.float64)[:, None]  # 1-based, may lie outside
    weight = stretch * _cubic(stretch * (centre[None] - source))
    weight = weight / weight.sum(dim=0, keepdim=True)
    mirror = torch.cat([torch.arange(length), torch.arange(length - 1, -1, -1)])
    index = mirror[(source.long() - 1) % (2 * length)]
    used = weight.abs().amax(dim=1) > 0
    return index[used], weight[used]


def _resize_dim(x: Tensor, dim: int, out_length: int, scale: float) -> Tensor:
    index, weight = _taps(x.shape[dim], out_length, scale)
    index, weight = index.to(x.device), weight.to(x.device, x.dtype)
    shape = [1] * x.dim()
    shape[dim] = out_length
    out = x.index_select(dim, index[0]).mul_(weight[0].view(shape))
    for p in range(1, len(index)):
        out.addcmul_(x.index_select(dim, index[p]), weight[p].view(shape))
    return out


def imresize(
    x: Tensor,  # [..., H, W], floating point
    scale: float | None = None,
    size: tuple[int, int] | None = None,
) -> Tensor:  # [..., ceil(H scale), ceil(W scale)] or [..., *size]
    """Resize the last two dimensions as MATLAB's ``imresize`` with its default bicubic kernel does.

    Give either ``scale`` or ``size`` (height, width). The result keeps dtype and device; nothing is clamped or
    rounded. In float64 it agrees with MATLAB to rounding.
    """
    if (scale is None) == (size is None):
        raise ValueError("imresize takes either scale or size, and not both")
    if not x.is_floating_point():
        raise TypeError(f"x must be floating point, got {x.dtype}")
    if x.dim() < 2 or 0 in x.shape[-2:]:
        raise ValueError(f"x must be [..., H, W] with H and W at least 1, got shape {list(x.shape)}")
    height, width = x.shape[-2:]
    if scale is not None:
        if not scale > 0:
            raise ValueError(f"scale must be positive, got {scale}")
        targets = [(-2, math.ceil(height * scale), float(scale)), (-1, math.ceil(width * scale), float(scale))]
    else:
        if min(size) < 1:
            raise ValueError(f"size must be at least 1x1, got {size[0]}x{size[1]}")
        targets = [(-2, size[0], size[0] / height), (-1, size[1], size[1] / width)]
    for dim, out_length, factor in sorted(targets, key=lambda target: target[2]):  # MATLAB: smallest factor first
        x = _resize_dim(x, dim % x.dim(), out_length, factor)
    return x
