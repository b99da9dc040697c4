"""Colour where an image is fully transparent."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def spread_colour(
    colour: Tensor,  # [C, H, W]
    alpha: Tensor,  # [1, H, W]
) -> Tensor:  # [C, H, W]
    """``colour`` with that of the visible neighbourhood where ``alpha`` is 0.

    Files store any colour there, mostly black, which interpolation would drag into the visible edge as a dark fringe.
    Pull-push: halve the image, weighted by alpha, until no hole is left, then fill holes from the coarser images.
    """
    return _fill(colour * alpha, alpha, colour) if (alpha > 0).any() else colour


def _fill(weighted: Tensor, weight: Tensor, colour: Tensor) -> Tensor:
    if (weight > 0).all():
        return colour
    halved, half_weight = (F.avg_pool2d(x[None], 2, ceil_mode=True)[0] for x in (weighted, weight))
    half_colour = halved / half_weight.clamp(min=torch.finfo(weight.dtype).tiny)
    coarse = _fill(halved, half_weight, half_colour)
    smooth = F.interpolate(coarse[None], scale_factor=2, mode="bilinear", align_corners=False)[0]
    return torch.where(weight > 0, colour, smooth[:, : weight.shape[-2], : weight.shape[-1]])
