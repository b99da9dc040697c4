"""``cmslap compare``: a page with before/after sliders."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from cmslap import options
from cmslap.errors import UserError
from cmslap.files import check_output

if TYPE_CHECKING:
    from torch import nn

    from cmslap.inference.page import Comparison

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
    )
    parser.add_argument("inputs", nargs="+", metavar="IN", help="image or folder")
    parser.add_argument("-o", "--output", required=True, type=Path, metavar="PAGE.html", help="the page to write")
    parser.add_argument(
        "-s", "--scale", type=options.scale, default=options.DEFAULT_SCALE, metavar="S",
        help="factor above 1 (default %(default)s)",
    )  # fmt: skip
    options.add_model_option(parser, "; repeatable", action="append")
    parser.add_argument("--original", action="store_true", help="shrink each image first, and show it as well")
    options.add_device_options(parser)
    parser.add_argument("--overwrite", action="store_true", help="replace the page if it exists")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    check_output(args.output, args.overwrite)
    from tqdm import tqdm

    from cmslap.devices import find_device
    from cmslap.imaging import find_images
    from cmslap.inference.compare import ComparisonError
    from cmslap.inference.page import write_page
    from cmslap.precision import inference_autocast

    if args.original and args.scale != int(args.scale):
        raise ComparisonError(f"--original takes a whole --scale, got {args.scale:g}")
    device = find_device(args.device)
    models = _load(args.model or [options.DEFAULT_MODEL], args.device)
    inference_autocast(args.precision, device)  # refuse once, not once an image
    sources = [file for name in args.inputs for file in (find_images(name) if Path(name).is_dir() else [Path(name)])]
    comparisons = []
    for source in tqdm(sources, unit="image", disable=len(sources) == 1 or None):
        try:
            comparisons.append(_compare(source, models, args))
        except (UserError, OSError) as error:
            tqdm.write(f"cmslap compare: error: {error}", file=sys.stderr)
    if comparisons:
        write_page(comparisons, args.output, device, args.precision)
        print(f"{args.output}: a page of {len(comparisons)} of {len(sources)} images")
    return 0 if len(comparisons) == len(sources) else 1


def _load(names: list[str], device: str) -> dict[str, nn.Module]:
    """The networks by the names a page calls them: files without their folder, unless two would be called the same."""
    from cmslap.checkpoints.checkpoint import load_model

    short = [Path(name).stem if Path(name).suffix else name for name in names]
    shown = short if len(set(short)) == len(set(names)) else names
    return {label: load_model(name, device=device) for label, name in zip(shown, names, strict=True)}


def _compare(source: Path, models: dict[str, nn.Module], args: argparse.Namespace) -> Comparison:
    from cmslap.imaging import read_image
    from cmslap.inference.compare import ComparisonError, compare, shrink

    image, original = read_image(source), None
    try:
        if args.original:
            image, original = shrink(image, int(args.scale))
        return compare(
            image, source.name, models, scale=args.scale, original=original, precision=args.precision, progress=True
        )
    except UserError as error:
        raise ComparisonError(f"{source}: {error}") from error
