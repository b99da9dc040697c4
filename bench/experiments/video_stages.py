"""How long all of it takes: ``cmslap video`` encode, decode and evaluate of one video, one after the other.

    python -m bench.experiments.video_stages CLIP --bitrate 600k --budget 8 --out stages.json

Writes JSON: the clock's seconds, the processors' and the peak memory of each command, and what the evaluation found.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from cmslap.files import write_json
from cmslap.provenance import provenance
from cmslap.video.command import bitrate
from cmslap.video.reading import VideoReader


def timed(*arguments: object) -> dict[str, float]:
    """Run ``cmslap video`` in a process of its own."""
    begin = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", "cmslap", "video", *map(str, arguments)])
    _, status, used = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"cmslap video {arguments[0]} failed")
    seconds = time.perf_counter() - begin
    return {
        "seconds": seconds,
        "processor_seconds": used.ru_utime + used.ru_stime,
        "peak_bytes": 1024 * used.ru_maxrss,
    }


def measure(clip: Path, bitrate: int, minutes: float, work: Path) -> dict[str, object]:
    small, large, table = work / "small.mp4", work / "large.mp4", work / "table.json"
    stages = {
        "encode": timed("encode", clip, "-o", small, "--bitrate", bitrate, "--budget", minutes),
        "decode": timed("decode", small, "-o", large),
        "evaluate": timed("evaluate", clip, small, "--json", table),
    }
    with VideoReader(clip) as reader:
        like = reader.properties
        frames = sum(1 for _ in reader.frames())
    return {
        "clip": clip.name, "size": (like.width, like.height), "frames": frames, "rate": float(like.rate),
        "bitrate": bitrate, "budget_minutes": minutes, "stages": stages,
        "evaluation": json.loads(table.read_text(encoding="utf-8"))["results"][0],
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clip", type=Path)
    parser.add_argument("--bitrate", type=bitrate, default=600_000, help="of the small video (default 600k)")
    parser.add_argument("--budget", type=float, default=8, help="minutes to train (default %(default)s)")
    parser.add_argument("--out", type=Path, required=True, help="the JSON file to write")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        record = {**provenance(), **measure(args.clip, args.bitrate, args.budget, Path(work))}
    write_json(args.out, record)


if __name__ == "__main__":
    main()
