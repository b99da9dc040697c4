"""Running a network in tiles, with the same result as in one piece.

A tile is cut out with a halo as wide as the receptive field, so the zero padding at a cut never reaches the pixels
that are kept. At the image's own border there is no halo: there the padding is what the whole image gets too. How
large tiles are follows from how much memory there is.
"""

from __future__ import annotations

import os
from math import ceil
from pathlib import Path
from typing import NamedTuple

import torch

from cmslap.models import Network

WORKING_MEMORY = 2**30  # bytes for the network's feature maps on a CPU
_SMALLEST_TILE = 32  # LR pixels: below, nearly all the work is halo
_TILE_TO_HALO = 6  # a tile this many halos wide has as much again around it, nearly
_UNKNOWN = 2 * 2**30  # bytes assumed where the system does not say
_LARGEST_TENSOR = 2**31 - 1  # elements; convolution libraries index with 32 bits


class Tile(NamedTuple):
    """Rows and columns of the low-resolution image: the part to keep, and the part to run."""

    rows: tuple[int, int]
    columns: tuple[int, int]
    crop_rows: tuple[int, int]
    crop_columns: tuple[int, int]


def divide(
    network: Network,
    factor: int,
    size: tuple[int, int],  # height, width
    tile: int | None = None,
) -> list[Tile]:
    """The tiles the network runs in, at most ``tile`` low-resolution pixels a side: 0 is one, None as memory has it."""
    halo = network.receptive_field_radius(factor)
    if tile is None:
        tile = fitting_tile(*size, halo, pixels_at_once(network, factor, halo))
    return tiles(*size, tile, halo)


def tiles(height: int, width: int, size: int, halo: int) -> list[Tile]:
    """Cover ``height`` × ``width`` with tiles of at most ``size`` × ``size``, evenly divided; 0 is a single tile."""
    return [
        Tile(rows, columns, crop_rows, crop_columns)
        for rows, crop_rows in _spans(height, size, halo)
        for columns, crop_columns in _spans(width, size, halo)
    ]


def _spans(length: int, size: int, halo: int) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    step = ceil(length / ceil(length / size)) if size else length
    starts = range(0, length, step)
    spans = [(start, min(start + step, length)) for start in starts]
    return [((start, stop), (max(start - halo, 0), min(stop + halo, length))) for start, stop in spans]


def fitting_tile(height: int, width: int, halo: int, pixels: int) -> int:
    """The largest tile for which at most ``pixels`` low-resolution pixels run at a time, halos included.

    It divides the longer side evenly; the longer side itself is one tile for all. Not below 32, where halos are
    nearly all the work, however few ``pixels`` are.
    """
    longer = max(height, width)
    for parts in range(1, longer // _SMALLEST_TILE + 1):
        size = ceil(longer / parts)
        if _widest_crop(height, size, halo) * _widest_crop(width, size, halo) <= pixels:
            return size
    return min(longer, _SMALLEST_TILE)


def _widest_crop(length: int, size: int, halo: int) -> int:
    """Of the spans ``length`` is divided into: the outer ones have a halo on one side only."""
    parts = ceil(length / size)
    return min(length, ceil(length / parts) + min(parts - 1, 2) * halo)


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
