"""Videos out: frames are compressed in parts of their own, and the parts joined with sound and subtitles of the source.

A part is a NUT file, which takes any codec and time stamp, and appears whole or not at all. So what was killed goes
on with the part it was at, whatever the container that comes out in the end.
"""

import heapq
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.codec.context import Flags
from tqdm import tqdm

from cmslap.files import replacing
from cmslap.video.frames import Frame, to_av
from cmslap.video.reading import Properties, VideoError, VideoReader, naming

os.environ.setdefault("SVT_LOG", "1")  # errors only, where SVT-AV1 would print its settings
CODECS = {  # as --codec names them -> FFmpeg's encoder, its usual constant quality, its option for quiet
    "h264": ("libx264", 18, {}),
    "hevc": ("libx265", 20, {"x265-params": "log-level=error"}),
    "av1": ("libsvtav1", 25, {}),
}
_UNSHIFTED = {"avoid_negative_ts": "disabled"}  # of packets that are decoded before time 0
_PRESETS = ("ultrafast", "superfast", "veryfast", "faster", "fast", "medium", "slow", "slower", "veryslow", "placebo")
_PRESETS_OF_AV1 = tuple(map(str, range(14)))
CONTAINERS = (".mp4", ".m4v", ".mov", ".mkv", ".webm")


@dataclass(frozen=True)
class Encoding:
    """How frames are compressed: at a constant quality, or at a bit rate on average."""

    codec: str = "h264"
    quality: int | None = None  # CRF; None is the codec's usual one
    bitrate: int | None = None  # bits a second, instead of a quality
    preset: str | None = None  # the encoder's; None is its default

    def add_stream(self, container: av.container.OutputContainer, like: Properties) -> av.VideoStream:
        """A stream for frames of ``like``."""
        encoder, quality, options = CODECS[self.codec]
        options = dict(options)
        if self.preset is not None:
            options["preset"] = self.preset
        if self.bitrate is None:
            options["crf"] = str(quality if self.quality is None else self.quality)
        stream = container.add_stream(encoder, like.rate, options=options)
        coder = stream.codec_context
        coder.bit_rate = self.bitrate or 0
        coder.flags |= Flags.global_header  # containers such as MP4 have the parameter sets once, in front
        coder.width, coder.height, coder.time_base = like.width, like.height, like.time_base
        coder.pix_fmt = encodable(like.format, self.codec)
        coder.color_range, coder.colorspace, coder.color_primaries, coder.color_trc = like.color
        if like.aspect is not None:
            coder.sample_aspect_ratio = like.aspect
        return stream


def encodable(form: str, codec: str) -> str:
    """The format nearest to ``form`` that the codec takes; chroma becomes half the size where it has no other."""
    formats = {known.name for known in av.Codec(CODECS[codec][0], "w").video_formats}
    deep = form.endswith("le")
    options = (form, form.replace("12le", "10le"), "yuv420p10le" if deep else "yuv420p")
    return next(name for name in options if name in formats)


def check(path: str | os.PathLike[str], codec: str, preset: str | None = None) -> None:
    """Raise :class:`VideoError` unless ``path`` is named as a container of ``codec``, and that has the ``preset``."""
    presets = _PRESETS_OF_AV1 if codec == "av1" else _PRESETS
    if preset is not None and preset not in presets:
        raise VideoError(f"--preset of {codec} must be one of {', '.join(presets)}, got {preset}")
    suffix = Path(path).suffix.lower()
    if suffix not in CONTAINERS or (suffix == ".webm" and codec != "av1"):
        accepted = "webm holds --codec av1 alone" if suffix == ".webm" else f"name it {', '.join(CONTAINERS)}"
        raise VideoError(f"{path}: not a container to write; {accepted}")


def write_part(frames: Iterable[Frame], path: Path, encoding: Encoding, like: Properties) -> int:
    """Compress ``frames`` into a part, which appears when it is whole; how many there were."""
    count = 0
    with ExitStack() as stack:
        stack.enter_context(naming(path, "cannot be written"))
        temporary = stack.enter_context(replacing(path))
        container = stack.enter_context(av.open(str(temporary), "w", format="nut", options=_UNSHIFTED))
        stream = encoding.add_stream(container, like)
        for frame in frames:
            container.mux(stream.encode(_to_video_frame(frame, stream, like)))
            count += 1
        container.mux(stream.encode(None))
    return count


