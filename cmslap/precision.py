"""Which precision to compute in: float32, or half of it where the device multiplies such numbers itself."""

from __future__ import annotations

import torch

from cmslap import ops, options
from cmslap.errors import UserError

# As --precision and training's `precision` name them.
PRECISIONS = {name: getattr(torch, dtype) for name, dtype in options.PRECISIONS.items()}


class PrecisionError(UserError, ValueError):
    """A precision that does not exist, or that the device does not have."""


def inference_autocast(precision: str, device: torch.device) -> torch.autocast:
    """The context in which networks run in ``precision``; their weights stay as they are, and so do images.

    Raises :class:`PrecisionError` where the device has no such arithmetic: converting back and forth would make the
    result worse, and no sooner there.
    """
    if precision not in PRECISIONS:
        raise PrecisionError(f"precision must be one of {', '.join(PRECISIONS)}, got {precision!r}")
    dtype = PRECISIONS[precision]
    reason = ops.missing_arithmetic(dtype, device)
    if reason is not None:
        raise PrecisionError(f"precision {precision} is not to be had: {reason}; use float32")
    return torch.autocast(device.type, dtype, enabled=dtype != torch.float32)
