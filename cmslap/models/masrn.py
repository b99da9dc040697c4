"""MASRN: one extraction and one refine block for scales 2, 3 and 4, and an upscale block for each.

The structure is that of "Multi scale Super-Resolution with fewer parameters by using Asymmetric convolution and
Share net". Its own network failed; docs/masrn.md says why, and what is different here.
"""

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cmslap import ops
from cmslap.models.bicubic import enlarge
from cmslap.models.network import Network, check_positive, length, unrounded

SIZES = (3, 5, 7, 9)  # of the extraction's kernels, a block each
REFINE_SIZES = ((1, 3), (3, 5), (5, 7), (7, 9))  # of the refine block's kernels, a branch each
REFINE_CHANNELS = 16


class Pair(nn.Module):
    """A 1×k and a k×1 convolution with nothing between them: a k×k convolution of 2k·C² weights."""

    def __init__(self, channels: int, size: int) -> None:
        super().__init__()
        self.size = size
        self.horizontal = nn.Parameter(torch.empty(channels, channels, 1, size))
        self.vertical = nn.Parameter(torch.empty(channels, channels, size, 1))
        self.bias = nn.Parameter(torch.empty(channels))

    def forward(self, x: Tensor, negative_slope: float) -> Tensor:  # [N, C, H, W], twice
        """The pair, and φ with this slope (1: none, 0: ReLU).

        3×3 kernels are multiplied out, as the fused convolution takes fewer multiplications than the pair; larger
        ones have no such kernel, and as a pair they take fewer than multiplied out.
        """
        if self.size == 3:
            kernel = torch.einsum("omk,mil->oikl", self.vertical[..., 0], self.horizontal[:, :, 0])
            return ops.conv2d_lrelu(x, kernel, self.bias, negative_slope=negative_slope)
        reach = self.size // 2
        x = F.conv2d(F.conv2d(x, self.horizontal, padding=(0, reach)), self.vertical, self.bias, padding=(reach, 0))
        return x if negative_slope == 1.0 else F.leaky_relu(x, negative_slope)


class ExtractionBlock(nn.Module):
    """Two residual units of two pairs each, all of one size."""

    def __init__(self, channels: int, size: int) -> None:
        super().__init__()
        self.pairs = nn.ModuleList(Pair(channels, size) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:  # [N, C, H, W], twice
        for first, second in (self.pairs[:2], self.pairs[2:]):
            x = x + second(first(x, 0.0), 1.0)
        return x


class _Upscale(nn.Module):
    """Features to an RGB image of one scale: 3×3 convolutions and pixel shuffles, 4x in two steps of 2x."""

    def __init__(self, channels: int, scale: int) -> None:
        super().__init__()
        self.steps = (2, 2) if scale == 4 else (scale,)
        self.convs = nn.ModuleList(nn.Conv2d(channels, channels * step**2, 3, padding=1) for step in self.steps)
        self.conv_out = nn.Conv2d(channels, 3, 3, padding=1)

    def forward(self, features: Tensor) -> Tensor:  # [N, C, H, W] -> [N, 3, scale H, scale W]
        for conv, step in zip(self.convs, self.steps, strict=True):
            features = F.pixel_shuffle(ops.conv2d_lrelu(features, conv.weight, conv.bias, negative_slope=1.0), step)
        return ops.conv2d_lrelu(features, self.conv_out.weight, self.conv_out.bias, negative_slope=1.0)


class _Refine(nn.Module):
    """What four branches side by side, of kernels from 1 to 9, add to an image."""

    def __init__(self) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(3, REFINE_CHANNELS, 3, padding=1)
        self.branches = nn.ModuleList(
            nn.ModuleList(Pair(REFINE_CHANNELS, size) for size in sizes) for sizes in REFINE_SIZES
        )
        self.conv_out = nn.Conv2d(len(REFINE_SIZES) * REFINE_CHANNELS, 3, 1)

    def forward(self, image: Tensor) -> Tensor:  # [N, 3, H, W], twice
        with unrounded(image):
            features = self.conv_in(image)
        branches = [second(first(features, 0.0), 0.0) for first, second in self.branches]
        return self.conv_out(torch.cat(branches, 1))


class MASRN(Network):
    """MASRN (T. Kim): RGB in, RGB out. 1,648,652 parameters with the default, of which 867,971 serve every scale.

    Args:
        channels: feature channels (C) of the extraction and upscale blocks.
    """

    image_channels = 3
    scales = (2, 3, 4)
    scales_in_words = "2, 3 and 4"

    def __init__(self, channels: int = 64) -> None:
        super().__init__()
        self.channels = check_positive("channels", channels)
        self.conv_in = nn.Conv2d(3, channels, 3, padding=1)
        self.blocks = nn.ModuleList(ExtractionBlock(channels, size) for size in SIZES)
        self.bottleneck = nn.Conv2d((len(SIZES) + 1) * channels, channels, 1)
        self.conv_mid = nn.Conv2d(channels, channels, 3, padding=1)
        self.upscale = nn.ModuleDict({str(scale): _Upscale(channels, scale) for scale in self.scales})
        self.refine = _Refine()
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Start as bicubic interpolation, but for what the small last kernels add; all others keep the variance."""
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            else:
                last = name.endswith("conv_out.weight")
                nn.init.normal_(parameter, std=1e-3 if last else 1 / math.sqrt(parameter[0].numel()))

    def forward(
        self,
        image: Tensor,  # [N, 3, H, W] in [0, 1]
        scale: int | None = None,
    ) -> list[Tensor]:  # one image, [N, 3, scale H, scale W]
        """Super-resolve the RGB ``image`` by ``scale`` (2 if None); not clamped."""
        scale = self.check_scale(2 if scale is None else scale)
        with unrounded(image):
            features = self.conv_in(image)
            enlarged = enlarge(image, scale)
        maps = [features]
        for block in self.blocks:
            maps.append(block(maps[-1]))
        features = self.bottleneck(torch.cat(maps, 1))
        features = ops.conv2d_lrelu(features, self.conv_mid.weight, self.conv_mid.bias, negative_slope=1.0)
        enlarged = enlarged + self.upscale[str(scale)](features)
        return [enlarged + self.refine(enlarged)]

    def receptive_field_radius(self, scale: int) -> int:
        """As :meth:`Network.receptive_field_radius`.

        From the output down: the refine block's widest branch and the two 3×3 kernels at its ends; the upscale
        block's convolutions, each at its own resolution; conv_mid, the four pairs of every block, and conv_in. (The
        path through the bicubic image is always the narrower one.)
        """
        first = -max(sum(size // 2 for size in sizes) for sizes in REFINE_SIZES) - 2
        for step in reversed(self.upscale[str(scale)].steps):
            first = first // step - 1
        return -first + 2 + 4 * sum(size // 2 for size in SIZES)

    def largest_map(self, scale: int) -> int:
        refine = len(REFINE_SIZES) * REFINE_CHANNELS * scale * scale
        return max(refine, self.channels * max(scale * scale, len(SIZES) + 1))

    @classmethod
    def config_of(cls, tensors: Mapping[str, Tensor]) -> dict[str, int] | None:
        if "blocks.0.pairs.0.horizontal" not in tensors:
            return None
        return {"channels": length(tensors.get("conv_in.weight"))}
