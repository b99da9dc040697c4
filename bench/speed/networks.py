"""Super-resolution networks as people write them: plain PyTorch, no word about this project.

After published architectures, in their authors' manner; what ``accelerate`` is measured and tested on.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class VDSR(nn.Module):
    """Sequential, in-place activations, no biases, global residual."""

    def __init__(self, depth: int = 6, channels: int = 16) -> None:
        super().__init__()
        self.input = nn.Conv2d(1, channels, 3, 1, 1, bias=False)
        layers = [
            nn.Sequential(nn.Conv2d(channels, channels, 3, 1, 1, bias=False), nn.ReLU(True)) for _ in range(depth)
        ]
        self.residual_layer = nn.Sequential(*layers)
        self.output = nn.Conv2d(channels, 1, 3, 1, 1, bias=False)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        residual = x
        out = self.relu(self.input(x))
        out = self.residual_layer(out)
        out = self.output(out)
        out += residual
        return out


class AsymVDSR(nn.Module):
    """VDSR with a 3×1 and a 1×3 convolution in the place of each middle one."""

    def __init__(self, depth: int = 6, channels: int = 16) -> None:
        super().__init__()
        layers = [nn.Conv2d(1, channels, 3, padding=1), nn.ReLU(inplace=True)]
        for _ in range(depth):
            layers.append(nn.Conv2d(channels, channels, (3, 1), padding=(1, 0), bias=False))
            layers += [nn.Conv2d(channels, channels, (1, 3), padding=(0, 1)), nn.ReLU(inplace=True)]
        self.body = nn.Sequential(*layers, nn.Conv2d(channels, 1, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


class ResBlock(nn.Module):
    def __init__(self, channels: int, res_scale: float) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding="same")
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.res_scale = res_scale

    def forward(self, x: Tensor) -> Tensor:
        res = self.conv2(F.relu(self.conv1(x), inplace=True))
        if self.res_scale != 1:
            res = res.mul(self.res_scale)
        res += x
        return res


class EDSR(nn.Module):
    """Residual blocks with functional activations, colour, PixelShuffle."""

    def __init__(self, channels: int = 16, blocks: int = 2, scale: int = 2, res_scale: float = 1) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor([0.45, 0.44, 0.40]).view(1, 3, 1, 1))
        self.head = nn.Conv2d(3, channels, 3, padding=1)
        self.body = nn.Sequential(
            *[ResBlock(channels, res_scale) for _ in range(blocks)], nn.Conv2d(channels, channels, 3, padding=1)
        )
        self.tail = nn.Sequential(
            nn.Conv2d(channels, channels * scale**2, 3, padding=1),
            nn.PixelShuffle(scale),
            nn.Conv2d(channels, 3, 3, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.head(x - self.mean)
        res = self.body(x)
        res += x
        return self.tail(res) + self.mean


class SRResNet(nn.Module):
    """Batch normalisation, learned slopes, large kernels at both ends, PixelShuffle."""

    def __init__(self, channels: int = 16, blocks: int = 2) -> None:
        super().__init__()
        self.head = nn.Sequential(nn.Conv2d(3, channels, 9, padding=4), nn.PReLU())
        self.blocks = nn.ModuleList(self.block(channels) for _ in range(blocks))
        self.body = nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels))
        self.up = nn.Sequential(nn.Conv2d(channels, 4 * channels, 3, padding=1), nn.PixelShuffle(2), nn.PReLU())
        self.tail = nn.Conv2d(channels, 3, 9, padding=4)

    @staticmethod
    def block(channels: int) -> nn.Sequential:
        first, second = (nn.Conv2d(channels, channels, 3, padding=1, bias=False) for _ in range(2))
        return nn.Sequential(first, nn.BatchNorm2d(channels), nn.PReLU(), second, nn.BatchNorm2d(channels))

    def forward(self, x: Tensor) -> Tensor:
        features = out = self.head(x)
        for block in self.blocks:
            out = out + block(out)
        return self.tail(self.up(features + self.body(out)))


class MSRB(nn.Module):
    def __init__(self, n: int) -> None:
        super().__init__()
        self.conv_3_1 = nn.Conv2d(n, n, 3, padding=1)
        self.conv_3_2 = nn.Conv2d(2 * n, 2 * n, 3, padding=1)
        self.conv_5_1 = nn.Conv2d(n, n, 5, padding=2)
        self.conv_5_2 = nn.Conv2d(2 * n, 2 * n, 5, padding=2)
        self.confusion = nn.Conv2d(4 * n, n, 1)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        input_1 = x
        output_3_1 = self.relu(self.conv_3_1(input_1))
        output_5_1 = self.relu(self.conv_5_1(input_1))
        input_2 = torch.cat([output_3_1, output_5_1], 1)
        output_3_2 = self.relu(self.conv_3_2(input_2))
        output_5_2 = self.relu(self.conv_5_2(input_2))
        output = self.confusion(torch.cat([output_3_2, output_5_2], 1))
        output += x
        return output


class MSRN(nn.Module):
    """Two kernel sizes side by side, concatenation, features of every block kept in a list."""

    def __init__(self, channels: int = 16, blocks: int = 2) -> None:
        super().__init__()
        self.head = nn.Conv2d(3, channels, 3, padding=1)
        self.body = nn.ModuleList([MSRB(channels) for _ in range(blocks)])
        self.fuse = nn.Conv2d(channels * (blocks + 1), channels, 1)
        self.tail = nn.Sequential(nn.Conv2d(channels, 3 * 4, 3, padding=1), nn.PixelShuffle(2))

    def forward(self, x: Tensor) -> Tensor:
        x = self.head(x)
        features = []
        for block in self.body:
            features.append(x)
            x = block(x)
        features.append(x)
        return self.tail(self.fuse(torch.cat(features, 1)))


class RecursiveBlock(nn.Module):
    def __init__(self, channels: int, depth: int) -> None:
        super().__init__()
        layers = []
        for _ in range(depth):
            layers += [nn.LeakyReLU(0.2), nn.Conv2d(channels, channels, 3, padding=1)]
        self.block = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x)


class PlainMSLapSRN(nn.Module):
    """One block for all recursions and levels; the upsampling has a kernel of its own, or one of the block's."""

    def __init__(
        self, channels: int = 16, depth: int = 2, recursions: int = 3, levels: int = 2, tied: int | None = None
    ) -> None:
        super().__init__()
        self.recursions, self.levels, self.tied = recursions, levels, tied
        self.conv_in = nn.Conv2d(1, channels, 3, padding=1)
        self.embedding = RecursiveBlock(channels, depth)
        self.act = nn.LeakyReLU(0.2)
        if tied is None:
            self.up = nn.ConvTranspose2d(channels, channels, 3, stride=2)
        else:
            self.up_bias = nn.Parameter(torch.randn(channels))
        self.residual = nn.Conv2d(channels, 1, 3, padding=1)
        self.image_up = nn.ConvTranspose2d(1, 1, 4, stride=2, padding=1, bias=False)

    def upsample(self, x: Tensor) -> Tensor:
        if self.tied is None:
            return self.up(x)[:, :, :-1, :-1]
        height, width = x.shape[-2:]
        full = F.conv_transpose2d(x, self.embedding.block[2 * self.tied - 1].weight, self.up_bias, stride=2)
        return full[..., : 2 * height, : 2 * width]

    def forward(self, image: Tensor) -> list[Tensor]:
        images = []
        u = self.conv_in(image)
        for _ in range(self.levels):
            h = u
            for _ in range(self.recursions):
                h = self.embedding(h) + u
            u = self.upsample(self.act(h))
            image = self.image_up(image) + self.residual(u)
            images.append(image)
        return images


class DRRN(nn.Module):
    """Pre-activation residual units that share two convolutions, with 3×1 and 1×3 pairs before them."""

    def __init__(self, channels: int = 16, units: int = 3) -> None:
        super().__init__()
        self.units = units
        self.input = nn.Conv2d(1, channels, kernel_size=3, stride=1, padding=1, bias=False)
        self.vertical = nn.Conv2d(channels, channels, (3, 1), padding=(1, 0))
        self.horizontal = nn.Conv2d(channels, channels, (1, 3), padding=(0, 1))
        self.conv1 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.output = nn.Conv2d(channels, 1, 3, 1, 1, bias=False)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        residual = x
        inputs = self.horizontal(self.vertical(self.input(self.relu(x))))
        out = inputs
        for _ in range(self.units):
            out = self.conv2(self.relu(self.conv1(self.relu(out))))
            out = torch.add(out, inputs)
        return self.output(self.relu(out)) + residual
