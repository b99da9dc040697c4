"""``cmslap compare``: a page with before/after sliders."""

from __future__ import annotations

import argparse
from pathlib import Path

from cmslap import options
from cmslap.files import check_output

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
        "compare", help="make a page with before/after sliders", description=_DESCRIPTION, epilog=_EXAMPLES
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
    from cmslap.inference.compare import run as compare_all

    return compare_all(args)
