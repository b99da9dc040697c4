"""Losses on the images a network returns: the levels of a pyramid, or one."""

from __future__ import annotations

import torch
from torch import Tensor

from cmslap.training.config import LossConfig


def pixel_loss(output: Tensor, target: Tensor, loss: LossConfig) -> Tensor:  # [N, C, H, W] twice -> [N]
    """Mean over each image's pixels of |x| (l1) or sqrt(x² + eps²) (charbonnier), x the error, in float32."""
    error = output.float() - target
    error = error.abs() if loss.name == "l1" else torch.sqrt(error * error + loss.eps**2)
    return error.mean(dim=(1, 2, 3))


def pyramid_loss(
    outputs: list[Tensor],  # from the smallest to the largest: [N, C, h, w]
    targets: list[Tensor],  # as the outputs
    loss: LossConfig,
) -> Tensor:  # [N]
    """Sum over the levels of the weighted pixel losses. ``loss.level_weights`` count from the HR-sized output down."""
    weights = loss.level_weights or [1.0] * len(outputs)
    pairs = zip(reversed(outputs), reversed(targets), weights, strict=False)  # fewer levels than weights at low scales
    return sum(weight * pixel_loss(output, target, loss) for output, target, weight in pairs)
