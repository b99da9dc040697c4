"""Where to compute, and how exactly: the device, and float32 or half of it where the device multiplies such numbers."""

import torch

from cmslap import ops, options
from cmslap.errors import UserError

# As --precision and training's `precision` name them.
PRECISIONS = {name: getattr(torch, dtype) for name, dtype in options.PRECISIONS.items()}


class DeviceError(UserError, ValueError):
    """A device that does not exist here."""


class PrecisionError(UserError, ValueError):
    """A precision that does not exist, or that the device does not have."""


def find_device(name: str | torch.device) -> torch.device:
    """The device called ``name``; "auto" is the GPU if there is one. Raises :class:`DeviceError`."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise DeviceError(f"device must be auto, cpu, cuda or one like cuda:1, got {str(name)!r}")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise DeviceError(f"device {device} does not exist here: {torch.cuda.device_count()} CUDA GPUs found")
    return device


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
