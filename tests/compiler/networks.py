"""Networks that accelerate is tested on: those it is measured on, small, and some with what is hard to trace."""

import torch
import torch.nn.functional as F
from torch import nn

from bench.speed.networks import DRRN, EDSR, MSRN, VDSR, PlainMSLapSRN, SRResNet


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
    "srresnet": (SRResNet, 3),
    "ms-lapsrn": (PlainMSLapSRN, 1),
    "cms-lapsrn": (lambda: PlainMSLapSRN(tied=2), 1),
    "drrn": (DRRN, 1),
    "unet": (UNetLike, 3),
    "gated": (Gated, 16),
}
