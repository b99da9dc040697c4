"""What ``cmslap upscale`` does: many images, one after the other, and what goes wrong with one is no other's matter."""

import argparse
import glob
import os
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from cmslap import imaging
from cmslap.errors import in_one_line
from cmslap.files import check_output
from cmslap.inference.compare import beside_bicubic
from cmslap.inference.page import Comparison, write_page
from cmslap.inference.upscaling import Planner, UpscaleError
from cmslap.inference.upscaling import run as upscale
from cmslap.options import DEFAULT_MODEL

_STDIN, _STDOUT = Path("/dev/stdin"), Path("/dev/stdout")


class Job(NamedTuple):
    """One image to read, what to write it to, and the suffix of the format to write it in."""

    source: Path
    destination: Path
    suffix: str


def run(args: argparse.Namespace) -> int:
    jobs = pair(args.inputs, args.output, args.recursive, args.format)
    if args.skip_existing:
        jobs = [job for job in jobs if not job.destination.exists()]
    if args.compare is not None:
        check_output(args.compare, args.overwrite)
    planner = Planner(
        args.model, args.scale, size=args.size, tile=args.tile, ensemble=args.ensemble, device=args.device,
        precision=args.precision,
    )  # fmt: skip
    failures, comparisons = 0, []
    for job in tqdm(jobs, unit="image", disable=len(jobs) == 1 or None):
        try:
            comparisons += _upscale_file(job, planner, args)
        except Exception as error:
            reason = in_one_line(error, job.source, job.destination)
            if reason is None:
                raise
            failures += 1
            _say(f"error: {reason}")
    if comparisons:
        write_page(comparisons, args.compare, next(planner.network.parameters()).device, args.precision)
        print(f"{args.compare}: a page with sliders", file=sys.stderr if args.output == "-" else sys.stdout)
    if failures or len(jobs) != 1:
        summary = f"{len(jobs) - failures} of {len(jobs)} images written to {args.output}, {failures} failed"
        print(summary, file=sys.stderr if args.output == "-" else sys.stdout)
    return 1 if failures else 0


def pair(inputs: list[str], output: str, recursive: bool = False, form: str | None = None) -> list[Job]:
    """What is read and what is written, a job an image; refuses clashes before any work is done.

    Raises :class:`UpscaleError`.
    """
    out = _STDOUT if output == "-" else Path(output)
    found = list(dict.fromkeys(pair for name in inputs for pair in _find(name, recursive, out)))
    one_image = len(found) == 1 and not any(Path(name).is_dir() for name in inputs)
    is_stream = out == _STDOUT or (out.exists() and not out.is_dir() and not out.is_file())
    is_folder = not is_stream and (out.is_dir() or output.endswith(("/", os.sep)) or not out.suffix)
    suffix = f".{form}" if form else None
    if one_image and is_stream:
        jobs = [Job(found[0][0], out, suffix or (out.suffix if out.suffix.lower() in imaging.WRITABLE else ".png"))]
    elif one_image and not is_folder:
        jobs = [Job(found[0][0], out, _agreed(out, suffix))]
    elif is_stream or out.is_file() or (not is_folder and out.suffix.lower() in imaging.WRITABLE):
        raise UpscaleError(f"-o {output} is a file; several images, or those of a folder, need a folder")
    else:
        names = [_output_name(below, suffix) for _, below in found]
        jobs = [Job(source, out / name, name.suffix) for (source, _), name in zip(found, names, strict=True)]
    _check_clashes(jobs)
    return jobs


def _agreed(out: Path, suffix: str | None) -> str:
    """The format of a file that is named: by its name, with which ``--format`` must agree."""
    same = {".jpeg": ".jpg", ".tiff": ".tif"}
    if suffix is not None and same.get(out.suffix.lower(), out.suffix.lower()) != suffix:
        raise UpscaleError(f"-o {out} is not named as --format {suffix[1:]} is; leave one of them out")
    return out.suffix


def _find(name: str, recursive: bool, out: Path) -> Iterator[tuple[Path, Path]]:
    """The images ``name`` stands for, each with its path below the folder that was named."""
    path = Path(name)
    if name == "-":
        yield _STDIN, Path("stdin")
    elif path.is_dir():
        for file in imaging.find_images(path, recursive):
            if not (recursive and _lies_in(file, out, path)):
                yield file, file.relative_to(path)
    elif path.exists():
        yield path, Path(path.name)
    else:
        matches = [Path(match) for match in sorted(glob.glob(name, recursive=True)) if Path(match).is_file()]  # noqa: PTH207
        if not matches:
            raise UpscaleError(f"{name}: no {'file matches' if glob.has_magic(name) else 'such file or folder'}")
        for match in matches:
            yield match, Path(match.name)


def _lies_in(file: Path, out: Path, folder: Path) -> bool:
    """Whether ``file`` is a result of an earlier run: ``out`` lies below ``folder`` and the file below ``out``."""
    out = out.resolve()
    return folder.resolve() in out.parents and out in file.resolve().parents


def _output_name(name: Path, suffix: str | None) -> Path:
    if suffix is None:
        suffix = name.suffix if name.suffix.lower() in imaging.WRITABLE else ".png"
    return name.with_suffix(suffix) if name.suffix.lower() in imaging.READABLE else Path(f"{name}{suffix}")


def _check_clashes(jobs: list[Job]) -> None:
    sources = {job.source.resolve() for job in jobs if job.source.is_file()}
    taken: dict[Path, Path] = {}
    for source, destination, _ in jobs:
        if destination.resolve() in sources:
            raise UpscaleError(f"{destination} is one of the inputs; give another -o")
        if destination in taken:
            raise UpscaleError(f"{taken[destination]} and {source} would both become {destination}")
        taken[destination] = source


def _upscale_file(job: Job, planner: Planner, args: argparse.Namespace) -> list[Comparison]:
    """Write one result; with ``--compare`` what the page shows of it."""
    if job.destination == _STDOUT and (sys.stdout.isatty() or sys.stdout.name == os.devnull):
        state = "a terminal" if sys.stdout.isatty() else "closed"
        raise UpscaleError(f"{_STDOUT}: standard output is {state}; redirect it to a file or a program")
    check_output(job.destination, args.overwrite)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", imaging.ImageWarning)
        image = imaging.read_image(job.source, unlimited=args.huge)
        start = time.perf_counter()
        plan = planner.plan(image)
    for warning in caught:
        _say(f"warning: {job.source}: {warning.message}")
    if not args.convert:
        imaging.check_writable(job.destination, plan.image.mode, plan.target[::-1], job.suffix)
    result = upscale(plan, progress=True)
    seconds = time.perf_counter() - start
    if args.convert:
        result = imaging.fitting(result, job.suffix)
    imaging.write_image(result, job.destination, job.suffix)
    if args.verbose:
        _say(
            f"{job.source} {image.width}x{image.height} -> {job.destination} {result.width}x{result.height}, "
            f"{seconds:.2f} s, {len(plan.tiles)} tiles"
        )
    if args.compare is None:
        return []
    return [beside_bicubic(job.source.name, image, Path(args.model or DEFAULT_MODEL).stem, result, seconds)]


def _say(message: str) -> None:
    tqdm.write(f"cmslap upscale: {message}", file=sys.stderr)
