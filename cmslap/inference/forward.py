"""The forward pass over one image: tile by tile, or as the mean over its eight flips and rotations."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from tqdm import tqdm

from cmslap.inference.tiling import Tile
from cmslap.models import Network
from cmslap.precision import inference_autocast

MEMBERS = 8  # of the ensemble


def super_resolve(
    network: Network,
    image: Tensor,  # [image_channels, H, W] in [0, 1]
    factor: int,
    tiles: list[Tile],
    *,
    precision: str = "float32",
    **options: bool,  # ensemble, progress
) -> Tensor:  # [image_channels, factor H, factor W], float32 on the CPU, not clamped
    """Run ``network`` on one image in its own colours, tile by tile."""
    autocast = inference_autocast(precision, next(network.parameters()).device)
    return torch.cat(list(super_resolve_rows(network, image, factor, tiles, autocast=autocast, **options)), dim=-2)


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
    """:func:`super_resolve`, a row of tiles after the other."""
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
                columns = _within(tile.crop_columns, tile.columns, factor)
                result[..., _within((0, width), tile.columns, factor)] = larger[
                    :, _within(tile.crop_rows, rows, factor), columns
                ]
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
