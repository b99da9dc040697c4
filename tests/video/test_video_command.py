"""cmslap video and cmslap upscale on videos, as on the command line."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import run

import cmslap
from bench.experiments import video_stages
from cmslap.models import NETWORKS
from cmslap.video import cmsw, report
from cmslap.video.cmsw import AdaptedWeights
from cmslap.video.encode import Encoder
from cmslap.video.reading import VideoReader

TINY = {"depth": 1, "recursions": 1, "channels": 2, "shared_conv": 1}
ENCODE = "video encode in.mp4 -o small.mp4 -b 60k --budget 0.01 --scenes 4 --recursions 1 --preset ultrafast"
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(cmslap.__file__).parents[1]), "OMP_NUM_THREADS": "1"}


@pytest.fixture
def here(tmp_path, monkeypatch, clip):
    monkeypatch.chdir(tmp_path)
    cmslap.save_model(cmslap.CMSLapSRN(**TINY), "tiny.safetensors")
    clip(frames=8, size=(98, 70), sound=True)
    return tmp_path


def test_encode_decode_evaluate(here, capfd, sound_of, times_of):
    before = {}
    write = cmsw.write

    def keep(weights, path):
        before["weights"] = weights
        write(weights, path)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("cmslap.video.cmsw.write", keep)
        status, out, _ = run(capfd, ENCODE)
    assert status == 0
    assert "2 scenes" in out
    assert cmsw.read("small.cmsw") == before["weights"]
    assert before["weights"].size == (98, 70)
    assert before["weights"].price == 0.003
    assert sound_of("small.mp4") == sound_of("in.mp4")
    with VideoReader("small.mp4") as reader:
        assert (reader.properties.width, reader.properties.height) == (50, 36)  # of 98 × 70 padded to multiples of 4
    assert not Path("small.mp4.work").exists()
    assert run(capfd, "video decode small.mp4 -o large.mp4")[0] == 0
    assert times_of("large.mp4") == times_of("in.mp4")
    assert sound_of("large.mp4") == sound_of("in.mp4")
    with VideoReader("large.mp4") as reader:
        assert (reader.properties.width, reader.properties.height) == (98, 70)
    status, out, _ = run(capfd, "video evaluate in.mp4 small.mp4 --json table.json --plot table.png")
    assert status == 0
    assert "mean" in out
    check_record(json.loads(Path("table.json").read_text()), before["weights"])
    assert Path("table.png").read_bytes().startswith(b"\x89PNG")


def check_record(record, weights: AdaptedWeights):
    """The rates are those of the paper's equations 4 to 6."""
    rows = record["results"][0]["table"]
    pixels = 98 * 70 * 4
    common, differences = weights.bits
    video = 8 * sum(packet_sizes("small.mp4"))
    assert sum(row["bicubic_bpp"] for row in rows) * pixels == pytest.approx(video)
    for row, difference in zip(rows, differences, strict=True):
        assert (row["as_bpp"] - row["bicubic_bpp"]) * pixels == pytest.approx(common / 2)
        assert (row["os_bpp"] - row["as_bpp"]) * pixels == pytest.approx(difference)
    assert record["results"][0]["rival"]["mean_psnr"] > 20


def packet_sizes(path):
    import av

    with av.open(path) as container:
        return [packet.size for packet in container.demux(video=0)]


def test_psnr_is_of_the_definition(here, capfd):
    """Bicubic in the table, against plain float64 on the decoded frames."""
    from cmslap.imaging import imresize

    assert run(capfd, ENCODE)[0] == 0
    assert run(capfd, "video evaluate in.mp4 small.mp4 --no-rival --json table.json")[0] == 0
    rows = json.loads(Path("table.json").read_text())["results"][0]["table"]
    with VideoReader("in.mp4") as large, VideoReader("small.mp4") as small:
        errors = []
        for high, low in zip(large.frames(), small.frames(), strict=True):
            image = imresize(torch.from_numpy(low.luma.astype(float)), 2.0).clamp(0, 255)[:70, :98]
            errors.append(np.square(image.numpy() - high.luma).mean())
    expected = [10 * np.log10(255**2 / np.mean(errors[first : first + 4])) for first in (0, 4)]
    assert [row["bicubic_psnr"] for row in rows] == pytest.approx(expected, abs=0.02)  # those are of rounded images


def result_of(price, bpp, psnr, rival_psnr):
    """As ``report.evaluate`` gives it, of a video whose three ways differ by 0.1 dB and by nothing in rate."""
    mean = {f"{way}_bpp": bpp for way in report.WAYS}
    mean |= {f"{way}_psnr": psnr + 0.1 * number for number, way in enumerate(report.WAYS)}
    return {"lambda": price, "mean": mean, "rival": {"bpp": bpp, "mean_psnr": rival_psnr}}


