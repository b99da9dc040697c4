"""Running a network in tiles, with the same result as in one piece.

A tile is cut out with a halo as wide as the receptive field, so the zero padding at a cut never reaches the pixels
that are kept. At the image's own border there is no halo: there the padding is what the whole image gets too. How
large tiles are follows from how much memory there is.
"""

import itertools
import os
import re
from collections.abc import Callable, Iterator
from math import ceil
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from cmslap.models import Network

MEMBERS = 8  # of the self-ensemble
WORKING_MEMORY = 2**30  # bytes for the network's feature maps on a CPU
_SMALLEST_TILE = 32  # LR pixels: below, nearly all the work is halo
_TILE_TO_HALO = 6  # a tile this many halos wide has as much again around it, nearly
_LARGEST_TENSOR = 2**31 - 1  # elements; convolution libraries index with 32 bits


class Tile(NamedTuple):
    """Rows and columns of the low-resolution image: the part to keep, and the part to run."""

    rows: tuple[int, int]
    columns: tuple[int, int]
    crop_rows: tuple[int, int]
    crop_columns: tuple[int, int]


def super_resolve_rows(
    network: Network,
    image: Tensor,  # [image_channels, H, W] in [0, 1]
    factor: int,
    tiles: list[Tile],
    *,
    autocast: torch.autocast,
    ensemble: bool = False,
    progress: bool = False,
) -> Iterator[Tensor]:  # [image_channels, rows, factor W], float32 on the CPU, not clamped
    """Run ``network`` on one image in its own colours; gives the result of one row of tiles after the other.

    ``ensemble`` makes it the mean over the eight flips and rotations; ``progress`` shows a bar.
    """
    weight = next(network.parameters())
    channels, _, width = image.shape
    runs = len(tiles) * (MEMBERS if ensemble else 1)
    with tqdm(total=runs, unit="tile", leave=False, disable=None if progress else True) as bar:

        def run(crop: Tensor) -> Tensor:
            # A strided view is neither memory format, and every feature map would be converted back and forth.
            with torch.inference_mode(), autocast:
                larger = network(crop[None].contiguous(memory_format=torch.channels_last), factor)[-1][0].float()
            bar.update()
            return larger

        for rows, row in itertools.groupby(tiles, key=lambda tile: tile.rows):
            result = torch.empty(channels, factor * (rows[1] - rows[0]), factor * width)
            for tile in row:
                crop = image[:, slice(*tile.crop_rows), slice(*tile.crop_columns)].to(weight)
                larger = self_ensemble(run, crop) if ensemble else run(crop)
                kept = ..., _within(tile.crop_rows, rows, factor), _within(tile.crop_columns, tile.columns, factor)
                result[..., _within((0, width), tile.columns, factor)] = larger[kept]
                del crop, larger  # before the next tile takes its memory
            yield result
            del result


def _within(whole: tuple[int, int], part: tuple[int, int], factor: int) -> slice:
    """Where the low-resolution span ``part`` lies in the enlargement of the span ``whole``."""
    return slice(factor * (part[0] - whole[0]), factor * (part[1] - whole[0]))


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


def pixels_at_once(network: Network, factor: int, halo: int) -> int:
    """How many low-resolution pixels, halos included, should run at a time where the caller does not say.

    No more than half of the available memory holds; nor, on a CPU, whose memory other programs share, more than
    ``WORKING_MEMORY`` holds, unless halos would then outweigh what they surround.
    """
    device = next(network.parameters()).device
    a_pixel = network.bytes_per_pixel(factor)
    pixels = min(available_memory(device) // 2 // a_pixel, _LARGEST_TENSOR // network.largest_map(factor))
    if device.type == "cuda":
        return pixels
    return min(pixels, max(WORKING_MEMORY // a_pixel, ((_TILE_TO_HALO + 2) * halo) ** 2))


def working_memory(network: Network, factor: int, tiles: list[Tile]) -> int:
    """Bytes of main memory that the largest of ``tiles`` takes in the network; on a GPU none."""
    if next(network.parameters()).device.type != "cpu":
        return 0
    largest = max((bottom - top) * (right - left) for _, _, (top, bottom), (left, right) in tiles)
    return network.bytes_per_pixel(factor) * largest


def available_memory(device: torch.device) -> int:
    """Bytes that can be allocated on ``device``, within the limit of the container where there is one."""
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + cached
    system, container = Path("/proc/meminfo"), Path("/sys/fs/cgroup/memory.max")
    found = re.search(r"MemAvailable: *(\d+) kB", system.read_text()) if system.exists() else None
    available = 1024 * int(found[1]) if found else os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    limit = container.read_text().strip() if container.exists() else "max"
    return available if limit == "max" else min(available, int(limit))
