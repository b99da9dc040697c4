"""``cmslap convert``: anybody's checkpoint of these networks to ours."""

from __future__ import annotations

import argparse
from pathlib import Path

from cmslap.files import check_output

_EXAMPLES = """\
examples:
  cmslap convert MSLapSRN_D5R8.mat ms-lapsrn.safetensors
  cmslap convert state_dict.pth mine.safetensors --recursions 8 --shared-conv 3
"""


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    parser = subparsers.add_parser(
        "convert",
        help="turn MatConvNet and PyTorch checkpoints into safetensors",
        description="Turn an official MatConvNet model (.mat) or a PyTorch state_dict (.pth, .pt, .safetensors) of "
        "LapSRN, MS-LapSRN or CMS-LapSRN\ninto a safetensors file that says which network it is. No code in the input "
        "runs.",
        epilog=_EXAMPLES,
    )
    parser.add_argument("input", metavar="IN", type=Path, help="the checkpoint: .mat, .pth, .pt or .safetensors")
    parser.add_argument("output", metavar="OUT.safetensors", type=Path, help="the file to write")
    parser.add_argument("--overwrite", action="store_true", help="replace OUT if it exists")
    unsaid = parser.add_argument_group("what a bare state_dict does not say")
    unsaid.add_argument("--recursions", type=int, metavar="R", help="passes through the recursive block a level")
    unsaid.add_argument("--shared-conv", type=int, metavar="S", help="CMS-LapSRN: which convolution is shared")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from cmslap.checkpoints.checkpoint import read_weights, save_model
    from cmslap.checkpoints.weights import CheckpointError

    if args.output.suffix != ".safetensors":
        raise CheckpointError(f"OUT must end in .safetensors, got {args.output}")
    check_output(args.output, args.overwrite)
    if not args.input.is_file():
        raise CheckpointError(f"{args.input}: no such file")
    try:
        model = read_weights(args.input).complete(recursions=args.recursions, shared_conv=args.shared_conv).build()
    except CheckpointError as error:
        raise CheckpointError(f"{args.input}: {error}") from None
    save_model(model, args.output, {"converted_from": args.input.name})
    config = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in model.config().items())
    parameters = sum(parameter.numel() for parameter in model.parameters())
    print(f"{args.output}: {type(model).__name__}, {config}, {parameters:,} parameters")
    return 0
