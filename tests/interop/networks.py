"""Networks as people write them: plain PyTorch, no word about this project."""

import torch
import torch.nn.functional as F
from torch import nn


class VDSR(nn.Module):
    """Sequential, in-place activations, no biases, global residual."""

    def __init__(self, depth=6, channels=16):
        super().__init__()
        self.input = nn.Conv2d(1, channels, 3, 1, 1, bias=False)
        layers = [
            nn.Sequential(nn.Conv2d(channels, channels, 3, 1, 1, bias=False), nn.ReLU(True)) for _ in range(depth)
        ]
        self.residual_layer = nn.Sequential(*layers)
        self.output = nn.Conv2d(channels, 1, 3, 1, 1, bias=False)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        residual = x
        out = self.relu(self.input(x))
        out = self.residual_layer(out)
        out = self.output(out)
        out += residual
        return out


class ResBlock(nn.Module):
    def __init__(self, channels, res_scale):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding="same")
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.res_scale = res_scale

    def forward(self, x):
        res = self.conv2(F.relu(self.conv1(x), inplace=True))
        if self.res_scale != 1:
            res = res.mul(self.res_scale)
        res += x
        return res


class EDSR(nn.Module):
    """Residual blocks with functional activations, colour, PixelShuffle."""

    def __init__(self, channels=16, blocks=2, scale=2, res_scale=1):
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

    def forward(self, x):
        x = self.head(x - self.mean)
        res = self.body(x)
        res += x
        return self.tail(res) + self.mean


class MSRB(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.conv_3_1 = nn.Conv2d(n, n, 3, padding=1)
        self.conv_3_2 = nn.Conv2d(2 * n, 2 * n, 3, padding=1)
        self.conv_5_1 = nn.Conv2d(n, n, 5, padding=2)
        self.conv_5_2 = nn.Conv2d(2 * n, 2 * n, 5, padding=2)
        self.confusion = nn.Conv2d(4 * n, n, 1)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
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

    def __init__(self, channels=16, blocks=2):
        super().__init__()
        self.head = nn.Conv2d(3, channels, 3, padding=1)
        self.body = nn.ModuleList([MSRB(channels) for _ in range(blocks)])
        self.fuse = nn.Conv2d(channels * (blocks + 1), channels, 1)
        self.tail = nn.Sequential(nn.Conv2d(channels, 3 * 4, 3, padding=1), nn.PixelShuffle(2))

    def forward(self, x):
        x = self.head(x)
        features = []
        for block in self.body:
            features.append(x)
            x = block(x)
        features.append(x)
        return self.tail(self.fuse(torch.cat(features, 1)))


class RecursiveBlock(nn.Module):
    def __init__(self, channels, depth):
        super().__init__()
        layers = []
        for _ in range(depth):
            layers += [nn.LeakyReLU(0.2), nn.Conv2d(channels, channels, 3, padding=1)]
        self.block = nn.Sequential(*layers)

    def forward(self, x):
        return self.block(x)


class PlainMSLapSRN(nn.Module):
    """One block for all recursions and levels; the upsampling has a kernel of its own, or one of the block's."""

    def __init__(self, channels=16, depth=2, recursions=3, levels=2, tied=None):
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

    def upsample(self, x):
        if self.tied is None:
            return self.up(x)[:, :, :-1, :-1]
        height, width = x.shape[-2:]
        full = F.conv_transpose2d(x, self.embedding.block[2 * self.tied - 1].weight, self.up_bias, stride=2)
        return full[..., : 2 * height, : 2 * width]

    def forward(self, image):
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

    def __init__(self, channels=16, units=3):
        super().__init__()
        self.units = units
        self.input = nn.Conv2d(1, channels, kernel_size=3, stride=1, padding=1, bias=False)
        self.vertical = nn.Conv2d(channels, channels, (3, 1), padding=(1, 0))
        self.horizontal = nn.Conv2d(channels, channels, (1, 3), padding=(0, 1))
        self.conv1 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.output = nn.Conv2d(channels, 1, 3, 1, 1, bias=False)
        self.relu = nn.ReLU()

    def forward(self, x):
        residual = x
        inputs = self.horizontal(self.vertical(self.input(self.relu(x))))
        out = inputs
        for _ in range(self.units):
            out = self.conv2(self.relu(self.conv1(self.relu(out))))
            out = torch.add(out, inputs)
        return self.output(self.relu(out)) + residual


class Attention(nn.Module):
    """Channel attention that takes views of what it gets."""

    def __init__(self, channels):
        super().__init__()
        self.fc = nn.Sequential(nn.Linear(channels, 4), nn.ReLU(True), nn.Linear(4, channels), nn.Sigmoid())

    def forward(self, x):
        b, c, h, w = x.size()
        mean = x.view(b, c, h * w).mean(-1)
        return x * self.fc(mean).view(b, c, 1, 1)


class UNetLike(nn.Module):
    """Strides, batch normalisation, attention, dropout, a mode-dependent result."""

    def __init__(self, channels=16):
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels), nn.ReLU(inplace=True)
        )
        self.down = nn.Conv2d(channels, 2 * channels, 3, stride=2, padding=1)
        self.middle = nn.Sequential(
            nn.Conv2d(2 * channels, 2 * channels, 3, padding=1), nn.LeakyReLU(0.1, True), nn.Dropout2d(0.0)
        )
        self.attention = Attention(2 * channels)
        self.up = nn.ConvTranspose2d(2 * channels, channels, 2, stride=2)
        self.out = nn.Conv2d(2 * channels, channels, 3, padding=1)

    def forward(self, x, scale=None):
        a = self.stem(x)
        b = self.attention(self.middle(self.down(a)))
        c = torch.cat([a, self.up(b)], dim=1)
        out = torch.relu(self.out(c))
        if scale is not None:
            out = F.interpolate(out, scale_factor=scale)
        return (out, b) if self.training else out


class Gate(nn.Module):
    """Data-dependent control flow."""

    def __init__(self, channels):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.body = nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1), nn.ReLU())

    def forward(self, x):
        if x.mean() > 0:
            return self.body(x)
        return self.conv(x)


class Gated(nn.Module):
    """One submodule that can't be traced between two that can."""

    def __init__(self, channels=16):
        super().__init__()
        self.before = nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1), nn.ReLU(inplace=True))
        self.gate = Gate(channels)
        self.after = nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1), nn.LeakyReLU(0.2))

    def forward(self, x):
        return self.after(self.gate(self.before(x)))


NETWORKS = {
    "vdsr": (VDSR, 1),
    "edsr": (EDSR, 3),
    "edsr-scaled": (lambda: EDSR(res_scale=0.1), 3),
    "msrn": (MSRN, 3),
    "ms-lapsrn": (PlainMSLapSRN, 1),
    "cms-lapsrn": (lambda: PlainMSLapSRN(tied=2), 1),
    "drrn": (DRRN, 1),
    "unet": (UNetLike, 3),
    "gated": (Gated, 16),
}
