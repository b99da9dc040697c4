"""How much memory there is, and how much of an image runs in it at a time."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from cmslap.inference.tiling import Tile
from cmslap.models import Network

WORKING_MEMORY = 2**30  # bytes for the network's feature maps on a CPU
_TILE_TO_HALO = 6  # a tile this many halos wide has as much again around it, nearly
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


def pixels_at_once(model: Network, scale: int, halo: int) -> int:
    """How many low-resolution pixels, halos included, should run at a time where the caller does not say.

    No more than half of the available memory holds; nor, on a CPU, whose memory other programs share, more than
    ``WORKING_MEMORY`` holds, unless halos would then outweigh what they surround.
    """
    device = next(model.parameters()).device
    a_pixel = model.bytes_per_pixel(scale)
    pixels = min(available_memory(device) // 2 // a_pixel, _LARGEST_TENSOR // model.largest_map(scale))
    if device.type == "cuda":
        return pixels
    return min(pixels, max(WORKING_MEMORY // a_pixel, ((_TILE_TO_HALO + 2) * halo) ** 2))


def working_memory(model: Network, scale: int, tiles: list[Tile]) -> int:
    """Bytes of main memory that the largest of ``tiles`` takes in the network; on a GPU none."""
    if next(model.parameters()).device.type != "cpu":
        return 0
    largest = max((bottom - top) * (right - left) for _, _, (top, bottom), (left, right) in tiles)
    return model.bytes_per_pixel(scale) * largest
