"""PSNR and SSIM as the super-resolution tables compute them: on luma in [0, 1], a border left out, in float64."""

import torch
from torch import Tensor

WINDOW, _SIGMA = 11, 1.5  # SSIM's Gaussian window
_C1, _C2 = 0.01**2, 0.03**2  # (K·L)² with L = 1


def _inner(x: Tensor, y: Tensor, border: int) -> tuple[Tensor, Tensor]:
    """Both images in float64 without their border."""
    if x.shape != y.shape or x.dim() < 2:
        raise ValueError(f"x and y must have one shape [..., H, W], got {list(x.shape)} and {list(y.shape)}")
    height, width = x.shape[-2:]
    if border < 0 or 2 * border >= min(height, width):
        raise ValueError(f"border must leave at least one pixel of {height}x{width}, got {border}")
    inside = (..., slice(border, height - border), slice(border, width - border))
    return x[inside].double(), y[inside].double()


def psnr(
    x: Tensor,  # [..., H, W] in [0, 1]
    y: Tensor,  # [..., H, W] in [0, 1]
    border: int = 0,
) -> Tensor:  # [...]
    """Peak signal-to-noise ratio in dB of images [..., H, W] in [0, 1], float64; infinite where the two are equal."""
    x, y = _inner(x, y, border)
    return -10 * torch.log10((x - y).square().mean(dim=(-2, -1)))


def ssim(
    x: Tensor,  # [..., H, W] in [0, 1]
    y: Tensor,  # [..., H, W] in [0, 1]
    border: int = 0,
) -> Tensor:  # [...]
    """Structural similarity (Wang et al., 2004) of images [..., H, W] in [0, 1], float64.

    11×11 Gaussian window with σ = 1.5, K = 0.01 and 0.03, over the positions where the window lies inside.
    """
    x, y = _inner(x, y, border)
    if min(x.shape[-2:]) < WINDOW:
        raise ValueError(f"ssim needs {WINDOW}x{WINDOW} pixels inside the border, got {x.shape[-2]}x{x.shape[-1]}")
    mean_x, mean_y, xx, yy, xy = _blur(torch.stack([x, y, x * x, y * y, x * y]))
    variance_x, variance_y, covariance = xx - mean_x**2, yy - mean_y**2, xy - mean_x * mean_y
    luminance = (2 * mean_x * mean_y + _C1) / (mean_x**2 + mean_y**2 + _C1)
    structure = (2 * covariance + _C2) / (variance_x + variance_y + _C2)
    return (luminance * structure).mean(dim=(-2, -1))


def _blur(x: Tensor) -> Tensor:  # [..., H, W] -> [..., H - 10, W - 10]
    """Gaussian means where the window lies inside; shifted sums, since double convolutions are slow on a CPU."""
    offset = torch.arange(WINDOW, dtype=torch.float64) - WINDOW // 2
    taps = torch.exp(-offset.square() / (2 * _SIGMA**2))
    taps = (taps / taps.sum()).tolist()
    for dim in (-2, -1):
        length = x.shape[dim] - WINDOW + 1
        blurred = x.narrow(dim, 0, length) * taps[0]
        for shift, tap in enumerate(taps[1:], start=1):
            blurred.add_(x.narrow(dim, shift, length), alpha=tap)
        x = blurred
    return x
