"""The figures of an evaluation as a table for a terminal and as JSON."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cmslap import options
from cmslap.checkpoints.checkpoint import find_weights
from cmslap.evaluation.evaluate import Quality, Report, Row
from cmslap.provenance import provenance


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
        "precision": options.PRECISIONS[precision],
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
