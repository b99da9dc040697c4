"""Larger videos: by any network, or by the weights that came with a small one. Decoding, the network and encoding
work at the same time, and what was killed goes on.
"""

import bisect
import itertools
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path

import av
import numpy as np
import torch
from tqdm import tqdm

from cmslap.inference.tiling import divide, super_resolve_rows
from cmslap.inference.upscaling import Planner, run
from cmslap.models import Network
from cmslap.video.cmsw import AdaptedWeights
from cmslap.video.frames import Frame, bicubic, chroma_size, cropped_or_padded, from_av, padded, to_av
from cmslap.video.pipeline import ahead, side_by_side
from cmslap.video.reading import VideoReader
from cmslap.video.work import beside, identity, working_in
from cmslap.video.writing import Encoding, join, write_part

PART = 240  # frames: what a kill costs at most
_EVEN = 2  # a side's divisor: chroma of half the size, as nearly all players have it

Enlarge = Callable[[int, Frame], Frame]  # of the frame's number and the frame


def enlarge_video(
    source: Path, out: Path, enlarge: Enlarge, encoding: Encoding, what: dict[str, object], workers: int | None = 1
) -> int:
    """Write ``out`` with every frame of ``source`` enlarged, :func:`side_by_side`; how many frames there are.

    ``what`` tells this run from others: one that was killed goes on where the same was asked for. Raises
    :class:`VideoError`, and OutputError of ``cmslap.files``.
    """
    work = beside(out)
    with working_in(work, {"source": identity(source), **what, **asdict(encoding)}):
        parts = sorted(work.glob("[0-9]*.nut"))
        with VideoReader(source) as reader:
            begun = PART * len(parts)
            numbered = itertools.islice(enumerate(ahead(reader.frames())), begun, None)
            made = side_by_side(enlarge, numbered, workers)
            bar = tqdm(made, "enlarging", reader.properties.frames, initial=begun, unit="frame", disable=None)
            total = begun + sum(_write_parts(iter(bar), work, len(parts), encoding, reader))
        with VideoReader(source) as reader:
            join(sorted(work.glob("[0-9]*.nut")), reader, out)
    return total


def _write_parts(
    frames: Iterator[Frame], work: Path, done: int, encoding: Encoding, reader: VideoReader
) -> Iterator[int]:
    """Write the frames in parts; yields how many each part has."""
    for number in itertools.count(done):
        first = next(frames, None)
        if first is None:
            return
        height, width = first.luma.shape
        like = replace(reader.properties, height=height, width=width)
        part = itertools.chain([first], itertools.islice(frames, PART - 1))
        yield write_part(part, work / f"{number:06d}.nut", encoding, like)


class ByNetwork:
    """Enlarges frames with a network of any kind: one of luma takes bicubic chroma along, one of RGB sees RGB."""

    def __init__(self, planner: Planner, color: tuple[int, int, int, int]) -> None:
        self.planner, self.color = planner, color

    def __call__(self, number: int, frame: Frame) -> Frame:
        if self.planner.network.image_channels == 3:
            return padded(self._in_rgb(frame), _EVEN)
        plan = self.planner.plan(frame.luma.astype(np.float32) / frame.white)
        luma = run(plan)
        return with_luma(frame, (luma * frame.white).round().astype(frame.luma.dtype))

    def _in_rgb(self, frame: Frame) -> Frame:
        """Through RGB and back by the video's own matrix."""
        image = to_av(frame)
        image.color_range, image.colorspace = self.color[:2]
        rgb = image.reformat(format="rgb24" if frame.white == 255 else "rgb48le").to_ndarray()
        larger = run(self.planner.plan(rgb))
        back = av.VideoFrame.from_ndarray(larger, "rgb24" if frame.white == 255 else "rgb48le")
        unspecified = 2
        matrix = None if self.color[1] == unspecified else self.color[1]
        back = back.reformat(format=frame.format, dst_colorspace=matrix, dst_color_range=self.color[0] or None)
        return from_av(back, frame.pts, frame.duration)


class ByScene:
    """Enlarges the luma of a small video's frames with the network of their scene."""

    def __init__(self, weights: AdaptedWeights, networks: list[Network], autocast: torch.autocast) -> None:
        self.weights, self.networks, self.autocast = weights, networks, autocast

    @torch.inference_mode()
    def __call__(self, number: int, frame: Frame) -> Frame:
        network = self.networks[bisect.bisect(self.weights.scenes, number) - 1]
        image = torch.from_numpy(frame.luma.astype(np.float32))[None] / frame.white
        scale = network.scales[-1]
        parts = divide(network, scale, frame.luma.shape)
        larger = torch.cat([*super_resolve_rows(network, image, scale, parts, autocast=self.autocast)], dim=-2)[0]
        luma = (larger.clamp_(0, 1) * frame.white).round().numpy().astype(frame.luma.dtype)
        width, height = (-(-side // _EVEN) * _EVEN for side in self.weights.size)
        return cropped_or_padded(with_luma(frame, luma), height, width)


def with_luma(frame: Frame, luma: np.ndarray) -> Frame:
    """``frame`` at the size of ``luma``, made even; its chroma by bicubic interpolation."""
    size = chroma_size(frame.format, *luma.shape)
    chroma = [bicubic(plane, size, frame.white) for plane in frame.planes[1:]]
    return padded(frame.with_planes([luma, *chroma]), _EVEN)
