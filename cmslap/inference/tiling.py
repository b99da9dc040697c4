"""Running a network in tiles, with the same result as in one piece.

A tile is cut out with a halo as wide as the receptive field, so the zero padding at a cut never reaches the pixels
that are kept. At the image's own border there is no halo: there the padding is what the whole image gets too.
"""

from __future__ import annotations

from math import ceil
from typing import NamedTuple

_SMALLEST_TILE = 32  # LR pixels: below, nearly all the work is halo


class Tile(NamedTuple):
    """Rows and columns of the low-resolution image: the part to keep, and the part to run."""

    rows: tuple[int, int]
    columns: tuple[int, int]
    crop_rows: tuple[int, int]
    crop_columns: tuple[int, int]


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
