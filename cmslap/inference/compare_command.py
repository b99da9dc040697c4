"""``cmslap compare``: a page with before/after sliders."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from torch import nn
from tqdm import tqdm

from cmslap import __version__
from cmslap.checkpoints.checkpoint import load_model
from cmslap.devices import find_device
from cmslap.errors import UserError
from cmslap.files import check_output, replacing
from cmslap.imaging import find_images, read_image
from cmslap.inference.compare import ComparisonError, compare, shrink
from cmslap.inference.page import Comparison, render
from cmslap.inference.upscaling import DEFAULT_SCALE
from cmslap.precision import add_precision_option, inference_autocast

_DESCRIPTION = """\
Make a page that shows images enlarged by bicubic interpolation and by networks, under a slider and a magnifier.

The page is one file that needs no other, to be opened in a browser or sent to somebody. With --original, each IN is a
large image: it is shrunk first, and the page has it beside the enlargements, with PSNR and SSIM.
"""

_EXAMPLES = """\
examples:
  cmslap compare photo.jpg -o page.html
  cmslap compare photos/ -o page.html --original -m cms-lapsrn-d5r2 -m cms-lapsrn-d5r8
"""


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    parser = subparsers.add_parser(
        "compare",
        help="make a page with before/after sliders",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("inputs", nargs="+", metavar="IN", help="image or folder")
    parser.add_argument("-o", "--output", required=True, type=Path, metavar="PAGE.html", help="the page to write")
    parser.add_argument(
        "-s", "--scale", type=_scale, default=DEFAULT_SCALE, metavar="S", help="factor above 1 (default %(default)s)"
    )
    parser.add_argument(
        "-m", "--model", action="append", metavar="NAME|PATH", help="shipped network or checkpoint file; repeatable"
    )
    parser.add_argument(
        "--original", action="store_true", help="shrink each image first, and show it beside the results"
    )
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: the GPU if any")
    add_precision_option(parser)
    parser.add_argument("--overwrite", action="store_true", help="replace the page if it exists")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    check_output(args.output, args.overwrite)
    if args.original and args.scale != int(args.scale):
        raise ComparisonError(f"--original takes a whole --scale, got {args.scale:g}")
    device = find_device(args.device)
    models = load_models(args.model or ["cms-lapsrn"], device)
    inference_autocast(args.precision, device)
    sources = [file for name in args.inputs for file in (find_images(name) if Path(name).is_dir() else [Path(name)])]
    comparisons = []
    failures = 0
    for source in tqdm(sources, unit="image", disable=len(sources) == 1 or None):
        try:
            comparisons.append(_compare(source, models, args))
        except (UserError, OSError) as error:
            failures += 1
            tqdm.write(f"cmslap compare: error: {error}", file=sys.stderr)
    if comparisons:
        write_page(comparisons, args.output, args.scale, device, args.precision)
        print(f"{args.output}: {len(comparisons)} of {len(sources)} images, {_megabytes(args.output)}")
    return 1 if failures else 0


def load_models(names: list[str], device: torch.device) -> dict[str, nn.Module]:
    """The networks by the names a page calls them."""
    return {name if not Path(name).suffix else Path(name).stem: load_model(name, device=device) for name in names}


def write_page(comparisons: list[Comparison], path: Path, scale: float, device: torch.device, precision: str) -> None:
    count = "one image" if len(comparisons) == 1 else f"{len(comparisons)} images"
    place = f"{torch.get_num_threads()} CPU threads" if device.type == "cpu" else torch.cuda.get_device_name(device)
    note = f"cmslap {__version__}, PyTorch {torch.__version__}, {precision}, on {place}. Times are of one run each."
    with replacing(path) as temporary:
        temporary.write_text(render(comparisons, f"{count}, enlarged {scale:g}×", note), encoding="utf-8")


def _compare(source: Path, models: dict[str, nn.Module], args: argparse.Namespace) -> Comparison:
    image, original = read_image(source), None
    try:
        if args.original:
            image, original = shrink(image, int(args.scale))
        return compare(
            image, source.name, models, scale=args.scale, original=original, precision=args.precision, progress=True
        )
    except UserError as error:
        raise ComparisonError(f"{source}: {error}") from error


def _megabytes(path: Path) -> str:
    return f"{path.stat().st_size / 1e6:.1f} MB"


def _scale(text: str) -> float:
    from cmslap.inference.command import _scale

    return _scale(text)
