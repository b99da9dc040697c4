"""Frames and time stamps in, the same out, and everything else of the file with them."""

import itertools
import random
import threading

import av
import numpy as np
import pytest
import torch

from cmslap.video import writing
from cmslap.video.enlarge import enlarge_video
from cmslap.video.frames import bicubic, cropped_or_padded, from_av, halved, padded, planar, to_av
from cmslap.video.pipeline import ahead, side_by_side
from cmslap.video.reading import VideoError, VideoReader, fingerprint
from cmslap.video.writing import Encoding, encodable

FAST = {"h264": "ultrafast", "hevc": "ultrafast", "av1": "12"}


def doubled(number, frame):
    return frame.with_planes([np.repeat(np.repeat(plane, 2, 0), 2, 1) for plane in frame.planes])


def enlarge(source, out, codec="h264"):
    return enlarge_video(source, out, doubled, Encoding(codec, 4, preset=FAST[codec]), {})


@pytest.mark.parametrize(("codec", "suffix"), [("h264", "mp4"), ("hevc", "mp4"), ("hevc", "mkv"), ("av1", "webm")])
def test_frames_and_their_times_stay_in_order(clip, times_of, codec, suffix, tmp_path):
    source, out = clip(frames=9, size=(96, 64)), tmp_path / f"out.{suffix}"
    assert enlarge(source, out, codec) == 9
    assert times_of(out) == pytest.approx(times_of(source), abs=1e-3)  # Matroska counts milliseconds
    with VideoReader(source) as before, VideoReader(out) as after:
        assert after.properties.rate == pytest.approx(before.properties.rate, rel=1e-2)
        for number, (first, second) in enumerate(zip(before.frames(), after.frames(), strict=True)):
            difference = doubled(0, first).luma.astype(int) - second.luma
            assert np.abs(difference).mean() < 3, number


def test_variable_frame_rate_stays(clip, times_of, tmp_path):
    gaps = [random.randint(7, 100) for _ in range(12)]
    source = clip(frames=12, times=list(itertools.accumulate(gaps)))
    enlarge(source, tmp_path / "out.mp4")
    assert times_of(tmp_path / "out.mp4") == pytest.approx(times_of(source), abs=1e-5)


def test_parts_join_without_a_seam(clip, times_of, monkeypatch, tmp_path):
    monkeypatch.setattr("cmslap.video.enlarge.PART", 4)
    gaps = [random.randint(7, 100) for _ in range(11)]
    source = clip(frames=11, times=list(itertools.accumulate(gaps)))
    for codec in ("h264", "hevc"):
        out = tmp_path / f"{codec}.mp4"
        assert enlarge(source, out, codec) == 11
        assert times_of(out) == pytest.approx(times_of(source), abs=1e-5)


def test_sound_subtitles_rotation_and_colour_stay(clip, sound_of, times_of, tmp_path):
    source, out = clip("in.mkv", sound=True, words=True, turned=90, color=(2, 5, 5, 6)), tmp_path / "out.mkv"
    enlarge(source, out)
    assert sound_of(out) == sound_of(source)
    assert times_of(out) == times_of(source)
    with VideoReader(source) as before, VideoReader(out) as after:
        assert after.properties.display_matrix == before.properties.display_matrix is not None
        assert after.properties.color == before.properties.color == (2, 5, 5, 6)
        assert [stream.type for stream in after.others] == ["audio", "subtitle"]
        assert next(bytes(packet) for packet in after.packets() if packet.stream.type == "subtitle") == b"hello"
    with av.open(str(out)) as container:
        assert next(container.decode(video=0)).rotation == 90


def test_what_a_container_cannot_hold_is_told(clip, capsys, sound_of, tmp_path):
    source, out = clip("in.mkv", sound=True, words=True, turned=-90), tmp_path / "out.mp4"
    enlarge(source, out)
    assert "its subtitle (srt) does not fit mp4" in capsys.readouterr().err
    assert [data for _, data in sound_of(out)] == [data for _, data in sound_of(source)]
    with av.open(str(out)) as container:
        assert next(container.decode(video=0)).rotation == -90


