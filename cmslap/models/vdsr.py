"""VDSR (Kim et al., CVPR 2016) and Asym_VDSR, in which a pair of 3×1 and 1×3 stands for each middle 3×3.

The image is enlarged by bicubic interpolation first; twenty convolutions then add what is missing. So one set of
weights serves every scale that it was trained for, and gives something for any other.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from cmslap import ops
from cmslap.models.bicubic import enlarge, first_pixel
from cmslap.models.network import Network, check_positive, length, unrounded


class _VDSR(Network):
    """What both share: everything but where the middle kernels come from."""

    scales = range(2, 2**30 + 1)
    scales_in_words = "whole numbers, 2 or more"

    def __init__(self, depth: int, channels: int) -> None:
        super().__init__()
        self.depth = check_positive("depth", depth)
        if depth < 3:
            raise ValueError(f"depth must count the first, the last and a middle one, so 3 or more, got {depth}")
        self.channels = check_positive("channels", channels)
        self.conv_in = nn.Conv2d(1, channels, 3, padding=1)
        self.middle_bias = nn.Parameter(torch.empty(depth - 2, channels))
        self.conv_out = nn.Conv2d(channels, 1, 3, padding=1)

    def reset_parameters(self) -> None:
        """Start as He et al. do, every kernel N(0, 2/fan_in), but with a last one so small that bicubic comes out."""
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            else:
                last = name == "conv_out.weight"
                nn.init.normal_(parameter, std=1e-3 if last else math.sqrt(2 / parameter[0].numel()))

    def middle_kernels(self) -> Tensor:  # [depth - 2, C, C, 3, 3]
        raise NotImplementedError

    def forward(
        self,
        y: Tensor,  # [N, 1, H, W] in [0, 1]
        scale: int | None = None,
    ) -> list[Tensor]:  # one image, [N, 1, scale H, scale W]
        """Super-resolve the luma ``y`` by a whole ``scale`` (2 if None); not clamped."""
        return [self.restore(enlarge(y, self.check_scale(2 if scale is None else scale)))]

    def restore(self, image: Tensor) -> Tensor:  # [N, 1, H, W], twice
        """A bicubic enlargement with what it lacks: the network proper."""
        with unrounded(image):
            features = ops.conv2d_lrelu(image, self.conv_in.weight, self.conv_in.bias, negative_slope=0.0)
        for kernel, bias in zip(self.middle_kernels(), self.middle_bias, strict=True):
            features = ops.conv2d_lrelu(features, kernel, bias, negative_slope=0.0)
        return image + ops.conv2d_lrelu(features, self.conv_out.weight, self.conv_out.bias, negative_slope=1.0)

    def receptive_field_radius(self, scale: int) -> int:
        """As :meth:`Network.receptive_field_radius`: one target pixel a convolution, then bicubic's."""
        return -first_pixel(-self.depth, scale)

    def largest_map(self, scale: int) -> int:
        return self.channels * scale * scale

    @classmethod
    def config_of(cls, tensors: Mapping[str, Tensor]) -> dict[str, int] | None:
        if cls.middle not in tensors or "conv_in.weight" not in tensors:
            return None
        return {"depth": length(tensors.get("middle_bias")) + 2, "channels": length(tensors["conv_in.weight"])}


class VDSR(_VDSR):
    """VDSR (Kim et al., CVPR 2016). 664,704 weights and 1,217 biases with the defaults.

    Args:
        depth: convolutions, the first and the last one included.
        channels: feature channels (C).
    """

    middle = "middle_weight"

    def __init__(self, depth: int = 20, channels: int = 64) -> None:
        super().__init__(depth, channels)
        # The kernels lie one below the other: conversion to channels_last refuses five dimensions.
        self.middle_weight = nn.Parameter(torch.empty((depth - 2) * channels, channels, 3, 3))
        self.reset_parameters()

    def middle_kernels(self) -> Tensor:
        return self.middle_weight.view(self.depth - 2, self.channels, self.channels, 3, 3)


class AsymVDSR(_VDSR):
    """Asym_VDSR (T. Kim): 3×1 and 1×3 in the place of each middle kernel. 443,520 weights and 1,217 biases by default.

    Nothing stands between the two, so together they are one 3×3 convolution, with zero padding at the borders too (a
    column of zeros stays one under 3×1). The kernels are multiplied out once a call, which costs as much as 64 pixels
    do, and the network runs as VDSR does: fewer multiplications than the pair takes, and one feature map where the
    pair makes two.

    Args:
        depth, channels: as for :class:`VDSR`.
    """

    middle = "vertical_weight"

    def __init__(self, depth: int = 20, channels: int = 64) -> None:
        super().__init__(depth, channels)
        self.vertical_weight = nn.Parameter(torch.empty((depth - 2) * channels, channels, 3, 1))
        self.horizontal_weight = nn.Parameter(torch.empty((depth - 2) * channels, channels, 1, 3))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """As VDSR, but for the first kernel of a pair, N(0, 1/fan_in): no φ follows that takes half of the power."""
        super().reset_parameters()
        with torch.no_grad():
            self.vertical_weight.div_(math.sqrt(2))

    def middle_kernels(self) -> Tensor:
        """Σₘ H[o, m, 0, l] · V[m, i, k, 0] of every pair."""
        vertical = self.vertical_weight.view(self.depth - 2, self.channels, self.channels, 3)
        horizontal = self.horizontal_weight.view(self.depth - 2, self.channels, self.channels, 3)
        return torch.einsum("doml,dmik->doikl", horizontal, vertical)
