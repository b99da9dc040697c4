"""PSNR against bits over bit rates and λ, and the Bjøntegaard differences to HEVC at full size.

    python -m bench.experiments.video_rates FOLDER --bitrate 20k --bitrate 40k --bitrate 80k --bitrate 160k \\
        --lambda 0 --lambda 0.003 --lambda 0.03 --work /tmp/rates --out rates.json --plot rates.png

Makes a sequence as ``bench.experiments.video`` does, a small video for each bit rate and its weights for each λ, and
measures them all as ``cmslap video evaluate`` does. A run that was stopped goes on.
"""

from __future__ import annotations

import argparse
import shutil
import time
from dataclasses import asdict
from pathlib import Path

from bench.experiments.video import sequence
from cmslap import options
from cmslap.video import SUFFIXES, cmsw
from cmslap.video.adaptation import Schedule
from cmslap.video.command import bitrate
from cmslap.video.encode import SCENE_RATE, Encoder, Settings, spans
from cmslap.video.reading import fingerprint
from cmslap.video.report import report
from cmslap.video.work import working_in


def encode(encoder: Encoder, prices: list[float], scene_minutes: float) -> list[Path]:
    """The small video of one bit rate, and a copy of it beside the weights for each λ."""
    encoder.shrink()
    film = encoder.film()
    starts = encoder.scenes(film.frames)
    video, common = encoder.adapt_video(film, starts, 60 * encoder.settings.minutes)
    size = film.shape.scale * film.shape.width, film.shape.scale * film.shape.height
    copies = []
    for price in prices:
        schedule = Schedule(60 * scene_minutes, SCENE_RATE, price=price, seed=encoder.settings.seed)
        scenes = [
            encoder.adapt_scene(film, span, common, schedule, f"scene-{number:05d}-{price}")
            for number, span in enumerate(spans(starts, film.frames))
        ]
        copy = encoder.work / f"small-{encoder.settings.bitrate}-{price}.mp4"
        shutil.copyfile(encoder.small, copy)
        mark = fingerprint(encoder.small)
        weights = cmsw.AdaptedWeights("RLRDSR", common.config(), mark, size, starts, [video, *scenes], price)
        cmsw.write(weights, copy.with_suffix(".cmsw"))
        copies.append(copy)
    return copies


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="of clips")
    parser.add_argument("--size", type=options.size, default=(384, 216), help="of the sequence (default 384x216)")
    parser.add_argument("--scenes", type=int, default=4, help="of 32 frames (default %(default)s)")
    parser.add_argument("--bitrate", type=bitrate, action="append", required=True, help="repeatable")
    parser.add_argument("--lambda", dest="prices", type=float, action="append", required=True, help="repeatable")
    parser.add_argument("--budget", type=float, default=1, help="minutes of a core to train on the video")
    parser.add_argument("--scene-budget", type=float, default=1 / 6, help="minutes of a core to train on a scene")
    parser.add_argument("--work", type=Path, required=True, help="folder for the sequence and what is trained")
    parser.add_argument("--out", type=Path, required=True, help="the JSON file to write")
    parser.add_argument("--plot", type=Path, required=True, help="the drawing to write")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    original = args.work / f"sequence-{args.size[0]}x{args.size[1]}.mkv"
    if not original.exists():
        clips = sorted(path for path in args.folder.iterdir() if path.suffix in SUFFIXES)
        sequence(clips, args.scenes, args.size, False, original)
    smalls = []
    for rate in args.bitrate:
        work = args.work / f"rate-{rate}"
        settings = Settings(rate, args.budget)
        with working_in(work, asdict(settings), keep=True):
            smalls += encode(Encoder(original, work, settings, time.process_time), args.prices, args.scene_budget)
    report(original, smalls, True, args.out, args.plot)


if __name__ == "__main__":
    main()
