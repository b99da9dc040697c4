"""``cmslap upscale``: images in, larger images out."""

from __future__ import annotations

import argparse
import glob
import math
import os
import re
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tqdm import tqdm

from cmslap.errors import UserError
from cmslap.imaging import (
    WRITABLE,
    ImageError,
    ImageWarning,
    check_writable,
    find_images,
    read_image,
    write_image,
)
from cmslap.inference.plan import DEFAULT_SCALE, Planner, UpscaleError
from cmslap.inference.upscaling import run as upscale
from cmslap.precision import add_precision_option

_DESCRIPTION = f"""\
Enlarge images with a Laplacian-pyramid network.

IN are files, folders and patterns such as 'photos/*.png'. OUT is a file, or a folder: it must be a folder for several
images. An image keeps its name, and its format if that is one of {" ".join(WRITABLE)}; others become .png.
Images that exist are not replaced unless --overwrite is given.
"""


class CommandError(UserError, ValueError):
    """Inputs and an output that do not fit together."""


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    parser = subparsers.add_parser(
        "upscale",
        help="enlarge images",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("inputs", nargs="+", metavar="IN", help="image, folder or pattern")
    parser.add_argument("-o", "--output", required=True, metavar="OUT", type=str, help="image or folder to write")
    how_large = parser.add_mutually_exclusive_group()
    how_large.add_argument(
        "-s", "--scale", type=_scale, metavar="S", help=f"factor above 1, not only whole ones (default {DEFAULT_SCALE})"
    )
    how_large.add_argument("--size", type=_size, metavar="WxH", help="size of the result in pixels, such as 1920x1080")
    parser.add_argument("-m", "--model", metavar="NAME|PATH", help="shipped network or checkpoint file")
    parser.add_argument(
        "-t", "--tile", type=_tile, metavar="N",
        help="run N input pixels a side at a time, 0 for all (default: divide where the network would take over half "
        "of the free memory or, on a CPU, 1 GiB; but for 1 GiB's sake not into tiles that would mostly repeat work)",
    )  # fmt: skip
    parser.add_argument("--ensemble", action="store_true", help="average over eight flips and rotations; 8x the time")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: the GPU if any")
    add_precision_option(parser)
    parser.add_argument("-r", "--recursive", action="store_true", help="enter folders in folders, and keep their tree")
    parser.add_argument("--overwrite", action="store_true", help="replace images that exist")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    jobs = pair(args.inputs, args.output, args.recursive)
    planner = Planner(
        args.model, args.scale, size=args.size, tile=args.tile, ensemble=args.ensemble, device=args.device,
        precision=args.precision,
    )  # fmt: skip
    failures = 0
    for source, destination in tqdm(jobs, unit="image", disable=len(jobs) == 1 or None):
        try:
            _upscale_file(source, destination, planner, args.overwrite)
        except (UserError, OSError) as error:
            failures += 1
            _say(f"error: {error}")
    if failures or len(jobs) > 1:
        print(f"{len(jobs) - failures} of {len(jobs)} images written to {args.output}, {failures} failed")
    return 1 if failures else 0


def pair(inputs: list[str], output: str, recursive: bool = False) -> list[tuple[Path, Path]]:
    """What is read and what is written, a pair an image; refuses clashes before any work is done.

    Raises :class:`CommandError`.
    """
    out = Path(output)
    found = list(dict.fromkeys(pair for name in inputs for pair in _find(name, recursive, out)))
    one_image = len(found) == 1 and not any(Path(name).is_dir() for name in inputs)
    is_folder = out.is_dir() or output.endswith(("/", os.sep)) or not out.suffix
    if one_image and not is_folder:
        jobs = [(found[0][0], out)]
    elif out.is_file() or (not is_folder and out.suffix.lower() in WRITABLE):
        raise CommandError(f"-o {output} is a file; several images, or those of a folder, need a folder")
    else:
        jobs = [(source, out / _output_name(below)) for source, below in found]
    _check_clashes(jobs)
    return jobs


def _find(name: str, recursive: bool, out: Path) -> Iterator[tuple[Path, Path]]:
    """The images ``name`` stands for, each with its path below the folder that was named."""
    path = Path(name)
    if path.is_dir():
        for file in find_images(path, recursive):
            if not (recursive and _lies_in(file, out, path)):
                yield file, file.relative_to(path)
    elif path.exists():
        yield path, Path(path.name)
    else:
        matches = [Path(match) for match in sorted(glob.glob(name, recursive=True)) if Path(match).is_file()]  # noqa: PTH207
        if not matches:
            raise CommandError(f"{name}: no {'file matches' if glob.has_magic(name) else 'such file or folder'}")
        for match in matches:
            yield match, Path(match.name)


def _lies_in(file: Path, out: Path, folder: Path) -> bool:
    """Whether ``file`` is a result of an earlier run: ``out`` lies below ``folder`` and the file below ``out``."""
    out = out.resolve()
    return folder.resolve() in out.parents and out in file.resolve().parents


def _output_name(name: Path) -> Path:
    return name if name.suffix.lower() in WRITABLE else name.with_suffix(".png")


def _check_clashes(jobs: list[tuple[Path, Path]]) -> None:
    sources = {source.resolve() for source, _ in jobs}
    taken: dict[Path, Path] = {}
    for source, destination in jobs:
        if destination.resolve() in sources:
            raise CommandError(f"{destination} is one of the inputs; give another -o")
        if destination in taken:
            raise CommandError(f"{taken[destination]} and {source} would both become {destination}")
        taken[destination] = source


def _upscale_file(source: Path, destination: Path, planner: Planner, overwrite: bool) -> None:
    if destination.exists() and not overwrite:
        raise CommandError(f"{destination} exists; give --overwrite to replace it")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ImageWarning)
        image = read_image(source)
        with _naming(source):
            plan = planner.plan(image)
    for warning in caught:
        _say(f"warning: {source}: {warning.message}")
    check_writable(destination, plan.image.mode, plan.target[::-1])
    with _naming(source):
        result = upscale(plan, progress=True)
    write_image(result, destination)


@contextmanager
def _naming(source: Path) -> Iterator[None]:
    """What is wrong with an image, with its name."""
    try:
        yield
    except (ImageError, UpscaleError) as error:
        raise CommandError(f"{source}: {error}") from error


def _say(message: str) -> None:
    tqdm.write(f"cmslap upscale: {message}", file=sys.stderr)


def _scale(text: str) -> float:
    try:
        scale = float(text)
    except ValueError:
        scale = math.nan
    if not 1 < scale < math.inf:
        raise argparse.ArgumentTypeError(f"must be a number above 1, got {text!r}")
    return scale


def _size(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"([1-9]\d*)[xX×]([1-9]\d*)", text)
    if not match:
        raise argparse.ArgumentTypeError(f"must be WIDTHxHEIGHT in pixels, such as 1920x1080, got {text!r}")
    return int(match[1]), int(match[2])


def _tile(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"must be a number of pixels, 0 or more, got {text!r}")
    return int(text)
