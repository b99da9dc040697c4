"""What networks are adapted on: luma of decoded small frames beside the originals', in a file and not in memory."""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cmslap.files import replacing
from cmslap.video.frames import Frame, bicubic

LARGEST = 4 * 2**30  # bytes of a file; of a longer video, evenly spread frames are kept


@dataclass(frozen=True)
class Shape:
    """What the file's bytes are."""

    height: int  # of a small frame
    width: int
    scale: int
    white: int
    every: int  # the file has frame 0, every, 2 every, ...
    frames: int  # of the video

    @property
    def dtype(self) -> np.dtype:
        return np.dtype("u1") if self.white <= 255 else np.dtype("<u2")

    @property
    def low(self) -> int:
        return self.height * self.width

    @property
    def samples(self) -> int:
        """A small and a large frame."""
        return self.low * (1 + self.scale**2)


class Footage:
    """The frames of ``path`` as tensors."""

    def __init__(self, path: Path) -> None:
        self.shape = shape = Shape(**json.loads(path.with_suffix(".json").read_text(encoding="utf-8")))
        kept = -(-shape.frames // shape.every)
        self.data = np.memmap(path, shape.dtype, "r", shape=(kept, shape.samples))

    @property
    def frames(self) -> int:
        return self.shape.frames

    def kept(self, first: int, last: int) -> np.ndarray:
        """Where the file has frames from ``first`` to before ``last``; if none, the one before them."""
        every = self.shape.every
        places = np.arange(-(-first // every), -(-last // every))
        return places if len(places) else np.array([first // every])

    def low(self, place: int) -> np.ndarray:  # [h, w]
        return self.data[place, : self.shape.low].reshape(self.shape.height, self.shape.width)

    def high(self, place: int) -> np.ndarray:  # [scale h, scale w]
        scale = self.shape.scale
        return self.data[place, self.shape.low :].reshape(scale * self.shape.height, scale * self.shape.width)

    def interpolation_error(self, place: int) -> float:
        """Mean absolute error of bicubic interpolation, in levels."""
        low, high = self.low(place), self.high(place)
        return float(np.abs(bicubic(low, high.shape, self.shape.white).astype(np.int32) - high).mean())

    def crops(
        self,
        places: np.ndarray,
        batch: int,
        side: int,
        random: np.random.Generator,
        shares: np.ndarray | None = None,  # how often each place is drawn, in all 1; None draws all alike
    ) -> tuple[Tensor, Tensor]:  # [batch, 1, side, side], [batch, 1, scale side, scale side], in [0, 1]
        """Square crops at random of frames at random; ``side`` is lowered to the frame's."""
        shape, scale = self.shape, self.shape.scale
        side = min(side, shape.height, shape.width)
        low = np.empty((batch, 1, side, side), np.float32)
        high = np.empty((batch, 1, scale * side, scale * side), np.float32)
        for number in range(batch):
            place = random.choice(places, p=shares)
            top, left = random.integers(0, shape.height - side + 1), random.integers(0, shape.width - side + 1)
            low[number, 0] = self.low(place)[top : top + side, left : left + side]
            top, left, wide = scale * top, scale * left, scale * side
            high[number, 0] = self.high(place)[top : top + wide, left : left + wide]
        return torch.from_numpy(low).div_(shape.white), torch.from_numpy(high).div_(shape.white)


def write(pairs: Iterable[tuple[Frame, Frame]], path: Path, frames: int, scale: int) -> None:
    """Keep luma of small and large frames, all of about ``frames`` or as many as :data:`LARGEST` holds."""
    count, shape = 0, None
    with replacing(path) as temporary, temporary.open("wb") as file:
        for low, high in pairs:
            if shape is None:
                height, width = low.luma.shape
                size = height * width * (1 + scale**2) * low.luma.itemsize
                shape = Shape(height, width, scale, low.white, -(-frames * size // LARGEST) or 1, 0)
            if count % shape.every == 0:
                file.write(np.ascontiguousarray(low.luma).data)
                file.write(np.ascontiguousarray(high.luma).data)
            count += 1
    with replacing(path.with_suffix(".json")) as temporary:
        temporary.write_text(json.dumps({**asdict(shape), "frames": count}), encoding="utf-8")