@pytest.mark.parametrize("form", ["yuv420p", "yuv422p", "yuv444p", "yuv420p10le", "yuv422p10le", "yuv444p10le"])
def test_layouts_of_samples_stay(clip, form, tmp_path):
    source = clip(form=form)
    enlarge(source, tmp_path / "out.mp4", "hevc")
    with VideoReader(tmp_path / "out.mp4") as reader, VideoReader(source) as before:
        assert reader.properties.format == before.properties.format == form
        assert next(reader.frames()).luma.max() > (255 if "10" in form else 100)


def test_planes_survive_the_way_to_pyav_and_back():
    for form, width, height in (("yuv420p", 33, 17), ("yuv420p10le", 34, 19), ("yuv444p", 5, 3), ("yuv422p10le", 7, 8)):
        source = av.VideoFrame(width, height, form)
        frame = from_av(source, 3, 1)
        noise = [np.random.randint(0, frame.white + 1, plane.shape).astype(plane.dtype) for plane in frame.planes]
        again = from_av(to_av(frame.with_planes(noise)), 3, 1)
        for one, two in zip(noise, again.planes, strict=True):
            np.testing.assert_array_equal(one, two)


def test_other_layouts_become_planar():
    assert [planar(name) for name in ("nv12", "rgb24", "gray", "p010le", "yuvj420p", "gray16le", "yuv420p12le")] == [
        "yuv420p", "yuv420p", "yuv420p", "yuv420p10le", "yuvj420p", "yuv420p10le", "yuv420p12le",
    ]  # fmt: skip
    assert encodable("yuv444p10le", "av1") == "yuv420p10le"
    assert encodable("yuv422p12le", "h264") == "yuv422p10le"


def test_halving_means_and_padding_repeats():
    frame = from_av(av.VideoFrame(6, 6, "yuv420p"), 0, 1)
    luma = np.random.randint(0, 256, (6, 6)).astype(np.uint8)
    chroma = np.random.randint(0, 256, (3, 3)).astype(np.uint8)
    wide = padded(frame.with_planes([luma, chroma, chroma]), 4)
    assert [plane.shape for plane in wide.planes] == [(8, 8), (4, 4), (4, 4)]
    np.testing.assert_array_equal(wide.luma[:, 6], wide.luma[:, 5])
    small = halved(wide, "area")
    exact = wide.luma.reshape(4, 2, 4, 2).astype(float).mean((1, 3))
    np.testing.assert_array_equal(small.luma, np.floor(exact + 0.5))
    assert [plane.shape for plane in halved(wide, "bicubic").planes] == [(4, 4), (2, 2), (2, 2)]
    assert cropped_or_padded(wide, 6, 6).luma.tolist() == luma.tolist()
    assert bicubic(luma, (12, 12), 255).shape == (12, 12)


def test_one_frame(clip, times_of, tmp_path):
    assert enlarge(clip(frames=1), tmp_path / "out.mp4") == 1
    assert times_of(tmp_path / "out.mp4") == [0]


def test_what_cannot_be_read_is_told_in_a_line(clip, tmp_path):
    whole = clip(frames=30, size=(96, 64)).read_bytes()
    for name, data, message in (
        ("none.mp4", None, "no such file"),
        ("empty.mp4", b"", "not a video"),
        ("text.mp4", b"no video" * 100, "not a video"),
        ("cut.mp4", whole[:-400], "not a video"),  # the index is at the end
        ("frames.mp4", clip("no.mp4", frames=0).read_bytes(), "no such file|no video|no frames|not a video"),
    ):
        if data is not None:
            (tmp_path / name).write_bytes(data)
        with pytest.raises(VideoError, match=message) as caught, VideoReader(tmp_path / name) as reader:
            list(reader.frames())
        assert "\n" not in str(caught.value)
        assert str(tmp_path / name) in str(caught.value)


def test_a_video_that_is_cut_off_is_refused(clip, tmp_path):
    enlarge(clip(frames=30), tmp_path / "whole.mp4")  # its index is in front
    (tmp_path / "cut.mp4").write_bytes((tmp_path / "whole.mp4").read_bytes()[:-200])
    with pytest.raises(VideoError, match=r"cut\.mp4: it is cut off"):
        VideoReader(tmp_path / "cut.mp4")


