"""Tiny videos, made by PyAV."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

av = pytest.importorskip("av", reason="PyAV is not installed: pip install 'cmslap[video]'")
pytest.importorskip("constriction", reason="constriction is not installed: pip install 'cmslap[video]'")


def picture(number: int, height: int, width: int) -> np.ndarray:  # [height, width, 3]
    """A picture of blocks that moves with ``number``, and jumps back after 40."""
    number %= 40
    random = np.random.default_rng(1)
    blocks = np.kron(random.integers(40, 216, (height // 4 + 20, width // 4 + 20, 3)), np.ones((4, 4, 1)))
    return np.ascontiguousarray(blocks[number : number + height, 2 * number : 2 * number + width]).astype(np.uint8)


@pytest.fixture
def clip(tmp_path):
    """Writes a video and returns its path."""

    def write(
        name="in.mp4", frames=6, size=(48, 32), times=None, form="yuv420p", codec="libx264", sound=False, words=False,
        turned=0, color=(1, 1, 1, 1),
    ):  # fmt: skip
        path = tmp_path / name
        with av.open(str(path), "w") as out:
            video = out.add_stream(codec, 25, options={"crf": "4", "preset": "ultrafast"})
            coder = video.codec_context
            coder.width, coder.height, coder.pix_fmt, coder.time_base = *size, form, Fraction(1, 600)
            coder.color_range, coder.colorspace, coder.color_primaries, coder.color_trc = color
            if turned:
                video.set_display_rotation(turned)
            audio = out.add_stream("aac", 44100) if sound else None
            text = subtitles(out, tmp_path) if words else []
            for number, time in enumerate(times if times is not None else range(0, 24 * frames, 24)):
                frame = av.VideoFrame.from_ndarray(picture(number, size[1], size[0]), "rgb24")
                frame = frame.reformat(format=form, dst_colorspace=1, dst_color_range=1)
                frame.pts, frame.time_base = time, Fraction(1, 600)
                out.mux(video.encode(frame))
            out.start_encoding()  # writes the header, also of a video without frames
            out.mux(video.encode(None))
            if audio is not None:
                add_sound(out, audio)
            for packet in text:
                out.mux_one(packet)
        return path

    return write


def subtitles(out, folder):
    """A line of text from 0 to 0.1 seconds, as a stream of ``out``: its packets."""
    (folder / "text.srt").write_text("1\n00:00:00,000 --> 00:00:00,100\nhello\n\n")
    with av.open(str(folder / "text.srt")) as source:
        stream = out.add_stream_from_template(source.streams.subtitles[0], opaque=True)
        packets = [packet for packet in source.demux() if packet.size]
    for packet in packets:
        packet.stream = stream
    return packets


def add_sound(out, audio):
    random = np.random.default_rng(2)
    for number in range(12):
        samples = random.standard_normal((1, 1024)).astype(np.float32) / 10
        frame = av.AudioFrame.from_ndarray(samples, "fltp", layout="mono")
        frame.sample_rate, frame.pts = 44100, 1024 * number
        out.mux(audio.encode(frame))
    out.mux(audio.encode(None))


@pytest.fixture
def sound_of():
    """The compressed sound of a file, byte for byte, and when it is heard."""

    def read(path):
        with av.open(str(path)) as container:
            packets = container.demux(audio=0)
            return [(float(packet.pts * packet.time_base), bytes(packet)) for packet in packets if packet.size]

    return read


@pytest.fixture
def times_of():
    """When each frame of a file is shown, in seconds."""

    def read(path):
        with av.open(str(path)) as container:
            return [float(frame.pts * frame.time_base) for frame in container.decode(video=0)]

    return read