def test_bjontegaard_differences_are_those_of_known_curves(tmp_path):
    """A decibel more for each doubling of the rate: a curve 3 dB lower needs eight times the rate."""
    rates = [0.01 * 2**step for step in range(8)]
    results = [result_of(0.003, rate, 30 + step, 33 + step) for step, rate in enumerate(rates)]
    results += [result_of(0.0, rate, 20 + step, 33 + step) for step, rate in enumerate(rates)]
    found = {(entry["curve"], entry["lambda"]): entry for entry in report.bjontegaard_of(results)}
    assert len(found) == 6
    bicubic, scenes, apart = found["bicubic", 0.003], found["OS-model", 0.003], found["bicubic", 0.0]
    assert (bicubic["bd_rate"], bicubic["bd_psnr"]) == pytest.approx((700, -3))
    assert (scenes["bd_rate"], scenes["bd_psnr"]) == pytest.approx((100 * (2**2.8 - 1), -2.8))
    assert (str(apart["bd_rate"]), apart["bd_psnr"]) == ("nan", pytest.approx(-13))  # no PSNR in common
    assert report.bjontegaard_of(results[:3]) == []  # too few points
    assert set(report.curves(results)) == {
        "bicubic", "AS-model", "OS-model, λ = 0.003", "OS-model, λ = 0.0", "HEVC at full size",
    }  # fmt: skip
    report.draw(results, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("channels", [1, 3])
def test_upscale_by_a_network_of_luma_and_of_rgb(here, capfd, monkeypatch, sound_of, times_of, channels):
    model = "tiny.safetensors"
    if channels == 3:

        class Bicubic(NETWORKS["CMSLapSRN"]):
            image_channels = 3

            def forward(self, image, scale=None):
                return [cmslap.imaging.imresize(image, float(scale or 2))]

        loaded = Bicubic(**TINY).eval()
        monkeypatch.setattr("cmslap.inference.upscaling.load_model", lambda *args, **options: loaded)
    assert run(capfd, f"upscale in.mp4 -o large.mp4 -m {model} -s 2 --crf 2 --preset ultrafast -g cpu")[0] == 0
    assert times_of("large.mp4") == times_of("in.mp4")
    assert sound_of("large.mp4") == sound_of("in.mp4")
    with VideoReader("in.mp4") as small, VideoReader("large.mp4") as large:
        assert (large.properties.width, large.properties.height) == (196, 140)
        for low, high in zip(small.frames(), large.frames(), strict=True):
            for one, two in zip(low.planes, high.planes, strict=True):
                assert abs(one.mean() - two.mean()) < 3
    assert run(capfd, f"upscale in.mp4 -o large.mp4 -m {model} -s 2")[:2] == (1, "")


def test_odd_sizes_and_10_bits(here, capfd, clip):
    clip("odd.mp4", frames=2, size=(35, 31), form="yuv444p10le")
    command = "upscale odd.mp4 -o odd-large.mp4 -m tiny.safetensors -s 3 --codec hevc --preset ultrafast -g cpu"
    assert run(capfd, command)[0] == 0
    with VideoReader("odd-large.mp4") as reader:
        assert (reader.properties.width, reader.properties.height) == (106, 94)  # 105 × 93, made even
        assert reader.properties.format == "yuv444p10le"
        assert sum(1 for _ in reader.frames()) == 2


# fmt: off
MISTAKES = [  # command line, exit status, what the one line of standard error says
    ("upscale none.mp4 -o x.mp4 -m tiny.safetensors", 1, "none.mp4: no such file"),
    ("upscale text.mp4 -o x.mp4 -m tiny.safetensors", 1, "text.mp4: not a video to read"),
    ("upscale in.mp4 -o in.mp4 -m tiny.safetensors", 1, "an output is one of the inputs"),
    ("upscale in.mp4 -o x.gif -m tiny.safetensors", 1, "x.gif: not a container to write"),
    ("upscale in.mp4 -o x.webm -m tiny.safetensors", 1, "webm holds --codec av1 alone"),
    ("upscale in.mp4 -o - -m tiny.safetensors", 1, "standard output"),
    ("upscale in.mp4 a.png -o out -m tiny.safetensors", 1, "calls of their own"),
    ("upscale in.mp4 -o x.mp4 --compare x.html -m tiny.safetensors", 1, "--compare is for images"),
    ("upscale in.mp4 -o exists.mp4 -m tiny.safetensors", 1, "exists.mp4 exists; give --overwrite"),
    ("upscale in.mp4 -o x.mp4 -m tiny.safetensors --crf 99", 2, "from 0 to 63"),
    ("upscale in.mp4 -o x.mp4 -m tiny.safetensors --preset warp", 1, "--preset of h264 must be one of ultrafast"),
    ("video decode in.mp4 -o x.mkv --codec av1 --preset fast", 1, "must be one of 0, 1, 2"),
    ("video encode in.mp4 -o exists.mp4 -b 60k", 1, "exists.mp4 exists; give --overwrite"),
    ("video encode none.mp4 -o x.mp4 -b 60k", 1, "none.mp4: no such file"),
    ("video encode in.mp4 -o x.txt -b 60k", 1, "x.txt: not a container to write"),
    ("video encode in.mp4 -o x.mp4 -b lots", 2, "must be bits a second"),
    ("video encode in.mp4 -o x.mp4 -b 60k --budget 0", 2, "must be minutes"),
    ("video encode in.mp4 -o x.mp4 -b 60k --scenes few", 2, "a number of frames, or auto"),
    ("video encode in.mp4 -o x.mp4 -b 60k --lambda -1", 2, "a number from 0"),
    ("video decode in.mp4 -o x.mp4", 1, "in.cmsw: no such file"),
    ("video decode other.mp4 -o x.mp4", 1, "other.cmsw: not a .cmsw file to use"),
    ("video decode stranger.mp4 -o x.mp4", 1, "stranger.cmsw: these are another video's weights"),
    ("video decode text.mp4 -o x.mp4", 1, "text.cmsw: no such file"),
    ("video evaluate in.mp4 text.mp4", 1, "text.cmsw: no such file"),
    ("video", 2, "required: ACTION"),
]
# fmt: on


def test_mistakes_end_in_one_line(here, capfd, clip):
    Path("text.mp4").write_text("no video")
    Path("exists.mp4").write_text("precious")
    Path("other.cmsw").write_bytes(b"CMSW nonsense" * 20)
    clip("other.mp4")
    clip("stranger.mp4", frames=3)
    network = cmslap.models.RLRDSR(recursions=1, channels=2, growth=2)
    part = cmsw.coding.encode(cmsw.flat(network), 100)
    cmsw.write(AdaptedWeights("RLRDSR", network.config(), "0" * 32, (98, 70), [0], [part, part]), "stranger.cmsw")
    before = sorted(path.name for path in here.iterdir())
    for command, expected, message in MISTAKES:
        status, _, err = run(capfd, command)
        assert status == expected, command
        assert message in err, (command, err)
        assert "Traceback" not in err
        assert status == 2 or err.count("\n") == 1, (command, err)
        assert Path("exists.mp4").read_text() == "precious"
        for left in here.glob("x.*.work"):
            assert not list(left.glob("[0-9]*.nut")), command
            for file in left.iterdir():
                file.unlink()
            left.rmdir()
        assert sorted(path.name for path in here.iterdir()) == before, command


def test_encode_that_was_killed_goes_on(here, capfd):
    """kill -9 while the scenes are trained; what was trained is trained once."""
    command = [sys.executable, "-m", "cmslap", *shlex.split(ENCODE.replace("0.01", "0.05"))]
    process = subprocess.Popen(command, env=ENVIRONMENT, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 100
    while not Path("small.mp4.work/video.bin").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not Path("small.mp4").exists()
    video = Path("small.mp4.work/video.bin").read_bytes()
    status, _, err = run(capfd, ENCODE)
    assert status == 1
    assert "small.mp4.work has the beginning of another run" in err
    trained = []
    adapt = Encoder.adapt_video

    def note(self, *args):
        data, network = adapt(self, *args)
        trained.append(data)
        return data, network

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Encoder, "adapt_video", note)
        assert run(capfd, ENCODE.replace("0.01", "0.05"))[0] == 0
    assert trained == [video]
    assert cmsw.read("small.cmsw").parts[0] == video


def test_the_time_of_all_commands_is_recorded(here, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["", "in.mp4", "--bitrate", "60k", "--budget", "0.01", "--out", "stages.json"])
    video_stages.main()
    record = json.loads((here / "stages.json").read_text())
    assert (record["size"], record["frames"], record["rate"]) == ([98, 70], 8, 25)
    assert list(record["stages"]) == ["encode", "decode", "evaluate"]
    assert all(stage["seconds"] > 0 and stage["peak_bytes"] > 2**20 for stage in record["stages"].values())
    assert record["evaluation"]["table"]
