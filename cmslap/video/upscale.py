"""What ``cmslap upscale`` does with videos."""

import argparse
import sys
from pathlib import Path

from cmslap.files import check_output
from cmslap.inference.upscaling import Planner
from cmslap.video import SUFFIXES
from cmslap.video.cmsw import CmswError
from cmslap.video.enlarge import ByNetwork, enlarge_video
from cmslap.video.reading import VideoError, VideoReader
from cmslap.video.writing import CONTAINERS, Encoding, check


def run(args: argparse.Namespace) -> int:
    jobs = pair(args.inputs, args.output)
    _refuse_options_of_images(args)
    if args.skip_existing:
        jobs = {source: out for source, out in jobs.items() if not out.exists()}
    encoding = Encoding(args.codec, args.crf, preset=args.preset)
    for out in jobs.values():
        check(out, encoding.codec, encoding.preset)
        check_output(out, args.overwrite)
    planner = Planner(
        args.model, args.scale, size=args.size, tile=args.tile, ensemble=args.ensemble, device=args.device,
        precision=args.precision,
    )  # fmt: skip
    what = {"model": args.model, "scale": args.scale, "size": args.size, "ensemble": args.ensemble}
    failures = 0
    for source, out in jobs.items():
        try:
            with VideoReader(source) as reader:
                enlarge = ByNetwork(planner, reader.properties.color)
            enlarge_video(source, out, enlarge, encoding, {**what, "precision": args.precision})
        except (VideoError, CmswError) as error:
            if len(jobs) == 1:
                raise
            failures += 1
            print(f"cmslap upscale: error: {error}", file=sys.stderr)
    return 1 if failures else 0


def pair(inputs: list[str], output: str) -> dict[Path, Path]:
    """What is read, and what each is written to. Raises :class:`VideoError`."""
    out = Path(output)
    others = [name for name in inputs if Path(name).suffix.lower() not in SUFFIXES]
    if others:
        raise VideoError(f"{others[0]} is no video, and others are; give images and videos to calls of their own")
    if output == "-":
        raise VideoError("a video cannot be written to standard output; name a file")
    if len(inputs) == 1 and not out.is_dir() and out.suffix:
        jobs = {Path(inputs[0]): out}
    elif out.suffix.lower() in CONTAINERS:
        raise VideoError(f"-o {output} is a file; several videos need a folder")
    else:
        jobs = {Path(name): out / _writable(Path(name)) for name in inputs}
    if len(set(jobs.values())) < len(jobs) or any(source.resolve() == out.resolve() for source, out in jobs.items()):
        raise VideoError(f"-o {output}: an output is one of the inputs, or two have one name")
    return jobs


def _writable(source: Path) -> str:
    return source.name if source.suffix.lower() in CONTAINERS else f"{source.stem}.mp4"


def _refuse_options_of_images(args: argparse.Namespace) -> None:
    for name in ("format", "convert", "compare", "recursive", "huge"):
        if getattr(args, name):
            raise VideoError(f"--{name} is for images, and {args.inputs[0]} is a video")
