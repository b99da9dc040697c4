"""Which precision to compute in: float32, or half of it where the device multiplies such numbers itself."""

from __future__ import annotations

import os

import torch

from cmslap import options
from cmslap.errors import UserError
from cmslap.ops import cpu

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
    reason = None if dtype == torch.float32 else _missing(dtype, device)
    if reason is not None:
        raise PrecisionError(f"precision {precision} is not to be had: {reason}; use float32")
    return torch.autocast(device.type, dtype, enabled=dtype != torch.float32)


def _missing(dtype: torch.dtype, device: torch.device) -> str | None:
    """Why ``device`` does not multiply numbers of 16 bits, or None."""
    if device.type == "cuda":
        native = dtype == torch.float16 or torch.cuda.get_device_capability(device) >= (8, 0)
        return None if native else f"{torch.cuda.get_device_name(device)} has no bfloat16"
    if dtype == torch.float16:
        return "there are no float16 kernels for a CPU"
    if cpu.CPU.missing is not None:
        return cpu.CPU.missing
    if cpu.multiplies_bfloat16():
        return None
    forced = os.environ.get("CMSLAP_ISA")
    return f"CMSLAP_ISA={forced} leaves it out" if forced else "this processor has no AVX512-BF16"
