"""What holds for whole processes: memory does not grow with the length, and nothing is lost by a kill."""

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import cmslap
from cmslap.video.reading import VideoReader

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(cmslap.__file__).parents[1]), "OMP_NUM_THREADS": "1"}

ENLARGE = """
import sys
from pathlib import Path
from cmslap.video import enlarge
from cmslap.video.writing import Encoding
import numpy as np

enlarge.PART = 6
def doubled(number, frame):
    return frame.with_planes([np.repeat(np.repeat(plane, 2, 0), 2, 1) for plane in frame.planes])
enlarge.enlarge_video(Path(sys.argv[1]), Path(sys.argv[2]), doubled, Encoding("h264", preset="ultrafast"), {})
"""
# A clock that counts instead of measuring: how much is trained does not depend on the machine.
ENCODE = """
import functools, itertools, sys
from pathlib import Path
from cmslap.video import adaptation, encode

adaptation.SAVE_SECONDS = 1
clock = itertools.count(step=0.1).__next__
encode.Encoder = functools.partial(encode.Encoder, clock=clock)
settings = encode.Settings(60000, 0.2, scene_frames=8, preset="ultrafast", recursions=1)
encode.encode(Path(sys.argv[1]), Path(sys.argv[2]), settings)
"""
PEAK = """
import resource
from cmslap.video.encode import Encoder, Settings

encoder = Encoder(Path(sys.argv[1]), Path(sys.argv[2]).parent, Settings(10**6, preset="ultrafast"))
encoder.shrink()
encoder.film()
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def start(code, source, out):
    command = [sys.executable, "-c", code, str(source), str(out)]
    return subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(code, source, out):
    """Standard output of the run, which ends well."""
    with start(code, source, out) as process:
        output, errors = process.communicate()
    assert process.returncode == 0, errors
    return output


def with_kills(code, source, out, kills, seconds):
    """Kill -9 at random moments of a run that takes ``seconds``, and the same run again until it ends."""
    for _ in range(kills):
        with start(code, source, out) as process:
            time.sleep(random.uniform(0.3, 1) * seconds)
            process.kill()
    finish(code, source, out)


def check_kills(code, clip, folder, kills=2):
    """What comes out is, bit for bit, what comes out of one run; nothing else is left."""
    source = clip(frames=40, size=(192, 128), sound=True)
    (folder / "once").mkdir()
    (folder / "killed").mkdir()
    begin = time.monotonic()
    finish(code, source, folder / "once" / "out.mp4")
    with_kills(code, source, folder / "killed" / "out.mp4", kills, time.monotonic() - begin)
    names = [sorted(path.name for path in (folder / name).iterdir()) for name in ("once", "killed")]
    assert names[0] == names[1]
    for name in names[0]:
        assert (folder / "once" / name).read_bytes() == (folder / "killed" / name).read_bytes(), name


def test_enlarging_that_is_killed_at_any_moment(clip, tmp_path):
    check_kills(ENLARGE, clip, tmp_path)
    with VideoReader(tmp_path / "killed" / "out.mp4") as reader:
        assert sum(1 for _ in reader.frames()) == 40


def test_encoding_that_is_killed_at_any_moment(clip, tmp_path):
    check_kills(ENCODE, clip, tmp_path)
    assert (tmp_path / "killed" / "out.cmsw").stat().st_size > 1000


def test_memory_does_not_grow_with_the_length(clip, tmp_path):
    size, peaks = (640, 360), []
    for frames in (50, 150):
        out = tmp_path / str(frames) / "out.mp4"
        out.parent.mkdir()
        peaks.append(int(finish(ENLARGE + PEAK, clip(f"{frames}.mp4", frames, size), out)))
    of_frames = 100 * 1.5 * 4 * size[0] * size[1] / 1024  # KiB of the large frames that one clip has more
    assert peaks[1] - peaks[0] < of_frames / 4, peaks
