"""``cmslap evaluate``: the tables of the field, on folders of images."""

from __future__ import annotations

import argparse
import hashlib
import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cmslap.checkpoints.checkpoint import find_weights, load_model
from cmslap.devices import find_device
from cmslap.evaluation.evaluate import Quality, Report, Row, evaluate
from cmslap.files import replacing
from cmslap.imaging import find_images
from cmslap.precision import PRECISIONS, add_precision_option, inference_autocast
from cmslap.provenance import provenance


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    parser = subparsers.add_parser(
        "evaluate",
        help="PSNR and SSIM on benchmark folders, bicubic beside the network",
        description="Measure a network and bicubic on folders of high-resolution images: each is shrunk as MATLAB's "
        "imresize does, enlarged again and compared on luma without a border of SCALE pixels.",
    )
    parser.add_argument("--data", action="append", required=True, metavar="DIR", help="a folder of images; repeatable")
    parser.add_argument(
        "-s", "--scale", action="append", type=int, metavar="N", help="repeatable (default: 2, 4 and 8)"
    )
    parser.add_argument(
        "-m",
        "--model",
        default="cms-lapsrn",
        metavar="NAME|PATH",
        help="shipped weights or a checkpoint (default: %(default)s)",
    )
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: the GPU if any")
    add_precision_option(parser)
    parser.add_argument("--json", type=Path, metavar="OUT", help="write every image's figures and where they come from")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    device = find_device(args.device)
    model = load_model(args.model, device=device)
    for folder in args.data:
        find_images(folder)  # before minutes go into the folders before a wrong one
    with inference_autocast(args.precision, device):
        reports = [evaluate(model, folder, args.scale or [2, 4, 8], progress=True) for folder in args.data]
    print(table(reports))
    if args.json:
        record = to_json(reports, model, args.model, device, args.precision)
        with replacing(args.json) as temporary:
            temporary.write_text(json.dumps(record, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    return 0


def table(reports: Iterable[Report]) -> str:
    """Means of every set and scale, for a terminal."""
    lines = [
        f"{'set':<12} {'scale':>5} {'bicubic':>16} {'model':>16} {'gain':>7}",
        f"{'':<18} {'PSNR / SSIM':>16} {'PSNR / SSIM':>16} {'dB':>7}",
    ]
    for report in reports:
        for scale in report.scales():
            mean = report.mean(scale)
            bicubic, network = _figures(mean.bicubic), _figures(mean.model)
            gain = mean.model.psnr - mean.bicubic.psnr
            lines.append(f"{report.data:<12} {f'{scale}x':>5} {bicubic:>16} {network:>16} {gain:>+7.2f}")
    return "\n".join(lines)


def _figures(quality: Quality) -> str:
    return f"{quality.psnr:.2f} / {quality.ssim:.4f}"


def to_json(
    reports: Iterable[Report], model: nn.Module, name: str, device: torch.device, precision: str
) -> dict[str, Any]:
    """Every figure, the weights they are for and what they were measured with."""
    return {
        "model": {
            "name": Path(name).name,
            "sha256": hashlib.sha256(find_weights(name).read_bytes()).hexdigest(),
            "architecture": type(model).__name__,
            "config": model.config(),
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
        },
        "precision": str(PRECISIONS[precision]).removeprefix("torch."),
        "provenance": provenance(device),
        "results": [
            {"data": report.data, "scale": scale, **_row(report.mean(scale)), "images": _images(report, scale)}
            for report in reports
            for scale in report.scales()
        ],
    }


def _images(report: Report, scale: int) -> list[dict[str, Any]]:
    return [{"image": row.image, **_row(row)} for row in report.rows if row.scale == scale]


def _row(row: Row) -> dict[str, Any]:
    return {"bicubic": _quality(row.bicubic), "model": _quality(row.model)}


def _quality(quality: Quality) -> dict[str, float | None]:
    """JSON has no infinity: the PSNR of two equal images is null."""
    return {"psnr": quality.psnr if math.isfinite(quality.psnr) else None, "ssim": quality.ssim}
