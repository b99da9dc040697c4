"""Videos in: frames in the order they are shown, and the packets of everything else, in one stream."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.stream import Disposition

from cmslap.errors import UserError
from cmslap.video.frames import Frame, from_av, planar


class VideoError(UserError, OSError):
    """A video that cannot be read, written or represented; the message names it."""


@dataclass(frozen=True)
class Properties:
    """What a video's frames do not say one by one."""

    width: int  # pixels
    height: int
    format: str  # of :class:`Frame`
    rate: Fraction  # frames a second, on average
    time_base: Fraction  # seconds, the unit of time stamps
    aspect: Fraction | None  # width of a pixel to its height
    color: tuple[int, int, int, int]  # range, matrix, primaries, transfer, as FFmpeg numbers them
    display_matrix: list[int] | None  # how players turn it
    frames: int  # about: as the file or its duration says; 0 where neither does

    @property
    def white(self) -> int:
        return 2 ** av.VideoFormat(self.format).components[0].bits - 1


class VideoReader:
    """The first video of a file, and what goes with it.

    Take either the frames or the packets of audio and subtitles, once. Only what is being worked on is in memory.
    Raises :class:`VideoError`, which names the file, also while iterating.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.container = _open(self.path)
        try:
            self.video = _video(self.container, self.path)
            self.others = [stream for stream in self.container.streams if stream.type in ("audio", "subtitle")]
            self.left_out = [
                stream for stream in self.container.streams if stream is not self.video and stream not in self.others
            ]
            self._frames = self._decode()
            self._first = next(self._frames, None)
            if self._first is None:
                raise VideoError(f"{self.path}: it has no frames")
        except BaseException:
            self.container.close()
            raise

    def __enter__(self) -> VideoReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.container.close()

    def frames(self) -> Iterator[Frame]:
        yield self._first
        yield from self._frames

    def packets(self) -> Iterator[av.Packet]:
        with _open(self.path) as container, naming(self.path):
            wanted = [container.streams[stream.index] for stream in self.others]
            for packet in container.demux(wanted) if wanted else ():
                if packet.dts is not None:  # else it is the empty one that ends a stream
                    yield packet

    def _decode(self) -> Iterator[Frame]:
        self.properties, step, last = None, 1, None
        with naming(self.path):
            for decoded in self.container.decode(self.video):
                if self.properties is None:
                    self.properties = _properties(self.video, decoded)
                    step = max(1, round(1 / (self.properties.rate * self.properties.time_base)))
                self._check(decoded)
                pts = decoded.pts if decoded.pts is not None else 0 if last is None else last + step
                last = pts if last is None or pts > last else last + 1
                yield from_av(decoded, last, decoded.duration or step)

    def _check(self, decoded: av.VideoFrame) -> None:
        known = self.properties
        if (decoded.width, decoded.height) != (known.width, known.height) or planar(
            decoded.format.name
        ) != known.format:
            raise VideoError(f"{self.path}: its frames change their size or format, which its copy could not")


@contextmanager
def naming(path: str | os.PathLike[str], wrong: str = "not a video to read") -> Iterator[None]:
    """What FFmpeg says is ``wrong``, with the file's name."""
    try:
        yield
    except av.FFmpegError as error:
        raise VideoError(f"{path}: {wrong} ({error.strerror or error})") from error


def _open(path: Path) -> av.container.InputContainer:
    if not path.is_file():
        raise VideoError(f"{path}: no such file")
    with naming(path):  # what a file refers to is not opened: it may be hostile
        return av.open(
            str(path), options={"protocol_whitelist": "file", "enable_drefs": "0"}, metadata_errors="replace"
        )


def _video(container: av.container.InputContainer, path: Path) -> av.VideoStream:
    streams = [stream for stream in container.streams.video if not stream.disposition & Disposition.attached_pic]
    if not streams:
        raise VideoError(f"{path}: it has no video")
    if streams[0].codec_context is None:
        raise VideoError(f"{path}: its video is of a kind that cannot be decoded")
    streams[0].thread_type = "AUTO"
    size = path.stat().st_size
    if any(entry.pos + entry.size > size for entry in streams[0].index_entries):
        raise VideoError(f"{path}: it is cut off; its index names frames beyond its end")
    return streams[0]


def _properties(stream: av.VideoStream, first: av.VideoFrame) -> Properties:
    rate = stream.average_rate or stream.guessed_rate or Fraction(25)
    matrix = first.side_data.get("DISPLAYMATRIX")
    seconds = stream.duration * stream.time_base if stream.duration else (stream.container.duration or 0) / 10**6
    return Properties(
        width=first.width,
        height=first.height,
        format=planar(first.format.name),
        rate=rate,
        time_base=stream.time_base,
        aspect=stream.sample_aspect_ratio,
        color=tuple(map(int, (first.color_range, first.colorspace, first.color_primaries, first.color_trc))),
        display_matrix=np.frombuffer(matrix, "<i4").tolist() if matrix is not None else None,
        frames=stream.frames or round(seconds * rate),
    )


def fingerprint(path: str | os.PathLike[str]) -> str:
    """What tells a video from others whatever file it is in: a digest of its compressed frames."""
    digest = hashlib.sha256()
    container = _open(Path(path))
    with container, naming(path):
        for packet in container.demux(_video(container, Path(path))):
            digest.update(bytes(packet))
    return digest.hexdigest()[:32]
