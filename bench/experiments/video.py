"""What adapting a network to a video and its scenes gains: the paper's experiment on clips of one's own.

    python -m bench.experiments.video FOLDER --bitrate 120k --work /tmp/video --out video.json

Makes a sequence of scenes of 32 frames from the clips in FOLDER, each cropped to the shape of ``--size`` and shrunk
to it (or cropped to it: ``--own-size``); encodes it as ``cmslap video encode`` does, trains every fourth scene also
without the price on what differs (λ = 0), and measures. Writes JSON. A run that was stopped goes on.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from fractions import Fraction
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from tqdm import trange

from cmslap import options
from cmslap.files import write_json
from cmslap.provenance import provenance
from cmslap.video import SUFFIXES
from cmslap.video.adaptation import Schedule
from cmslap.video.cmsw import AdaptedWeights
from cmslap.video.command import bitrate
from cmslap.video.encode import SCENE_RATE, Encoder, Settings, spans
from cmslap.video.evaluate import bits_of_scenes, by_networks, enlargers, psnr_of_scenes, rival, rows
from cmslap.video.frames import Frame, bicubic, chroma_size
from cmslap.video.reading import Properties, VideoReader
from cmslap.video.work import working_in
from cmslap.video.writing import Encoding, join, write_part

SCENE = 32  # frames
RATE = 24
FREE_EVERY = 4  # scenes; those that are trained without the price, too


def sequence(clips: list[Path], scenes: int, size: tuple[int, int], own_size: bool, path: Path) -> None:
    """Write ``scenes`` scenes, evenly spread over the clips and each clip's length, without loss."""
    width, height = size
    like = Properties(width, height, "yuv420p", Fraction(RATE), Fraction(1, RATE), None, (1, 1, 1, 1), None, 0)
    share = -(-scenes // len(clips))
    frames = itertools.chain.from_iterable(excerpts(clip, share, size, own_size) for clip in clips)
    timed = (Frame(frame.planes, frame.format, pts, 1) for pts, frame in enumerate(frames))
    part = path.with_suffix(".nut")
    write_part(itertools.islice(timed, scenes * SCENE), part, Encoding("h264", quality=0), like)
    with VideoReader(part) as reader:
        join([part], reader, path)
    part.unlink()


def excerpts(clip: Path, count: int, size: tuple[int, int], own_size: bool) -> Iterator[Frame]:
    """``count`` times 32 successive frames of a clip, cropped to ``size``, or to its shape and shrunk to it."""
    with VideoReader(clip) as reader:
        length = reader.properties.frames
        starts = ((np.arange(count) + 0.5) / count * (length - SCENE)).astype(int)
        wanted = set((starts[:, None] + np.arange(SCENE)).ravel().tolist())
        for number, frame in enumerate(reader.frames()):
            if number in wanted:
                yield shrunk(frame, size, own_size)


def shrunk(frame: Frame, size: tuple[int, int], own_size: bool) -> Frame:
    width, height = size
    if own_size and (height > frame.luma.shape[0] or width > frame.luma.shape[1]):
        raise SystemExit(f"a clip of {frame.luma.shape[1]}x{frame.luma.shape[0]} pixels has no {width}x{height}")
    small = chroma_size(frame.format, height, width)
    planes = []
    for plane, target in zip(frame.planes, [(height, width), small, small], strict=True):
        factor = 1 if own_size else min(side / part for side, part in zip(plane.shape, target, strict=True))
        planes.append(bicubic(middle(plane, [round(factor * part) for part in target]), target, frame.white))
    return frame.with_planes(planes)


def middle(plane: np.ndarray, size: Sequence[int]) -> np.ndarray:
    """``size``, height and width, from the middle of a plane."""
    top, left = ((side - wanted) // 2 for side, wanted in zip(plane.shape, size, strict=True))
    return plane[top : top + size[0], left : left + size[1]]


def measure(encoder: Encoder, scene_minutes: float) -> dict[str, Any]:
    """Train what is not trained yet; the table, the bits without the price, and the rival at equal rate."""
    settings = encoder.settings
    encoder.shrink()
    film = encoder.film()
    starts = encoder.scenes(film.frames)
    video, common = encoder.adapt_video(film, starts, 60 * settings.minutes)
    schedule = Schedule(60 * scene_minutes, SCENE_RATE, price=settings.price, seed=settings.seed)

    def adapt(number: int, schedule: Schedule) -> bytes:
        span = list(spans(starts, film.frames))[number]
        return encoder.adapt_scene(film, span, common, schedule, f"scene-{number:05d}-{schedule.price}")

    priced = [adapt(number, schedule) for number in trange(len(starts), desc="scenes")]
    free_schedule = dataclasses.replace(schedule, price=0)
    free = {number: adapt(number, free_schedule) for number in trange(1, len(starts), FREE_EVERY, desc="λ = 0")}
    size = film.shape.scale * film.shape.width, film.shape.scale * film.shape.height
    weights = AdaptedWeights("RLRDSR", common.config(), "", size, starts, [video, *priced])
    unpriced = dataclasses.replace(weights, parts=[video, *(free.get(n, part) for n, part in enumerate(priced))])
    ways = enlargers(weights) | {"free": by_networks(unpriced.scene_networks())}
    table = rows(psnr_of_scenes(encoder.source, encoder.small, starts, ways), weights, encoder.small)
    for number, row in enumerate(table):
        row["free_difference_bits"] = 8 * len(free[number]) if number in free else None
        row["free_psnr"] = row["free_psnr"] if number in free else None
    total = sum(bits_of_scenes(encoder.small, starts, film.frames)) + weights.bits[0] + sum(weights.bits[1])
    bits, psnr = rival(encoder.source, total, starts, settings.preset)
    pixels = size[0] * size[1] * film.frames
    return {
        "settings": asdict(settings), "scene_minutes": scene_minutes, "table": table,
        "weights_bits": weights.bits[0], "total_bpp": total / pixels,
        "rival": {"bpp": bits / pixels, "psnr": psnr},
    }  # fmt: skip


def summary(table: list[dict[str, Any]]) -> dict[str, float]:
    """The claims, in figures: mean gains in dB, and which part of the bits the price leaves."""
    column = {key: np.array([row[key] for row in table]) for key in ("bicubic_psnr", "as_psnr", "os_psnr")}
    of_video, of_scene = column["as_psnr"] - column["bicubic_psnr"], column["os_psnr"] - column["as_psnr"]
    free = [row for row in table if row["free_difference_bits"] is not None]
    return {
        "as_gain": float(of_video.mean()),
        "os_gain": float(of_scene.mean()),
        "scenes_where_os_beats_as_beats_bicubic": int(((of_video > 0) & (of_scene > 0)).sum()),
        "free_gain": fmean(row["free_psnr"] - row["as_psnr"] for row in free),
        "os_gain_where_free": fmean(row["os_psnr"] - row["as_psnr"] for row in free),
        "bits_with_price": fmean(row["difference_bits"] / row["free_difference_bits"] for row in free),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="of clips")
    parser.add_argument("--size", type=options.size, default=(384, 216), help="of the sequence (default 384x216)")
    parser.add_argument("--own-size", action="store_true", help="crop the clips to the size, and do not shrink them")
    parser.add_argument("--scenes", type=int, default=12, help="of 32 frames (default %(default)s)")
    parser.add_argument(
        "--bitrate", type=bitrate, action="append", required=True, help="of the small video; repeatable"
    )
    parser.add_argument("--lambda", dest="price", type=float, default=0.003)
    parser.add_argument("--budget", type=float, default=12, help="minutes of a core to train on the video")
    parser.add_argument("--scene-budget", type=float, default=1, help="minutes of a core to train on a scene")
    parser.add_argument("--work", type=Path, required=True, help="folder for the sequence and what is trained")
    parser.add_argument("--out", type=Path, required=True, help="the JSON file to write")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    clips = sorted(path for path in args.folder.iterdir() if path.suffix in SUFFIXES)
    original = args.work / f"sequence-{args.size[0]}x{args.size[1]}{'-own' * args.own_size}.mkv"
    if not original.exists():
        sequence(clips, args.scenes, args.size, args.own_size, original)
    record = {**provenance(), "clips": [clip.name for clip in clips], "size": args.size, "own_size": args.own_size}
    record["rates"] = {}
    for rate in args.bitrate:
        work = args.work / f"{original.stem}-{rate}"
        settings = Settings(rate, args.budget, args.price)
        with working_in(work, asdict(settings), keep=True):
            result = measure(Encoder(original, work, settings, time.process_time), args.scene_budget)
        record["rates"][rate] = {"summary": summary(result["table"]), **result}
        print(rate, record["rates"][rate]["summary"])
        write_json(args.out, record)


if __name__ == "__main__":
    main()
