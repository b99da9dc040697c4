"""``cmslap export``: a network as a file that runs without this package."""

from __future__ import annotations

import argparse
from pathlib import Path

_DESCRIPTION = """\
Write a network as ONNX (.onnx) or as a torch.export program (.pt2), for any batch and image size, and check it.

The file takes `image` [batch, channels, height, width], float32 in [0, 1], and gives `enlarged`, not clamped.
Networks of one channel take luma (Y of BT.601 YCbCr, studio range, over 255), those of three take RGB. No Python is
needed to run the .onnx file: ONNX Runtime and others do, from C, C#, Java, JavaScript, ...
"""

_EXAMPLES = """\
examples:
  cmslap export cms-lapsrn cms-lapsrn-4x.onnx
  cmslap export runs/mine/best.safetensors mine-2x.pt2 --scale 2
"""


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    parser = subparsers.add_parser(
        "export", help="write a network as ONNX or torch.export program", description=_DESCRIPTION, epilog=_EXAMPLES
    )
    parser.add_argument("model", metavar="NAME|PATH", help="shipped network or checkpoint file")
    parser.add_argument("output", metavar="OUT", type=Path, help="the file to write: .onnx or .pt2")
    parser.add_argument("-s", "--scale", type=int, default=4, metavar="N", help="factor (default: %(default)s)")
    parser.add_argument("--overwrite", action="store_true", help="replace OUT if it exists")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from cmslap.checkpoints.checkpoint import load_model
    from cmslap.checkpoints.export import ExportError, export, writer_of
    from cmslap.files import check_output

    writer_of(args.output)  # refuse before any work
    check_output(args.output, args.overwrite)
    model = load_model(args.model)
    try:
        model.check_scale(args.scale)
    except ValueError as error:
        raise ExportError(f"{args.model}: {error}") from None
    difference = export(model, args.output, args.scale)
    size = args.output.stat().st_size / 1e6
    print(
        f"{args.output}: {type(model).__name__}, {args.scale}x, {size:.1f} MB; differs by {difference:.1e} from PyTorch"
    )
    return 0
