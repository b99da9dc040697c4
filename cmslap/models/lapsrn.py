"""LapSRN (Lai et al., CVPR 2017): no recursion, no sharing across levels, activations after the convolutions."""

import re
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from cmslap import ops
from cmslap.models.network import Pyramid, length, unrounded


class _Level(nn.Module):
    """One pyramid level: ``depth`` conv+φ, 2× transposed conv+φ, residual head."""

    def __init__(self, depth: int, channels: int, negative_slope: float) -> None:
        super().__init__()
        self.negative_slope = negative_slope
        self.convs = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in range(depth))
        self.upsample_weight = nn.Parameter(torch.empty(channels, channels, 3, 3))
        self.upsample_bias = nn.Parameter(torch.empty(channels))
        self.conv_res = nn.Conv2d(channels, 1, 3, padding=1)
        self.image_weight = nn.Parameter(torch.empty(1, 1, 4, 4))

    def forward(self, u: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
        for conv in self.convs:
            u = ops.conv2d_lrelu(u, conv.weight, conv.bias, negative_slope=self.negative_slope)
        u = ops.tied_conv_transpose2d(u, self.upsample_weight, self.upsample_bias)
        u = nn.functional.leaky_relu(u, self.negative_slope)
        return u, ops.residual_head(u, image, self.conv_res.weight, self.conv_res.bias, self.image_weight)


class LapSRN(Pyramid):
    """LapSRN (Lai et al., CVPR 2017). At 4x 814,242 parameters, 812,768 of them kernels (the papers' 812k).

    Args:
        scale: upsampling factor, a power of two; every level has weights of its own.
        depth: convolutions a level.
        channels: feature channels.
    """

    def __init__(self, scale: int = 4, depth: int = 10, channels: int = 64) -> None:
        super().__init__(scale, depth, channels)
        self.scales = tuple(served for served in Pyramid.scales if served <= scale)
        self.scales_in_words = f"powers of two up to {scale}, the levels this LapSRN has weights for"
        self.conv_in = nn.Conv2d(1, channels, 3, padding=1)
        self.levels = nn.ModuleList(_Level(depth, channels, self.negative_slope) for _ in range(scale.bit_length() - 1))
        self.reset_parameters()

    @classmethod
    def config_of(cls, tensors: Mapping[str, Tensor]) -> dict[str, int] | None:
        if "levels.0.image_weight" not in tensors:
            return None
        levels = sum(re.fullmatch(r"levels\.\d+\.image_weight", name) is not None for name in tensors)
        depth = sum(re.fullmatch(r"levels\.0\.convs\.\d+\.weight", name) is not None for name in tensors)
        return {"scale": 2**levels, "depth": depth, "channels": length(tensors.get("conv_in.weight"))}

    def forward(
        self,
        y: Tensor,  # [N, 1, H, W] in [0, 1]
        scale: int | None = None,
    ) -> list[Tensor]:  # 2x, 4x, ...: [N, 1, 2^l H, 2^l W]
        """Super-resolve the luma ``y``; one image a pyramid level, not clamped. ``scale`` at most the model's own."""
        scale = self.check_scale(self.scale if scale is None else scale)
        with unrounded(y):
            u = nn.functional.leaky_relu(self.conv_in(y), self.negative_slope)
        image, images = y, []
        for level in self.levels[: scale.bit_length() - 1]:
            u, image = level(u, image)
            images.append(image)
        return images
