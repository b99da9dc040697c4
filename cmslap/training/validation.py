"""Validation while training: PSNR of the luma, the border of ``scale`` pixels left out, LR made by MATLAB's bicubic.

The tables of ``cmslap evaluate`` go through RGB and 8 bits as the literature does; this one stays in float, and
networks of luma in that.
"""

from pathlib import Path

from torch import Tensor

from cmslap.evaluation.evaluate import enlarge
from cmslap.evaluation.metrics import psnr
from cmslap.imaging import find_images, imresize, luma, read_planes
from cmslap.models import Network
from cmslap.training.data import DataError


class ValidationSets:
    """The folders of the configuration, read once and named after their last component."""

    def __init__(self, folders: list[str], scales: list[int], network: Network) -> None:
        self.scales, self.of_luma = scales, network.image_channels == 1
        self.images = {}
        for folder in folders:
            name = Path(folder).name
            if name in self.images:
                raise DataError(f"validation.data: two folders are named {name!r}")
            self.images[name] = [self._read(path) for path in find_images(folder, recursive=True)]

    def _read(self, path: Path) -> Tensor:  # [1 or 3, H, W] float64
        image = luma(read_planes(path)) if self.of_luma else read_planes(path)
        height, width = image.shape[1:]
        least = 3 * max(self.scales)  # a scale's border on both sides, and something between
        if min(height, width) < least:
            raise DataError(f"{path}: {height}x{width} pixels, validation needs {least}x{least}")
        return image

    def __bool__(self) -> bool:
        return bool(self.images)

    def measure(self, model: Network) -> dict[str, float]:
        """Mean PSNR in dB of every set and scale, as ``{"set5 4x": 31.5, ...}``."""
        means = {}
        for name, images in self.images.items():
            for scale in self.scales:
                values = [_psnr(model, image, scale) for image in images]
                means[f"{name} {scale}x"] = sum(values) / len(values)
        return means


def _psnr(model: Network, image: Tensor, scale: int) -> float:
    height, width = (length - length % scale for length in image.shape[1:])
    high = image[:, :height, :width]
    output = enlarge(model, imresize(high, scale=1 / scale), scale).clamp(0, 1)
    return psnr(luma(output), luma(high), border=scale).item()
