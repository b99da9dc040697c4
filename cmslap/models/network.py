"""What a network says of itself: all that upscaling, evaluation, training and checkpoints know of it.

And what Laplacian pyramids have in common: levels of 2×, the receptive field they add up to, starting values.
"""

import inspect
import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn


class Network(nn.Module):
    """A network of this package, or of a test.

    ``forward(image, scale=None)`` takes [N, image_channels, H, W] in [0, 1] and one of ``scales``, and returns a list
    of images that are not clamped, the last of them ``scale`` times as large.
    """

    image_channels = 1  # 1: luma; 3: RGB
    scales: Sequence[int]  # that it serves, ascending
    scales_in_words: str  # "2, 3 and 4"
    not_in_weights: tuple[str, ...] = ()  # arguments of the constructor that a bare state_dict does not tell

    def config(self) -> dict[str, int]:
        """The constructor's arguments, which are what a checkpoint stores."""
        return {name: getattr(self, name) for name in inspect.signature(type(self)).parameters}

    @classmethod
    def config_of(cls, tensors: Mapping[str, Tensor]) -> dict[str, int] | None:
        """What a bare state_dict tells of the constructor's arguments; None if it is not known for this network's."""
        return None

    def check_scale(self, scale: int) -> int:
        """``scale``, if the network serves it. Raises ValueError."""
        if not isinstance(scale, int) or scale not in self.scales:
            raise ValueError(f"scale must be one of {self.scales_in_words}, got {scale!r}")
        return scale

    def output_scales(self, scale: int) -> list[int]:
        """How many times as large as the input each image is that ``forward`` returns."""
        return [scale]

    def receptive_field_radius(self, scale: int) -> int:
        """How many low-resolution pixels around its own an output pixel of ``scale`` depends on, exactly."""
        raise NotImplementedError

    def largest_map(self, scale: int) -> int:
        """Elements a low-resolution pixel has in the largest feature map."""
        raise NotImplementedError

    def bytes_per_pixel(self, scale: int) -> int:
        """Peak bytes a low-resolution pixel takes in float32, nearly all of them in feature maps.

        Six times the largest map: of LapSRN's it is the last upsampling's output, uncropped, cropped and in the layout
        conv_res reads, its input, and what the libraries put aside. (Measured were 3.5 to 5 of plain PyTorch
        operations, 2.7 of LapSRN's fused ones.)
        """
        return 6 * 4 * self.largest_map(scale)


class Pyramid(Network):
    """Luma in, levels of 2×: each ``recursions`` times ``depth`` 3×3 convolutions, then an upsampling."""

    scales = tuple(2**level for level in range(1, 31))
    scales_in_words = "powers of two, 2 or more"
    negative_slope = 0.2
    recursions = 1

    def __init__(self, scale: int, depth: int, channels: int) -> None:
        super().__init__()
        self.scale = self.check_scale(scale)
        self.depth = check_positive("depth", depth)
        self.channels = check_positive("channels", channels)

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

    def reset_parameters(self) -> None:
        """Start as the reference code does: kernels N(0, 2/(9·C)), conv_in σ = 0.001, bilinear image upsampling.

        conv_in draws first, wherever a network makes it: the seeds of training records keep their meaning.
        """
        sigma = math.sqrt(2 / (9 * self.channels))
        taps = torch.tensor([0.25, 0.75, 0.75, 0.25], device="cpu")  # on a meta device outer() imports the compiler
        for name, parameter in sorted(self.named_parameters(), key=lambda named: not named[0].startswith("conv_in")):
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif name.endswith("image_weight"):
                with torch.no_grad():
                    parameter.copy_(torch.outer(taps, taps))
            else:
                nn.init.normal_(parameter, std=1e-3 if name.startswith("conv_in") else sigma)


def check_positive(name: str, value: int) -> int:
    """``value``, if it is an integer of at least 1; raises ValueError."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} must be an integer of at least 1, got {value!r}")
    return value


def unrounded(image: Tensor) -> torch.autocast:
    """The context of the first convolution: under autocast, too, it reads the image as it is.

    Rounding the image costs more than rounding every feature does, and this convolution is a thousandth of the work.
    """
    return torch.autocast(image.device.type, enabled=False)


def length(tensor: Tensor | None) -> int:
    """First axis of a tensor, 0 where there is none."""
    return 0 if tensor is None else next(iter(tensor.shape), 0)
