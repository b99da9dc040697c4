"""One frame: its planes as arrays, and how PyAV's frames become those and come from them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

import av
import numpy as np
import torch

from cmslap.imaging import imresize


@dataclass(frozen=True)
class Frame:
    """A frame of planar YUV, [H, W] of uint8, or uint16 where it has more bits; the chroma planes may be smaller."""

    planes: tuple[np.ndarray, ...]  # Y, Cb, Cr
    format: str  # as FFmpeg calls it: yuv420p, yuv420p10le, ...
    pts: int  # in the stream's time base
    duration: int

    @property
    def white(self) -> int:
        """The largest sample value."""
        return 2 ** av.VideoFormat(self.format).components[0].bits - 1

    @property
    def luma(self) -> np.ndarray:  # [H, W]
        return self.planes[0]

    def with_planes(self, planes: list[np.ndarray]) -> Frame:
        return replace(self, planes=tuple(planes))


@lru_cache
def planar(name: str) -> str:
    """The planar YUV format that holds what ``name`` does: itself, if it is one; else with chroma of half the size."""
    form = av.VideoFormat(name)
    bits = max(component.bits for component in form.components)
    served = bits == 8 or (bits in (10, 12) and name.endswith("le"))
    if name.startswith("yuv") and form.is_planar and len(form.components) == 3 and served:
        return name
    return "yuv420p" if bits <= 8 else "yuv420p10le"


def from_av(source: av.VideoFrame, pts: int, duration: int) -> Frame:
    """The frame's samples; other layouts than planar YUV are converted, with chroma of half the size."""
    form = planar(source.format.name)
    picture = source if source.format.name == form else source.reformat(format=form)
    return Frame(tuple(_samples(plane, picture).copy() for plane in picture.planes), form, pts, duration)


def to_av(frame: Frame) -> av.VideoFrame:
    height, width = frame.luma.shape
    picture = av.VideoFrame(width, height, frame.format)
    for plane, samples in zip(picture.planes, frame.planes, strict=True):
        _samples(plane, picture)[:] = samples
    return picture


def _samples(plane: av.video.plane.VideoPlane, picture: av.VideoFrame) -> np.ndarray:  # [h, w], a view
    dtype = np.uint8 if max(component.bits for component in picture.format.components) <= 8 else np.dtype("<u2")
    rows = np.frombuffer(plane, dtype).reshape(-1, plane.line_size // np.dtype(dtype).itemsize)
    return rows[: plane.height, : plane.width]


def chroma_size(form: str, height: int, width: int) -> tuple[int, int]:
    """Height and width of the chroma planes beside luma of ``height`` × ``width``."""
    picture = av.VideoFormat(form, width, height)
    return picture.chroma_height(height), picture.chroma_width(width)


def padded(frame: Frame, multiple: int) -> Frame:
    """With sides that are multiples of ``multiple``, the last rows and columns repeated; as video coders need them."""
    height, width = (-(-side // multiple) * multiple for side in frame.luma.shape)
    return cropped_or_padded(frame, height, width)


def cropped_or_padded(frame: Frame, height: int, width: int) -> Frame:
    """The upper left part of ``height`` × ``width``; where the frame ends before, its last rows and columns repeat."""
    if frame.luma.shape == (height, width):
        return frame
    small = chroma_size(frame.format, height, width)
    sizes = [(height, width), small, small]
    return frame.with_planes([_fit(plane, *size) for plane, size in zip(frame.planes, sizes, strict=True)])


def _fit(plane: np.ndarray, height: int, width: int) -> np.ndarray:
    rows = np.minimum(np.arange(height), plane.shape[0] - 1)
    columns = np.minimum(np.arange(width), plane.shape[1] - 1)
    return plane[rows[:, None], columns]


def bicubic(
    plane: np.ndarray,  # [H, W] of uint8 or uint16
    size: tuple[int, int],  # height, width
    white: int,
) -> np.ndarray:  # [*size], rounded
    """MATLAB's bicubic resampling, antialiased where it shrinks."""
    if plane.shape == size:
        return plane
    resized = imresize(torch.from_numpy(plane.astype(np.float32)), size=size)
    return resized.round_().clamp_(0, white).numpy().astype(plane.dtype)


def area(plane: np.ndarray) -> np.ndarray:  # [2H, 2W] -> [H, W]
    """Means of 2×2 samples, rounded."""
    total = sum(plane[row::2, column::2].astype(np.uint32) for row in (0, 1) for column in (0, 1))
    return ((total + 2) // 4).astype(plane.dtype)


def halved(frame: Frame, method: str) -> Frame:
    """At half the size; ``method`` is ``area`` or ``bicubic``. The sides must be multiples of 4, or of 2 in 4:4:4."""

    def half(plane: np.ndarray) -> np.ndarray:
        if method == "area":
            return area(plane)
        return bicubic(plane, (plane.shape[0] // 2, plane.shape[1] // 2), frame.white)

    return frame.with_planes([half(plane) for plane in frame.planes])
