"""Self-ensemble: the mean over the eight flips and rotations of an image."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

MEMBERS = 8


def self_ensemble(
    run: Callable[[Tensor], Tensor],
    y: Tensor,  # [..., H, W]
) -> Tensor:
    """Mean of ``run`` over the eight flips and rotations of ``y``, each result turned back."""
    total = None
    for turns in range(4):
        for flip in (False, True):
            turned = torch.rot90(y.flip(-1) if flip else y, turns, (-2, -1)).contiguous()
            result = torch.rot90(run(turned), -turns, (-2, -1))
            result = result.flip(-1) if flip else result
            total = result if total is None else total + result
    return total / MEMBERS
