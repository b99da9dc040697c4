"""Validation while training: PSNR of the luma, the border of ``scale`` pixels left out, LR made by MATLAB's bicubic.

The tables of ``cmslap evaluate`` go through RGB and 8 bits as the literature does; this one stays in float luma.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from cmslap.evaluation.metrics import psnr
from cmslap.imaging.files import find_images
from cmslap.imaging.resize import imresize
from cmslap.training.data import DataError, read_luma


class ValidationSets:
    """The folders of the configuration, read once and named after their last component."""

    def __init__(self, folders: list[str], scales: list[int]) -> None:
        self.scales = scales
        self.lumas = {}
        for folder in folders:
            name = Path(folder).name
            if name in self.lumas:
                raise DataError(f"validation.data: two folders are named {name!r}")
            self.lumas[name] = [self._read(path) for path in find_images(folder, recursive=True)]

    def _read(self, path: Path) -> Tensor:  # [H, W] float64
        luma = read_luma(path)
        least = 3 * max(self.scales)  # a scale's border on both sides, and something between
        if min(luma.shape) < least:
            raise DataError(f"{path}: {luma.shape[0]}x{luma.shape[1]} pixels, validation needs {least}x{least}")
        return luma

    def __bool__(self) -> bool:
        return bool(self.lumas)

    def measure(self, model: nn.Module, device: torch.device) -> dict[str, float]:
        """Mean PSNR in dB of every set and scale, as ``{"set5 4x": 31.5, ...}``."""
        means = {}
        for name, lumas in self.lumas.items():
            for scale in self.scales:
                values = [_psnr(model, luma, scale, device) for luma in lumas]
                means[f"{name} {scale}x"] = sum(values) / len(values)
        return means


@torch.no_grad()
def _psnr(model: nn.Module, luma: Tensor, scale: int, device: torch.device) -> float:
    height, width = (length - length % scale for length in luma.shape)
    high = luma[:height, :width]
    low = imresize(high, scale=1 / scale).float().to(device)
    output = model(low[None, None], scale)[-1][0, 0]
    return psnr(output.double().cpu().clamp(0, 1), high, border=scale).item()