def test_sound_alone_is_no_video(tmp_path, clip):
    path = tmp_path / "sound.mp4"
    with av.open(str(path), "w") as out, av.open(str(clip(sound=True))) as source:
        stream = out.add_stream_from_template(source.streams.audio[0])
        for packet in source.demux(audio=0):
            if packet.size:
                packet.stream = stream
                out.mux(packet)
    with pytest.raises(VideoError, match="no video"):
        VideoReader(path)


def test_a_fingerprint_is_of_the_frames_and_not_of_the_file(clip, tmp_path):
    source = clip(sound=True)
    with av.open(str(tmp_path / "again.mp4"), "w") as out, av.open(str(source)) as container:
        stream = out.add_stream_from_template(container.streams.video[0])
        out.metadata["title"] = "another file"
        for packet in container.demux(video=0):
            if packet.size:
                packet.stream = stream
                out.mux(packet)
    assert fingerprint(tmp_path / "again.mp4") == fingerprint(source) != fingerprint(clip("other.mp4", frames=7))


def test_a_run_that_stopped_goes_on_with_the_part_it_was_at(clip, times_of, monkeypatch, tmp_path):
    monkeypatch.setattr("cmslap.video.enlarge.PART", 4)
    source, out = clip(frames=10), tmp_path / "out.mp4"
    worked = []

    def stop(number, frame):
        if number == 6:
            raise RuntimeError("killed")
        return doubled(number, frame)

    def count(number, frame):
        worked.append(number)
        return doubled(number, frame)

    encoding = Encoding("h264", 1, preset="ultrafast")
    with pytest.raises(RuntimeError, match="killed"):
        enlarge_video(source, out, stop, encoding, {})
    assert not out.exists()
    with pytest.raises(VideoError, match="the beginning of another run"):
        enlarge_video(source, out, count, encoding, {"scale": 3})
    assert enlarge_video(source, out, count, encoding, {}) == 10
    assert worked == [4, 5, 6, 7, 8, 9]
    assert times_of(out) == times_of(source)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.mp4", "out.mp4"]


def test_stages_work_ahead_but_not_far():
    made = []
    taken = ahead((made.append(number) or number for number in range(100)), most=3)
    assert next(taken) == 0
    for _ in range(200):
        if len(made) >= 5:
            break
        threading.Event().wait(0.01)
    assert len(made) <= 6
    taken.close()
    assert len(made) <= 7
    assert list(ahead(range(10))) == list(range(10))


def test_what_goes_wrong_in_a_stage_reaches_the_reader():
    def fail():
        yield 1
        raise ValueError("broken")

    taken = ahead(fail())
    assert next(taken) == 1
    with pytest.raises(ValueError, match="broken"):
        next(taken)


@pytest.mark.parametrize("workers", [1, 3, None])
def test_workers_keep_the_order_and_share_the_threads(workers):
    before, begun = torch.get_num_threads(), []

    def square(number, other):
        begun.append(number)
        threading.Event().wait(random.random() / 100)
        return number * other, torch.get_num_threads()

    made = side_by_side(square, ((number, number) for number in range(40)), workers)
    results = [next(made)]
    workers = workers or min(before, 4)
    assert len(begun) <= 2 * workers + 1
    results += made
    assert [value for value, _ in results] == [number**2 for number in range(40)]
    assert {threads for _, threads in results} == {max(1, before // workers)}
    assert torch.get_num_threads() == before


def test_what_goes_wrong_in_a_worker_reaches_the_reader():
    before = torch.get_num_threads()
    made = side_by_side(lambda number: 1 // number, ((number,) for number in (1, 1, 0, 1, 1)), 2)
    assert [next(made), next(made)] == [1, 1]
    with pytest.raises(ZeroDivisionError):
        next(made)
    assert torch.get_num_threads() == before


def test_decoding_times_ascend_and_are_not_late():
    for _ in range(20):
        shown = np.cumsum(np.random.randint(1, 50, 40))
        order = np.argsort(np.arange(40) + np.random.randint(0, 5, 40), kind="stable")
        shown = shown[order].tolist()
        times = writing._decoding_times(shown)
        assert (np.diff(times) > 0).all()
        assert all(time <= when for time, when in zip(times, shown, strict=True))