def _to_video_frame(frame: Frame, stream: av.VideoStream, like: Properties) -> av.VideoFrame:
    image = to_av(frame)
    if image.format.name != stream.codec_context.pix_fmt:
        image = image.reformat(format=stream.codec_context.pix_fmt)
    image.color_range, image.colorspace, image.color_primaries, image.color_trc = like.color
    image.pts, image.duration, image.time_base = frame.pts, frame.duration, like.time_base
    return image


def join(parts: Sequence[Path], source: VideoReader, path: str | os.PathLike[str]) -> None:
    """Write the parts one after the other, with the sound, subtitles, chapters and metadata of ``source``.

    ``path`` appears when it is whole. A stream that its container cannot hold is left out with a warning.
    """
    suffix = Path(path).suffix.lower()
    form = {".mkv": "matroska", ".m4v": "mp4"}.get(suffix, suffix[1:])
    with ExitStack() as stack:
        stack.enter_context(naming(path, "cannot be written"))
        temporary = stack.enter_context(replacing(path))
        out = stack.enter_context(
            av.open(str(temporary), "w", format=form, options=_options(form, source.properties.time_base))
        )
        first = stack.enter_context(av.open(str(parts[0])))
        video = out.add_stream_from_template(first.streams.video[0], opaque=True)
        video.time_base = source.properties.time_base
        if source.properties.display_matrix is not None:
            video.set_display_matrix(source.properties.display_matrix)
        out.metadata.update(source.container.metadata)
        copies = _copied_streams(source, out)
        out.set_chapters(source.container.chapters())
        packets = heapq.merge(_video_packets(parts, video), _other_packets(source, copies), key=_time)
        for packet in packets:
            out.mux_one(packet)


def _options(form: str, time_base: Fraction) -> dict[str, str]:
    """An MP4 whose index stands first can be shown while it arrives; its own unit of time is to hold the video's."""
    if form not in ("mp4", "mov"):
        return {}
    return {"movflags": "+faststart", "movie_timescale": str(min(time_base.denominator, 2**31 - 1))}


def _copied_streams(source: VideoReader, out: av.container.OutputContainer) -> dict[int, av.stream.Stream]:
    """A stream of ``out`` for each that ``source`` has beside its video and ``out`` can hold, by its index."""
    copies = {}
    for stream in source.others:
        name = stream.codec_context.name if stream.codec_context is not None else "unknown"
        if name in out.supported_codecs:
            copies[stream.index] = copy = out.add_stream_from_template(stream, opaque=True)
            copy.metadata.update(stream.metadata)
            copy.disposition = stream.disposition
        else:
            _warn(f"{source.path}: its {stream.type} ({name}) does not fit {out.format.name}; .mkv holds most kinds")
    for stream in source.left_out:
        _warn(f"{source.path}: its stream {stream.index} ({stream.type}) is left out")
    return copies


def _warn(message: str) -> None:
    tqdm.write(f"warning: {message}", file=sys.stderr)


def _video_packets(parts: Sequence[Path], stream: av.VideoStream) -> Iterator[av.Packet]:
    """The packets of all parts, with the decoding times that NUT files do not keep."""
    times = _decoding_times([packet.pts for packet in packets(parts)])
    for packet, time in zip(packets(parts), times, strict=True):
        packet.dts, packet.stream = time, stream
        yield packet


def packets(parts: Sequence[Path]) -> Iterator[av.Packet]:
    """The compressed frames of files, in decoding order."""
    for part in parts:
        with av.open(str(part)) as container:
            for packet in container.demux(container.streams.video[0]):
                if packet.size:
                    yield packet


def _decoding_times(shown: list[int]) -> list[int]:
    """When packets in decoding order, each ``shown`` at a time, are decoded: ascending, and not after it is shown."""
    order = np.argsort(shown, kind="stable")
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    delay = int(np.max(np.arange(len(order)) - rank))  # frames the encoder puts before one that is shown first
    ascending = np.asarray(shown)[order]
    step = int(ascending[-1] - ascending[0]) // max(1, len(order) - 1) or 1
    before = ascending[0] - step * np.arange(delay, 0, -1)
    return np.concatenate([before, ascending])[: len(order)].tolist()


def _other_packets(source: VideoReader, copies: dict[int, av.stream.Stream]) -> Iterator[av.Packet]:
    for packet in source.packets():
        if packet.stream_index in copies:
            packet.stream = copies[packet.stream_index]
            yield packet


def _time(packet: av.Packet) -> float:
    return float(packet.dts * packet.time_base)
