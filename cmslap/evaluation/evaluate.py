"""Super-resolution benchmark: PSNR and SSIM of a network and of bicubic on folders of images.

The protocol of the published tables. The image is cropped at the end to a multiple of the scale and shrunk with
MATLAB's ``imresize`` in double precision, without rounding. A network of luma enlarges Y of the shrunken image's
YCbCr (BT.601, studio range), bicubic enlarges Cb and Cr, and the result goes back to RGB, where a network of RGB is
all the time. It is rounded to 8 bits. PSNR and SSIM compare Y of the two RGB images with a border of ``scale`` pixels
left out. Images stored as grayscale are compared as they are, the result rounded to 8 bits.

VDSR's published tables round luma, the original's and the result's, to 8 bits instead: its official weights have 37.51,
33.65 and 31.34 dB on Set5 at 2x, 3x and 4x so, and 37.58, 33.68 and 31.36 here.
"""

import hashlib
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from cmslap.checkpoints.checkpoint import find_weights
from cmslap.errors import UserError
from cmslap.evaluation.metrics import WINDOW, psnr, ssim
from cmslap.imaging import find_images, imresize, join_colour, luma, read_planes, split_colour
from cmslap.models import Network
from cmslap.options import PRECISIONS
from cmslap.provenance import provenance


class BenchmarkError(UserError, ValueError):
    """A folder, image or scale that cannot be measured."""


class Quality(NamedTuple):
    """PSNR in dB and SSIM."""

    psnr: float
    ssim: float


@dataclass(frozen=True)
class Row:
    """One image, or the mean of a set, at one scale."""

    image: str
    scale: int
    bicubic: Quality
    model: Quality


@dataclass(frozen=True)
class Report:
    """What :func:`evaluate` measured on one folder."""

    data: str
    rows: list[Row]

    def scales(self) -> list[int]:
        return sorted({row.scale for row in self.rows})

    def mean(self, scale: int) -> Row:
        """Mean over the images, as the tables print it."""
        rows = [row for row in self.rows if row.scale == scale]
        return Row("mean", scale, mean([row.bicubic for row in rows]), mean([row.model for row in rows]))


def mean(qualities: list[Quality]) -> Quality:
    """PSNR and SSIM, averaged each."""
    return Quality(*map(fmean, zip(*qualities, strict=True)))


def evaluate(model: Network, folder: str | Path, scales: Iterable[int], *, progress: bool = False) -> Report:
    """Measure ``model``, and bicubic beside it, on every image of a folder.

    Args:
        model: runs on its own device, in its own precision or the active autocast's.
        folder: images of any size and mode; deeper folders are not searched.
        scales: whole ones that the network serves.
        progress: show a progress bar where standard error is a terminal.

    Raises:
        BenchmarkError: an image that is too small, or a scale that cannot be.
        ImageError: no folder, no images in it, or one that cannot be read.
    """
    try:
        scales = [model.check_scale(scale) for scale in sorted(set(scales))]
    except ValueError as error:
        raise BenchmarkError(str(error)) from error
    paths = find_images(folder)
    rows = []
    hidden = None if progress else True  # None: shown on a terminal only
    with tqdm(total=len(paths) * len(scales), unit="image", disable=hidden, leave=False) as bar:
        for path in paths:
            image = read_hr_image(path)
            for scale in scales:
                bar.set_description(f"{path.name} {scale}x")
                rows.append(_measure(model, image, scale, path))
                bar.update()
    return Report(Path(folder).resolve().name, rows)


def read_hr_image(path: Path) -> Tensor:  # [1 or 3, H, W] float64, multiples of 1/255
    """Grayscale images in one channel, all others in RGB; transparency is dropped, 16 bits are rounded to 8."""
    return read_planes(path).mul(255).round() / 255


def _measure(model: Network, image: Tensor, scale: int, path: Path) -> Row:
    height, width = (length // scale * scale for length in image.shape[-2:])
    if min(height, width) < WINDOW + 2 * scale:
        size = f"{image.shape[-1]}x{image.shape[-2]}"
        raise BenchmarkError(f"{path}: {size} pixels are too few for {scale}x, which needs {WINDOW + 2 * scale} a side")
    high = image[:, :height, :width]
    low = imresize(high, 1 / scale)
    bicubic = quality(imresize(low, scale), high, scale)
    return Row(path.name, scale, bicubic, quality(enlarge(model, low, scale), high, scale))


@torch.inference_mode()
def enlarge(
    model: Network,
    low: Tensor,  # [1 or 3, H, W] float64 in [0, 1]
    scale: int,
) -> Tensor:  # [1 or 3, scale H, scale W] float64, not clamped
    """Super-resolve a gray or RGB image, [1 or 3, H, W] in [0, 1], by a network of luma with bicubic chroma."""
    weight = next(model.parameters())
    seen, chroma = split_colour(low, model.image_channels)
    larger = model(seen[None].to(weight.device, weight.dtype), scale)[-1][0].to(low.device, low.dtype)
    return join_colour(larger, imresize(chroma, scale), len(low))


def quality(
    result: Tensor,  # [1 or 3, H, W]
    truth: Tensor,  # as the result, multiples of 1/255
    scale: int,
) -> Quality:
    """PSNR and SSIM of an image rounded to 8 bits, on luma with a border of ``scale`` pixels left out."""
    result = result.clamp(0, 1).mul(255).round() / 255
    result, truth = luma(result), luma(truth)
    return Quality(psnr(result, truth, scale).item(), ssim(result, truth, scale).item())


def table(reports: Iterable[Report]) -> str:
    """Means of every set and scale, for a terminal."""
    lines = [
        f"{'set':<12} {'scale':>5} {'bicubic':>16} {'model':>16} {'gain':>7}",
        f"{'':<18} {'PSNR / SSIM':>16} {'PSNR / SSIM':>16} {'dB':>7}",
    ]
    for report in reports:
        for scale in report.scales():
            row = report.mean(scale)
            bicubic, network = (f"{quality.psnr:.2f} / {quality.ssim:.4f}" for quality in (row.bicubic, row.model))
            gain = row.model.psnr - row.bicubic.psnr
            lines.append(f"{report.data:<12} {f'{scale}x':>5} {bicubic:>16} {network:>16} {gain:>+7.2f}")
    return "\n".join(lines)


def to_json(
    reports: Iterable[Report], model: Network, name: str, device: torch.device, precision: str
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
        "precision": PRECISIONS[precision],
        "provenance": provenance(device),
        "results": [
            {
                "data": report.data,
                "scale": scale,
                **_figures(report.mean(scale)),
                "images": [{"image": row.image, **_figures(row)} for row in report.rows if row.scale == scale],
            }
            for report in reports
            for scale in report.scales()
        ],
    }


def _figures(row: Row) -> dict[str, dict[str, float | None]]:
    """JSON has no infinity: the PSNR of two equal images is null."""
    return {
        way: {"psnr": quality.psnr if math.isfinite(quality.psnr) else None, "ssim": quality.ssim}
        for way, quality in (("bicubic", row.bicubic), ("model", row.model))
    }
