"""``cmslap upscale``: images or videos in, larger ones out."""

from __future__ import annotations

import argparse
from pathlib import Path

from cmslap import options, video
from cmslap.errors import require

_DESCRIPTION = """\
Enlarge images and videos.

IN are files, folders and patterns such as 'photos/*.png'; - is standard input. OUT is a file, a folder, or - for
standard output; several images need a folder. An image keeps its name, and its format where that can be written (png,
jpg, webp, tif); others become .png. Images that exist are not replaced unless --overwrite is given.

A video (mp4, mkv, mov, webm and others) keeps its time stamps, colors, sound and subtitles. One that was killed goes on
when the same command is given again.
"""

_EXAMPLES = """\
examples:
  cmslap upscale photo.jpg -o large.png
  cmslap upscale holiday/ -o large/ --scale 2 --skip-existing
  cmslap upscale 'scans/*.tif' -o out/ --size 3840x2160
  cmslap upscale photo.jpg -o large.jpg -m cms-lapsrn-d5r8 --ensemble --compare page.html
  cmslap upscale movie.mp4 -o large.mp4 --scale 2 --codec hevc
  convert photo.heic png:- | cmslap upscale - -o - > large.png
"""


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    parser = subparsers.add_parser(
        "upscale", help="enlarge images and videos", description=_DESCRIPTION, epilog=_EXAMPLES
    )
    parser.add_argument("inputs", nargs="*", metavar="IN", help="image, video, folder, pattern, or - for stdin")
    parser.add_argument("-i", "--input", action="extend", nargs="+", default=[], metavar="IN", help="IN, as an option")
    parser.add_argument("-o", "--output", required=True, metavar="OUT", help="file or folder to write, - for stdout")
    _add_size_options(parser)
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
    _add_writing_options(parser)
    options.add_codec_options(parser.add_argument_group("videos"))
    parser.add_argument(
        "--huge", action="store_true", help="read images over the limit that guards against hostile ones"
    )
    parser.add_argument("-v", "--verbose", action="store_true", help="a line for each image that is written")
    parser.set_defaults(run=run, parser=parser)


def _add_size_options(parser: argparse.ArgumentParser) -> None:
    how_large = parser.add_mutually_exclusive_group()
    how_large.add_argument(
        "-s", "--scale", type=options.scale, metavar="S",
        help=f"factor above 1, not only whole ones (default {options.DEFAULT_SCALE})",
    )  # fmt: skip
    how_large.add_argument(
        "--size", type=options.size, metavar="WxH", help="size of the result in pixels, such as 1920x1080"
    )


def _add_writing_options(parser: argparse.ArgumentParser) -> None:
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


def run(args: argparse.Namespace) -> int:
    args.inputs += args.input
    if not args.inputs:
        args.parser.error("the following arguments are required: IN")
    if any(Path(name).suffix.lower() in video.SUFFIXES for name in args.inputs):
        require("a video", "video", "av")
        from cmslap.video.upscale import run as upscale_videos

        return upscale_videos(args)
    from cmslap.inference.batch import run as upscale_all

    return upscale_all(args)
