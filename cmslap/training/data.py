"""Training images: decoded once into one tensor, cropped and augmented in batches of torch operations.

Luma, or RGB for a network of that, is kept as int16 in units of 1/32767: no colour conversion in the step, and a
rounding of at most 1.6e-5 where a grey level of the source file is 3.9e-3.

The batch of a step is a pure function of (seed, step). So a resumed run draws what the killed one would have
drawn, and every process of a distributed run can compute the whole draw and take its share.
"""

import contextlib
import sys
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from cmslap.errors import UserError
from cmslap.imaging import find_images, imresize, read_planes, split_colour
from cmslap.models import Network
from cmslap.training.config import DataConfig

UNIT = 32767  # int16 value of 1.0
RESIZE_FACTORS = 16  # so many, evenly spread: each has its own table of bicubic taps


class DataError(UserError, ValueError):
    """A folder or image that training cannot use."""


def _stored(path: Path, channels: int) -> Tensor:  # [channels, H, W] int16
    return (split_colour(read_planes(path), channels)[0] * UNIT).round().to(torch.int16)


def _sent(array: np.ndarray, device: torch.device) -> Tensor:
    """``array`` on ``device``, without waiting for it where that is a GPU."""
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


@dataclass
class ScaleBatch:
    """What one scale trains on in one step."""

    scale: int
    count: int  # images of this scale over all processes
    low: Tensor  # [n, C, P / scale, P / scale], not quantised
    targets: list[Tensor]  # one for each image the network returns, the last of them [n, C, P, P]


class TrainingImages:
    """Decoded images of at least ``patch`` pixels a side, in one tensor on ``device``, in the ``network``'s colours.

    Smaller ones are left out with a warning that names them. Raises :class:`DataError` where none is left.
    """

    def __init__(
        self, config: DataConfig, patch: int, network: Network, device: torch.device, announce: bool = True
    ) -> None:
        self.config, self.patch, self.network, self.device = config, patch, network, device
        paths = [path for folder in config.train for path in find_images(folder, recursive=True)]
        with ThreadPoolExecutor() as pool:
            decoded = pool.map(partial(_stored, channels=network.image_channels), paths)
            images = list(tqdm(decoded, "decoding", len(paths), unit="image", disable=not announce, leave=False))
        small = [path for path, image in zip(paths, images, strict=True) if _shorter(image) < patch]
        if small and announce:
            names = ", ".join(map(str, small[:10])) + (", ..." if len(small) > 10 else "")
            tqdm.write(f"warning: {len(small)} image(s) smaller than the {patch}-pixel patch: {names}", sys.stderr)
        images = sorted((image for image in images if _shorter(image) >= patch), key=_shorter)
        if not images:
            raise DataError(f"no image of at least {patch}x{patch} pixels, the patch, in {', '.join(config.train)}")
        self.height, self.width = np.array([image.shape[1:] for image in images]).T
        ends = np.cumsum(network.image_channels * self.height * self.width)
        self.start = np.concatenate([[0], ends[:-1]])
        pixels = torch.empty(ends[-1], dtype=torch.int16)
        for start, end in zip(self.start[::-1], ends[::-1], strict=True):
            pixels[start:end] = images.pop().flatten()  # popped, so that memory holds the images once and not twice
        self.fingerprint = zlib.crc32(pixels.numpy().data)  # tells a resumed run whether these are the same images
        self.pixels = pixels.to(device)
        low, high = config.resize
        sides = np.rint(patch / np.linspace(low, high, RESIZE_FACTORS)).astype(int)
        self.sides = np.minimum(sides, min(self.height[-1], self.width[-1]))  # of the crops that become patches
        self.matrices: dict[tuple[int, int], Tensor] = {}  # [size, side] for (side, size)

    def __len__(self) -> int:
        return len(self.start)

    def crops(self, count: int, side: int, random: np.random.Generator, part: slice) -> Tensor:  # [n, C, side, side]
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
        plane = self.height[image] * self.width[image]
        plan = np.stack([start, plane, np.where(down, -row, row), np.where(right, -column, column)])[:, part]
        first, plane_step, row_step, column_step = _sent(plan, self.device)[:, :, None, None, None]
        channel = torch.arange(self.network.image_channels, device=self.device)[:, None, None]
        index = torch.arange(side, device=self.device)
        return self.pixels[first + plane_step * channel + row_step * index[:, None] + column_step * index]

    def batch(self, step: int, seed: int, counts: dict[int, int], rank: int = 0, world: int = 1) -> list[ScaleBatch]:
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

    def _scale_batch(self, scale: int, count: int, crops: Tensor) -> ScaleBatch:  # crops [n, C, side, side] int16
        high = crops.float() / UNIT
        if high.shape[-1] != self.patch:
            high = self._resize(high, self.patch).clamp_(0, 1)
        sizes = [self.patch // scale * times for times in (1, *self.network.output_scales(scale)[:-1])]
        low, *targets = [self._resize(high, size) for size in sizes] + [high]
        return ScaleBatch(scale, count, low, targets)

    def _resize(self, x: Tensor, size: int) -> Tensor:  # [n, C, side, side] -> [n, C, size, size]
        """``imresize`` as two products with a matrix: two kernels on a GPU where the taps one by one take a hundred."""
        side = x.shape[-1]
        if (side, size) not in self.matrices:
            matrix = imresize(torch.eye(side, dtype=torch.float64), size=(size, side))
            self.matrices[side, size] = matrix.to(self.device, torch.float32)
        matrix = self.matrices[side, size]
        return matrix @ x @ matrix.T


def _shorter(image: Tensor) -> int:
    return min(image.shape[1:])


class DataClock:
    """Time spent making batches: on the host's clock, on CUDA on the device's own, without waiting for it."""

    def __init__(self, device: torch.device) -> None:
        self.cuda = device.type == "cuda"
        self.spans: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []
        self.seconds = 0.0

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        if self.cuda:
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            yield
            end.record()
            self.spans.append((begin, end))
        else:
            begin = time.perf_counter()
            yield
            self.seconds += time.perf_counter() - begin

    def take(self) -> float:
        """Seconds since the last call."""
        if self.spans:
            self.spans[-1][1].synchronize()
            self.seconds += sum(begin.elapsed_time(end) for begin, end in self.spans) / 1000
            self.spans.clear()
        seconds, self.seconds = self.seconds, 0.0
        return seconds
