"""``cmslap evaluate``: the tables of the field, on folders of images."""

import argparse
from pathlib import Path

from cmslap import options
from cmslap.files import check_output, write_json

_EXAMPLES = """\
examples:
  cmslap evaluate --data Set5 --data Set14
  cmslap evaluate --data Set5 --scale 4 -m runs/mine/best.safetensors --json mine.json
"""


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    parser = subparsers.add_parser(
        "evaluate",
        help="PSNR and SSIM on benchmark folders, bicubic beside the network",
        description="Measure a network and bicubic on folders of high-resolution images: each is shrunk as MATLAB's\n"
        "imresize does, enlarged again and compared on luma without a border of SCALE pixels.",
        epilog=_EXAMPLES,
    )
    parser.add_argument("--data", action="append", required=True, metavar="DIR", help="a folder of images; repeatable")
    served = "repeatable (default: those of 2, 3, 4 and 8 that the network serves)"
    parser.add_argument("-s", "--scale", action="append", type=int, metavar="N", help=served)
    options.add_model_option(parser, default=options.DEFAULT_MODEL)
    options.add_device_options(parser)
    parser.add_argument("--json", type=Path, metavar="OUT", help="write every image's figures and where they come from")
    parser.add_argument("--overwrite", action="store_true", help="replace OUT if it exists")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    if args.json is not None:
        check_output(args.json, args.overwrite)
    from cmslap.checkpoints.checkpoint import load_model
    from cmslap.devices import find_device, inference_autocast
    from cmslap.evaluation.evaluate import evaluate, table, to_json
    from cmslap.imaging import find_images

    device = find_device(args.device)
    model = load_model(args.model, device=device)
    scales = args.scale or [scale for scale in (2, 3, 4, 8) if scale in model.scales]
    for folder in args.data:
        find_images(folder)  # before minutes go into the folders before a wrong one
    with inference_autocast(args.precision, device):
        reports = [evaluate(model, folder, scales, progress=True) for folder in args.data]
    print(table(reports))
    if args.json is not None:
        write_json(args.json, to_json(reports, model, args.model, device, args.precision))
    return 0
