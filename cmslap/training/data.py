"""Training images: decoded once into one tensor, cropped and augmented in batches of torch operations.

Luma is kept as int16 in units of 1/32767: two bytes a pixel where RGB takes three, no colour conversion in the
step, and a rounding of at most 1.6e-5 where a grey level of the source file is 3.9e-3.

The batch of a step is a pure function of (seed, step). So a resumed run draws what the killed one would have
drawn, and every process of a distributed run can compute the whole draw and take its share.
"""

from __future__ import annotations

import sys
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from cmslap.errors import UserError
from cmslap.imaging.colour import rgb_to_ycbcr
from cmslap.imaging.files import find_images, read_planes
from cmslap.imaging.resize import imresize
from cmslap.training.config import DataConfig

UNIT = 32767  # int16 value of luma 1.0
RESIZE_FACTORS = 16  # so many, evenly spread: each has its own table of bicubic taps


class DataError(UserError, ValueError):
    """A folder or image that training cannot use."""


def read_luma(path: Path) -> Tensor:  # [H, W] float64 in [0, 1]
    """Y of a colour image (ITU-R BT.601, studio range); a gray one as it is stored. Raises as ``read_planes``."""
    planes = read_planes(path)
    return (planes if len(planes) == 1 else rgb_to_ycbcr(planes))[0]


def _stored(path: Path) -> Tensor:  # [H, W] int16
    return (read_luma(path) * UNIT).round().to(torch.int16)


def _sent(array: np.ndarray, device: torch.device) -> Tensor:
    """``array`` on ``device``, without waiting for it where that is a GPU."""
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


@dataclass
class ScaleBatch:
    """What one scale trains on in one step."""

    scale: int
    count: int  # images of this scale over all processes
    low: Tensor  # [n, 1, P / scale, P / scale], not quantised
    targets: list[Tensor]  # 2x, 4x, ..., scale: [n, 1, P 2^l / scale, ...]


class TrainingImages:
    """Decoded images of at least ``patch`` pixels a side, in one tensor on ``device``.

    Smaller ones are left out with a warning that names them. Raises :class:`DataError` where none is left.
    """

    def __init__(self, config: DataConfig, patch: int, device: torch.device, announce: bool = True) -> None:
        self.config, self.patch, self.device = config, patch, device
        paths = [path for folder in config.train for path in find_images(folder, recursive=True)]
        with ThreadPoolExecutor() as pool:
            decoded = pool.map(_stored, paths)
            lumas = list(tqdm(decoded, "decoding", len(paths), unit="image", disable=not announce, leave=False))
        small = [path for path, luma in zip(paths, lumas, strict=True) if min(luma.shape) < patch]
        if small and announce:
            names = ", ".join(map(str, small[:10])) + (", ..." if len(small) > 10 else "")
            tqdm.write(f"warning: {len(small)} image(s) smaller than the {patch}-pixel patch: {names}", sys.stderr)
        lumas = sorted((luma for luma in lumas if min(luma.shape) >= patch), key=lambda luma: min(luma.shape))
        if not lumas:
            raise DataError(f"no image of at least {patch}x{patch} pixels, the patch, in {', '.join(config.train)}")
        self.height, self.width = np.array([luma.shape for luma in lumas]).T
        ends = np.cumsum(self.height * self.width)
        self.start = ends - self.height * self.width
        pixels = torch.empty(ends[-1], dtype=torch.int16)
        for start, end in zip(self.start[::-1], ends[::-1], strict=True):
            pixels[start:end] = lumas.pop().flatten()  # popped, so that memory holds the images once and not twice
        self.fingerprint = zlib.crc32(pixels.numpy().data)  # tells a resumed run whether these are the same images
        self.pixels = pixels.to(device)
        low, high = config.resize
        sides = np.rint(patch / np.linspace(low, high, RESIZE_FACTORS)).astype(int)
        self.sides = np.minimum(sides, min(self.height[-1], self.width[-1]))  # of the crops that become patches
        self.matrices: dict[tuple[int, int], Tensor] = {}  # [size, side] for (side, size)

    def __len__(self) -> int:
        return len(self.start)

    def crops(self, count: int, side: int, random: np.random.Generator, part: slice) -> Tensor:  # [n, side, side]
        """Draw ``count`` square crops, rotated and mirrored, and gather those in ``part`` as int16."""
        small = np.searchsorted(np.minimum(self.height, self.width), side)  # they lie smallest first
        image = random.integers(small, len(self), count)
        top = random.integers(0, self.height[image] - side + 1)
        left = random.integers(0, self.width[image] - side + 1)
        turns = random.integers(0, 4, count) * self.config.rotate
        mirrored = random.integers(0, 2, count).astype(bool) & self.config.flip
        # Turning by 90 degrees is transposing and reversing one axis, by 180 degrees reversing both.
        transposed, down, right = turns % 2 == 1, (turns == 1) | (turns == 2), (turns >= 2) ^ mirrored
        start = self.start[image] + top * self.width[image] + left
        row = np.where(transposed, 1, self.width[image])  # distance in memory to the next row and column of the crop
        column = np.where(transposed, self.width[image], 1)
        start += down * (side - 1) * row + right * (side - 1) * column
        plan = np.stack([start, np.where(down, -row, row), np.where(right, -column, column)])[:, part]
        first, row_step, column_step = _sent(plan, self.device)[:, :, None, None]
        index = torch.arange(side, device=self.device)
        return self.pixels[first + row_step * index[:, None] + column_step * index]

    def batch(
        self,
        step: int,
        seed: int,
        counts: dict[int, int],
        rank: int = 0,
        world: int = 1,
    ) -> list[ScaleBatch]:
        """The images of a step: ``counts[s]`` images for each scale s, of which process ``rank`` gets its share.

        All images of one scale share the step's draw of the resize factor, so that every operation takes them
        as one batch. A scale of which this process gets no image is left out.
        """
        random = np.random.default_rng((seed, step))
        batches = []
        for scale, count in counts.items():
            side = int(random.choice(self.sides))
            part = slice(count * rank // world, count * (rank + 1) // world)
            crops = self.crops(count, side, random, part)
            if len(crops):
                batches.append(self._scale_batch(scale, count, crops))
        return batches

    def _scale_batch(self, scale: int, count: int, crops: Tensor) -> ScaleBatch:  # crops [n, side, side] int16
        high = crops[:, None].float() / UNIT
        if high.shape[-1] != self.patch:
            high = self._resize(high, self.patch).clamp_(0, 1)
        sizes = [self.patch >> level for level in range(scale.bit_length())]  # HR, HR/2, ..., HR/scale
        low, *targets = [self._resize(high, size) for size in reversed(sizes[1:])] + [high]
        return ScaleBatch(scale, count, low, targets)

    def _resize(self, x: Tensor, size: int) -> Tensor:  # [n, 1, side, side] -> [n, 1, size, size]
        """``imresize`` as two products with a matrix: two kernels on a GPU where the taps one by one take a hundred."""
        side = x.shape[-1]
        if (side, size) not in self.matrices:
            matrix = imresize(torch.eye(side, dtype=torch.float64), size=(size, side))
            self.matrices[side, size] = matrix.to(self.device, torch.float32)
        matrix = self.matrices[side, size]
        return matrix @ x @ matrix.T


def split(batch: int, scales: Sequence[int]) -> dict[int, int]:
    """Images a step of each scale: equal shares, what is left over going to the largest scales."""
    share, rest = divmod(batch, len(scales))
    ordered = sorted(scales, reverse=True)
    return {scale: share + (ordered.index(scale) < rest) for scale in scales}
