"""Which device to run on."""

from __future__ import annotations

import torch

from cmslap.errors import UserError


class DeviceError(UserError, ValueError):
    """A device that does not exist here."""


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
