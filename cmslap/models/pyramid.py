"""What the Laplacian pyramids share: levels of 2×, the receptive field they add up to, the bilinear start."""

from __future__ import annotations

import torch
from torch import Tensor

from cmslap.models.network import Network, check_positive


class Pyramid(Network):
    """Luma in, levels of 2×: each ``recursions`` times ``depth`` 3×3 convolutions, then an upsampling."""

    scales = tuple(2**level for level in range(1, 31))
    scales_in_words = "powers of two, 2 or more"
    negative_slope = 0.2
    recursions = 1

    def __init__(self, scale: int, depth: int, channels: int) -> None:
        super().__init__()
        self.scale = Pyramid.check_scale(self, scale)
        self.depth = check_positive("depth", depth)
        self.channels = check_positive("channels", channels)

    def check_scale(self, scale: int) -> int:
        if not isinstance(scale, int) or scale not in Pyramid.scales:
            raise ValueError(f"scale must be a power of two, 2 or more, got {scale!r}")
        return scale

    def output_scales(self, scale: int) -> list[int]:
        return [2**level for level in range(1, scale.bit_length())]

    def receptive_field_radius(self, scale: int) -> int:
        """As :meth:`Network.receptive_field_radius`.

        From the output down: conv_res reads one feature pixel around; the upsampling writes feature pixel 2i + k,
        k = 0, 1, 2, so pixel p reads from ⌈(p - 2)/2⌉ to ⌊p/2⌋; each 3×3 convolution of the level reads one more; and
        at the bottom so does conv_in. (The path through the upsampled image is always the narrower one.)
        """
        convolutions = self.depth * self.recursions
        first, last = -1, scale  # what conv_res reads for the output pixels 0..scale-1 of low-resolution pixel 0
        for _ in range(scale.bit_length() - 1):
            first, last = -((2 - first) // 2) - convolutions, last // 2 + convolutions
        return max(-first, last) + 1

    def largest_map(self, scale: int) -> int:
        return self.channels * scale * scale


def bilinear_kernel() -> Tensor:  # [1, 1, 4, 4]
    """Bilinear 2× interpolation as the kernel of a transposed convolution with stride 2 and padding 1."""
    taps = torch.tensor([0.25, 0.75, 0.75, 0.25], device="cpu")  # on a meta device torch.outer imports the compiler
    return torch.outer(taps, taps)[None, None]
