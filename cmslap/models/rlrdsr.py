"""RLRD-SR (Ki and Kim, content-adaptive video super-resolution): a tiny network to send along with a video.

Head 3×3, N replicas of one light-weight residual dense block that share its parameters, tail 3×3 to scale² channels
and PixelShuffle, plus the bicubic image. The paper gives no widths; these are the ones its bit rates fit.
"""

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cmslap import ops
from cmslap.models.bicubic import bicubic_phases
from cmslap.models.network import Network, check_positive, length, unrounded


def _shuffled(phases: Tensor, scale: int) -> Tensor:  # [N, scale², H, W] -> [N, 1, scale H, scale W]
    """PixelShuffle, on CPUs in a third of the time of PyTorch's."""
    if torch.compiler.is_exporting():  # PyTorch 2.10 and 2.11 would guard the width in the reshape below
        return F.pixel_shuffle(phases, scale)
    n, _, height, width = phases.shape
    apart = phases.view(n, scale, scale, height, width).permute(0, 3, 1, 4, 2)
    return apart.reshape(n, 1, scale * height, scale * width)


class _Block(nn.Module):
    """a = ρ(P₁ D₁ x), b = ρ(P₂ D₂ [x, a]), y = x + P₃ [x, a, b]; D depthwise 3×3, P pointwise, ρ = ReLU.

    D has no bias: P's own does the same, at the borders too.
    """

    def __init__(self, channels: int, growth: int) -> None:
        super().__init__()
        self.depthwise1 = nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)
        self.pointwise1 = nn.Conv2d(channels, growth, 1)
        dense = channels + growth
        self.depthwise2 = nn.Conv2d(dense, dense, 3, padding=1, groups=dense, bias=False)
        self.pointwise2 = nn.Conv2d(dense, growth, 1)
        self.pointwise3 = nn.Conv2d(dense + growth, channels, 1)

    def arguments(self) -> list[Tensor]:
        """The parameters in the order of the operations' arguments."""
        separable = (self.depthwise1, self.pointwise1), (self.depthwise2, self.pointwise2)
        parameters = [tensor for d, p in separable for tensor in (d.weight, p.weight, p.bias)]
        return [*parameters, self.pointwise3.weight, self.pointwise3.bias]


class RLRDSR(Network):
    """RLRD-SR (Ki and Kim). 8,580 parameters with the defaults, 7,104 of them the block's.

    Args:
        scale: upsampling factor: 2, 3 or 4.
        recursions: replicas of the block (N); they share their parameters.
        channels: feature channels (C).
        growth: channels each of the block's two separable convolutions adds (G).
    """

    not_in_weights = ("recursions",)

    def __init__(self, scale: int = 2, recursions: int = 4, channels: int = 32, growth: int = 32) -> None:
        super().__init__()
        if isinstance(scale, bool) or scale not in (2, 3, 4):
            raise ValueError(f"scale must be 2, 3 or 4, got {scale!r}")
        self.scale, self.scales, self.scales_in_words = scale, (scale,), str(scale)
        self.recursions = check_positive("recursions", recursions)
        self.channels = check_positive("channels", channels)
        self.growth = check_positive("growth", growth)
        self.head = nn.Conv2d(1, channels, 3, padding=1)
        self.block = _Block(channels, growth)
        self.tail = nn.Conv2d(channels, scale**2, 3, padding=1)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Start near the bicubic image: variance kept up to each sum, where what is added is a tenth as large."""
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
                continue
            gain = 0.1 if name.startswith(("block.pointwise3", "tail")) else 1 if "depthwise" in name else math.sqrt(2)
            nn.init.normal_(parameter, std=gain / math.sqrt(parameter[0].numel()))

    @classmethod
    def config_of(cls, tensors: Mapping[str, Tensor]) -> dict[str, int] | None:
        if "block.depthwise1.weight" not in tensors:
            return None
        channels, growth = length(tensors.get("head.bias")), length(tensors.get("block.pointwise1.bias"))
        return {"scale": math.isqrt(length(tensors.get("tail.bias"))), "channels": channels, "growth": growth}

    def receptive_field_radius(self, scale: int) -> int:
        """As :meth:`Network.receptive_field_radius`: head, two convolutions a replica, tail. (Bicubic: only 2.)"""
        return 2 * self.recursions + 2

    def largest_map(self, scale: int) -> int:
        return self.channels + 2 * self.growth

    def bytes_per_pixel(self, scale: int) -> int:
        """As :meth:`Network.bytes_per_pixel`; without feature maps only images of the enlarged size are left."""
        image = torch.zeros(1, 1, 1, 1, device=self.head.bias.device, dtype=self.head.bias.dtype)
        with torch.no_grad():
            fused = ops.is_fused(ops.dense_network, image, *self._arguments(), self.recursions, 0.0)
        return 6 * 4 * scale**2 if fused else super().bytes_per_pixel(scale)

    def _arguments(self) -> list[Tensor]:
        """In the order of ops.dense_network's arguments."""
        head, tail = self.head, self.tail
        return [head.weight, head.bias, *self.block.arguments(), tail.weight, tail.bias]

    def forward(
        self,
        y: Tensor,  # [N, 1, H, W] in [0, 1]
        scale: int | None = None,
    ) -> list[Tensor]:  # [N, 1, scale H, scale W]
        """Super-resolve the luma ``y``; one image, not clamped."""
        scale = self.check_scale(self.scale if scale is None else scale)
        if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (y, *self.parameters())):
            with unrounded(y):
                u = self.head(y)
            residual = self.tail(ops.dense_recursion(u, *self.block.arguments(), self.recursions))
        else:
            residual = ops.dense_network(y, *self._arguments(), self.recursions)
        return [_shuffled(bicubic_phases(y, scale) + residual, scale)]
