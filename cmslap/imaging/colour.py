"""RGB and YCbCr as MATLAB's ``rgb2ycbcr`` has them: ITU-R BT.601, studio range, in floating point."""

from __future__ import annotations

import torch
from torch import Tensor

# Rows Y, Cb, Cr; RGB in [0, 1] gives Y in [16, 235] / 255 and Cb, Cr in [16, 240] / 255.
_MATRIX = ((65.481, 128.553, 24.966), (-37.797, -74.203, 112.0), (112.0, -93.786, -18.214))
_OFFSET = (16.0, 128.0, 128.0)


def _constants(like: Tensor) -> tuple[Tensor, Tensor]:
    matrix = torch.tensor(_MATRIX, dtype=torch.float64) / 255
    offset = torch.tensor(_OFFSET, dtype=torch.float64)[:, None, None] / 255
    return matrix, offset.to(like)


def rgb_to_ycbcr(
    rgb: Tensor,  # [..., 3, H, W] in [0, 1], floating point
) -> Tensor:  # [..., 3, H, W]
    """Y in [16/255, 235/255], Cb and Cr in [16/255, 240/255]; nothing is rounded."""
    matrix, offset = _constants(rgb)
    return torch.einsum("ij,...jhw->...ihw", matrix.to(rgb), rgb) + offset


def ycbcr_to_rgb(
    ycbcr: Tensor,  # [..., 3, H, W]
) -> Tensor:  # [..., 3, H, W]
    """The inverse of :func:`rgb_to_ycbcr`; not clamped."""
    matrix, offset = _constants(ycbcr)
    return torch.einsum("ij,...jhw->...ihw", torch.linalg.inv(matrix).to(ycbcr), ycbcr - offset)
