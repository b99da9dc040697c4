"""MS-LapSRN (Lai et al., PAMI 2019) and CMS-LapSRN (Hyun et al., NeurIPS 2024 workshop).

Every pyramid level runs the same recursive block, the same 2× feature upsampling and the same residual head.
The two networks differ in one thing: where the feature upsampling takes its kernel from.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from cmslap import ops
from cmslap.models.network import Pyramid, check_positive, length, unrounded


class _RecursivePyramid(Pyramid):
    """The pyramid both networks share; ``shared_conv`` None gives the upsampling a kernel of its own."""

    def __init__(self, scale: int, depth: int, recursions: int, channels: int, shared_conv: int | None) -> None:
        super().__init__(scale, depth, channels)
        self.recursions = check_positive("recursions", recursions)
        self.shared_conv = shared_conv
        self.recompute = False  # keep one activation a recursion for backward instead of one a convolution

        self.conv_in = nn.Conv2d(1, channels, 3, padding=1)
        # The block's D kernels, one below the other: conversion to channels_last refuses five dimensions.
        self.embedding_weight = nn.Parameter(torch.empty(depth * channels, channels, 3, 3))
        self.embedding_bias = nn.Parameter(torch.empty(depth, channels))
        if shared_conv is None:
            self.upsample_weight = nn.Parameter(torch.empty(channels, channels, 3, 3))
        else:
            self.register_parameter("upsample_weight", None)
        self.upsample_bias = nn.Parameter(torch.empty(channels))
        self.conv_res = nn.Conv2d(channels, 1, 3, padding=1)
        self.image_weight = nn.Parameter(torch.empty(1, 1, 4, 4))
        self.reset_parameters()

    def forward(
        self,
        y: Tensor,  # [N, 1, H, W] in [0, 1]
        scale: int | None = None,
    ) -> list[Tensor]:  # 2x, 4x, ...: [N, 1, 2^l H, 2^l W]
        """Super-resolve the luma ``y``; one image a pyramid level, not clamped.

        ``scale`` (a power of two, the model's own if None) says how many levels to run: all share their weights,
        so a model trained for 8x also runs 2x, 4x and 16x.
        """
        levels = self.check_scale(self.scale if scale is None else scale).bit_length() - 1
        level, head, options = self._arguments()
        with unrounded(y):
            u = ops.conv2d_lrelu(y, self.conv_in.weight, self.conv_in.bias, negative_slope=1.0)
        image, images = y, []
        for _ in range(levels - 1):
            u = ops.lapsrn_level(u, *level, *options)
            image = ops.residual_head(u, image, *head)
            images.append(image)
        images.append(ops.lapsrn_last_level(u, image, *level, *head, *options))
        return images

    def _arguments(self) -> tuple[tuple[object, ...], tuple[object, ...], tuple[object, ...]]:
        """What the operations take besides features and image: the level's, the head's, and the level's options."""
        level = (
            self.embedding_weight.view(self.depth, self.channels, self.channels, 3, 3),
            self.embedding_bias,
            self.shared_conv,
            self.upsample_bias,
            self.recursions,
        )
        head = (self.conv_res.weight, self.conv_res.bias, self.image_weight)
        return level, head, (self.negative_slope, self.recompute, self.upsample_weight)

    @classmethod
    def config_of(cls, tensors: Mapping[str, Tensor]) -> dict[str, int] | None:
        tied = "shared_conv" in cls.not_in_weights
        if "embedding_weight" not in tensors or ("upsample_weight" in tensors) is tied:
            return None
        return {"depth": length(tensors.get("embedding_bias")), "channels": length(tensors.get("conv_in.weight"))}

    def bytes_per_pixel(self, scale: int) -> int:
        """As :meth:`Network.bytes_per_pixel`.

        A last level that is folded into one operation keeps three maps of its input's size: u, which the source skip
        reads again and again, and one convolution's input and output; in bfloat16 they are half as large. A quarter
        more lies idle between operations.
        """
        return 4 * self.largest_map(scale) if self._folds_last_level() else super().bytes_per_pixel(scale)

    @torch.no_grad()
    def _folds_last_level(self) -> bool:
        """Whether inference, here and now, never makes the last and largest feature map."""
        level, head, options = self._arguments()
        u = self.upsample_bias[None, :, None, None]
        image = u[:, :1]
        return ops.is_fused(ops.lapsrn_last_level, u, image, *level, *head, *options)


class MSLapSRN(_RecursivePyramid):
    """MS-LapSRN: the feature upsampling has a 3×3 kernel of its own. 222,801 parameters with the defaults.

    Args:
        scale: upsampling factor, a power of two; says how many levels run, not how many weights there are.
        depth: convolutions in the recursive block (D).
        recursions: passes through the block a level (R); they share their weights.
        channels: feature channels (C).
    """

    not_in_weights = ("recursions",)

    def __init__(self, scale: int = 8, depth: int = 5, recursions: int = 8, channels: int = 64) -> None:
        super().__init__(scale, depth, recursions, channels, shared_conv=None)


class CMSLapSRN(_RecursivePyramid):
    """CMS-LapSRN: the feature upsampling reads the kernel of one of the block's convolutions. 185,937 parameters.

    Args:
        scale, depth, recursions, channels: as for :class:`MSLapSRN`.
        shared_conv: which convolution of the block, 1 to ``depth``; the paper finds the third of five best.
    """

    not_in_weights = ("recursions", "shared_conv")

    def __init__(
        self, scale: int = 8, depth: int = 5, recursions: int = 8, channels: int = 64, shared_conv: int = 3
    ) -> None:
        check_positive("depth", depth)
        if isinstance(shared_conv, bool) or not isinstance(shared_conv, int) or not 1 <= shared_conv <= depth:
            raise ValueError(f"shared_conv must be a convolution of the block, 1 to depth={depth}, got {shared_conv!r}")
        super().__init__(scale, depth, recursions, channels, shared_conv)
