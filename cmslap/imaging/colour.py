"""ITU-R BT.601 RGB and YCbCr in studio range, as MATLAB's ``rgb2ycbcr`` and ``ycbcr2rgb`` on doubles.

All values are fractions of 255: RGB lies in [0, 1], Y in [16/255, 235/255], Cb and Cr in [16/255, 240/255] with grey
at 128/255. Super-resolution papers run their networks on this Y and measure PSNR on it.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from cmslap.imaging.resize import imresize

_MATRIX = torch.tensor(
    [
        [65.481, 128.553, 24.966],
        [-37.797, -74.203, 112.0],
        [112.0, -93.786, -18.214],
    ],
    dtype=torch.float64,
).div(255)
_OFFSET = torch.tensor([16.0, 128.0, 128.0], dtype=torch.float64).div(255)
_INVERSE = torch.linalg.inv(_MATRIX)


def _check(x: Tensor, name: str) -> None:
    if not x.is_floating_point():
        raise TypeError(f"{name} must be floating point, got {x.dtype}")
    if x.dim() < 3 or x.shape[-3] != 3:
        raise ValueError(f"{name} must be [..., 3, H, W], got shape {list(x.shape)}")


def _mix(matrix: Tensor, x: Tensor) -> Tensor:
    return torch.einsum("ij,...jhw->...ihw", matrix.to(x), x)


def rgb_to_ycbcr(rgb: Tensor) -> Tensor:  # [..., 3, H, W] -> [..., 3, H, W]
    """Y, Cb and Cr of ``rgb`` in [0, 1]. Raises TypeError unless floating point, ValueError unless [..., 3, H, W]."""
    _check(rgb, "rgb")
    return _mix(_MATRIX, rgb) + _OFFSET.to(rgb)[:, None, None]


def ycbcr_to_rgb(ycbcr: Tensor) -> Tensor:  # [..., 3, H, W] -> [..., 3, H, W]
    """The exact inverse of :func:`rgb_to_ycbcr`; not clamped. Raises as that does."""
    _check(ycbcr, "ycbcr")
    return _mix(_INVERSE, ycbcr - _OFFSET.to(ycbcr)[:, None, None])


def enlarge_colour(
    image: Tensor,  # [1 or 3, H, W] in [0, 1], grey or RGB
    network: Callable[[Tensor], Tensor],  # [channels, H, W] -> [channels, h, w]
    channels: int,
) -> Tensor:  # [1 or 3, h, w]
    """Enlarge an image by a ``network`` of luma (1 channel) or RGB (3).

    Luma of an RGB image takes bicubic chroma along. Grey goes through a network of luma as it is, and through one of
    RGB as three equal channels; the result is then the grey with their luma.
    """
    if len(image) == 3 and channels == 1:
        ycbcr = rgb_to_ycbcr(image)
        y = network(ycbcr[:1])
        return ycbcr_to_rgb(torch.cat([y, imresize(ycbcr[1:], size=y.shape[-2:])]))
    if len(image) == channels:
        return network(image)
    larger = network(image.expand(channels, -1, -1))
    return (rgb_to_ycbcr(larger)[:1] - _OFFSET[0].item()) / _MATRIX[0].sum().item()
