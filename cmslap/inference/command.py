"""``cmslap upscale``: images or videos in, larger ones out; ``cmslap compare``: a page with before/after sliders."""

import argparse
from pathlib import Path

from cmslap import options, video
from cmslap.errors import require

_UPSCALE_DESCRIPTION = """\
Enlarge images and videos.

IN are files, folders and patterns such as 'photos/*.png'; - is standard input. OUT is a file, a folder, or - for
standard output; several images need a folder. An image keeps its name, and its format where that can be written (png,
jpg, webp, tif); others become .png. Images that exist are not replaced unless --overwrite is given.

A video (mp4, mkv, mov, webm and others) keeps its time stamps, colors, sound and subtitles. One that was killed goes on
when the same command is given again.
"""

_UPSCALE_EXAMPLES = """\
examples:
  cmslap upscale photo.jpg -o large.png
  cmslap upscale holiday/ -o large/ --scale 2 --skip-existing
  cmslap upscale 'scans/*.tif' -o out/ --size 3840x2160
  cmslap upscale photo.jpg -o large.jpg -m cms-lapsrn-d5r8 --ensemble --compare page.html
  cmslap upscale movie.mp4 -o large.mp4 --scale 2 --codec hevc
  convert photo.heic png:- | cmslap upscale - -o - > large.png
"""


_COMPARE_DESCRIPTION = """\
Make a page that shows images enlarged by bicubic interpolation and by networks, under a slider and a magnifier.

The page is one file that needs no other, to be opened in a browser or sent to somebody. With --original, each IN is a
large image: it is shrunk first, and the page has it beside the enlargements, with PSNR and SSIM.
"""

_COMPARE_EXAMPLES = """\
examples:
  cmslap compare photo.jpg -o page.html
  cmslap compare photos/ -o page.html --original -m cms-lapsrn-d5r2 -m cms-lapsrn-d5r8
"""


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    _add_upscale(subparsers)
    _add_compare(subparsers)


def _add_upscale(subparsers: argparse._SubParsersAction) -> None:
    parser = subparsers.add_parser(
        "upscale", help="enlarge images and videos", description=_UPSCALE_DESCRIPTION, epilog=_UPSCALE_EXAMPLES
    )
    parser.add_argument("inputs", nargs="*", metavar="IN", help="image, video, folder, pattern, or - for stdin")
    parser.add_argument("-i", "--input", action="extend", nargs="+", default=[], metavar="IN", help="IN, as an option")
    parser.add_argument("-o", "--output", required=True, metavar="OUT", help="file or folder to write, - for stdout")
    how_large = parser.add_mutually_exclusive_group()
    how_large.add_argument(
        "-s", "--scale", type=options.scale, metavar="S",
        help=f"factor above 1, not only whole ones (default {options.DEFAULT_SCALE})",
    )  # fmt: skip
    how_large.add_argument(
        "--size", type=options.size, metavar="WxH", help="size of the result in pixels, such as 1920x1080"
    )
    options.add_model_option(parser)
    parser.add_argument(
        "-t", "--tile", type=options.tile, metavar="N",
        help="run N input pixels a side at a time, 0 for all (default: as many as fit into half of the free memory "
        "and, on a CPU, about 1 GiB)",
    )  # fmt: skip
    parser.add_argument(
        "-x", "--ensemble", action="store_true", help="average over eight flips and rotations; 8x the time"
    )
    options.add_device_options(parser)
    parser.add_argument("-r", "--recursive", action="store_true", help="enter folders in folders, and keep their tree")
    parser.add_argument(
        "-f", "--format", choices=("png", "jpg", "webp", "tif"), help="of the results (default: by OUT's name, or IN's)"
    )
    parser.add_argument(
        "--convert", action="store_true",
        help="make what the format cannot hold fit: transparency becomes white, 16 bits become 8",
    )  # fmt: skip
    existing = parser.add_mutually_exclusive_group()
    existing.add_argument("--overwrite", action="store_true", help="replace images that exist")
    existing.add_argument("--skip-existing", action="store_true", help="leave images out that have a result already")
    page = "also write a page with sliders between bicubic and the results"
    parser.add_argument("--compare", type=Path, metavar="PAGE.html", help=page)
    options.add_codec_options(parser.add_argument_group("videos"))
    parser.add_argument(
        "--huge", action="store_true", help="read images over the limit that guards against hostile ones"
    )
    parser.add_argument("-v", "--verbose", action="store_true", help="a line for each image that is written")
    parser.set_defaults(run=upscale, parser=parser)


def _add_compare(subparsers: argparse._SubParsersAction) -> None:
    parser = subparsers.add_parser(
        "compare",
        help="make a page with before/after sliders",
        description=_COMPARE_DESCRIPTION,
        epilog=_COMPARE_EXAMPLES,
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
    parser.set_defaults(run=compare)


def upscale(args: argparse.Namespace) -> int:
    args.inputs += args.input
    if not args.inputs:
        args.parser.error("the following arguments are required: IN")
    if any(Path(name).suffix.lower() in video.SUFFIXES for name in args.inputs):
        require("a video", "video", "av")
        from cmslap.video.upscale import run
    else:
        from cmslap.inference.batch import run
    return run(args)


def compare(args: argparse.Namespace) -> int:
    from cmslap.inference.compare import run

    return run(args)
