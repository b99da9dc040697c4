"""Energy a GPU takes, where NVML (the package nvidia-ml-py) is there and the device counts it."""

from __future__ import annotations

import math

import torch

from bench.speed.timing import Implementation, clock_of, seconds_of

LEAST_SECONDS = 1.0  # the counter moves some ten times a second


def joules(call: Implementation, seconds: float, device: torch.device) -> float | None:
    """Of one call, which takes about ``seconds``; None where nothing counts it."""
    try:
        import pynvml
    except ImportError:
        return None
    calls = math.ceil(LEAST_SECONDS / seconds)
    try:
        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(device).uuid}")
        before = pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)  # millijoules
        seconds_of(call, calls, clock_of(device))
        return (pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) - before) / 1e3 / calls
    except pynvml.NVMLError:
        return None
