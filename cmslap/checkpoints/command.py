"""``cmslap convert``: anybody's checkpoint of these networks to ours; ``cmslap export``: ours to run without us."""

import argparse
from pathlib import Path

from cmslap.files import check_output

_CONVERT_EXAMPLES = """\
examples:
  cmslap convert MSLapSRN_D5R8.mat ms-lapsrn.safetensors
  cmslap convert state_dict.pth mine.safetensors --recursions 8 --shared-conv 3
"""


_EXPORT_DESCRIPTION = """\
Write a network as ONNX (.onnx) or as a torch.export program (.pt2), for any batch and image size, and check it.

The file takes `image` [batch, channels, height, width], float32 in [0, 1], and gives `enlarged`, not clamped.
Networks of one channel take luma (Y of BT.601 YCbCr, studio range, over 255), those of three take RGB. No Python is
needed to run the .onnx file: ONNX Runtime and others do, from C, C#, Java, JavaScript, ...
"""

_EXPORT_EXAMPLES = """\
examples:
  cmslap export cms-lapsrn cms-lapsrn-4x.onnx
  cmslap export runs/mine/best.safetensors mine-2x.pt2 --scale 2
"""


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    _add_convert(subparsers)
    _add_export(subparsers)


def _add_convert(subparsers: argparse._SubParsersAction) -> None:
    parser = subparsers.add_parser(
        "convert",
        help="turn MatConvNet and PyTorch checkpoints into safetensors",
        description="Turn an official MatConvNet model (.mat) or a PyTorch state_dict (.pth, .pt, .safetensors) of "
        "LapSRN, MS-LapSRN, CMS-LapSRN\nor (.mat only) VDSR into a safetensors file that says which network it is. No "
        "code in the input runs.",
        epilog=_CONVERT_EXAMPLES,
    )
    parser.add_argument("input", metavar="IN", type=Path, help="the checkpoint: .mat, .pth, .pt or .safetensors")
    parser.add_argument("output", metavar="OUT.safetensors", type=Path, help="the file to write")
    parser.add_argument("--overwrite", action="store_true", help="replace OUT if it exists")
    unsaid = parser.add_argument_group("what a bare state_dict does not say")
    unsaid.add_argument("--recursions", type=int, metavar="R", help="passes through the recursive block a level")
    unsaid.add_argument("--shared-conv", type=int, metavar="S", help="CMS-LapSRN: which convolution is shared")
    parser.set_defaults(run=convert)


def _add_export(subparsers: argparse._SubParsersAction) -> None:
    parser = subparsers.add_parser(
        "export",
        help="write a network as ONNX or torch.export program",
        description=_EXPORT_DESCRIPTION,
        epilog=_EXPORT_EXAMPLES,
    )
    parser.add_argument("model", metavar="NAME|PATH", help="shipped network or checkpoint file")
    parser.add_argument("output", metavar="OUT", type=Path, help="the file to write: .onnx or .pt2")
    parser.add_argument("-s", "--scale", type=int, default=4, metavar="N", help="factor (default: %(default)s)")
    parser.add_argument("--overwrite", action="store_true", help="replace OUT if it exists")
    parser.set_defaults(run=export)


def convert(args: argparse.Namespace) -> int:
    from cmslap.checkpoints.checkpoint import read_weights, save_model
    from cmslap.checkpoints.weights import CheckpointError

    if args.output.suffix != ".safetensors":
        raise CheckpointError(f"OUT must end in .safetensors, got {args.output}")
    check_output(args.output, args.overwrite)
    if not args.input.is_file():
        raise CheckpointError(f"{args.input}: no such file")
    try:
        model = read_weights(args.input).build(recursions=args.recursions, shared_conv=args.shared_conv)
    except CheckpointError as error:
        raise CheckpointError(f"{args.input}: {error}") from None
    save_model(model, args.output, {"converted_from": args.input.name})
    config = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in model.config().items())
    parameters = sum(parameter.numel() for parameter in model.parameters())
    print(f"{args.output}: {type(model).__name__}, {config}, {parameters:,} parameters")
    return 0


def export(args: argparse.Namespace) -> int:
    from cmslap.checkpoints.checkpoint import load_model
    from cmslap.checkpoints.export import ExportError, writer_of
    from cmslap.checkpoints.export import export as write

    writer_of(args.output)  # refuse before any work
    check_output(args.output, args.overwrite)
    model = load_model(args.model)
    try:
        model.check_scale(args.scale)
    except ValueError as error:
        raise ExportError(f"{args.model}: {error}") from None
    difference = write(model, args.output, args.scale)
    size = args.output.stat().st_size / 1e6
    print(
        f"{args.output}: {type(model).__name__}, {args.scale}x, {size:.1f} MB; differs by {difference:.1e} from PyTorch"
    )
    return 0
