"""How much memory there is, and how much of it a network takes."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch import nn

_UNKNOWN = 2 * 2**30  # bytes assumed where the system does not say
_LARGEST_TENSOR = 2**31 - 1  # elements; convolution libraries index with 32 bits


def available_memory(device: torch.device) -> int:
    """Bytes that can be allocated on ``device``, within the limit of the container where there is one."""
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + cached
    return min(_available_to_system(), _container_limit())


def _available_to_system() -> int:
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass  # not Linux
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    except (AttributeError, ValueError, OSError):
        return _UNKNOWN


def _container_limit() -> int:
    try:
        return int(Path("/sys/fs/cgroup/memory.max").read_text())
    except (OSError, ValueError):  # no cgroup, or "max"
        return 2**63 - 1


def bytes_per_pixel(model: nn.Module, scale: int) -> int:
    """Peak bytes a low-resolution pixel takes in float32: six feature maps of the output's size.

    They are the last upsampling's output, uncropped, cropped and in the layout conv_res reads, its input, and what the
    libraries put aside. (Plain PyTorch operations were measured to take 3.5 to 5; fused ones take fewer.)
    """
    return 6 * 4 * model.channels * scale * scale


def largest_run(model: nn.Module, scale: int) -> int:
    """How many low-resolution pixels can run at once with every feature map small enough to index."""
    return _LARGEST_TENSOR // (model.channels * scale * scale)
