"""What made the original MASRN fail: short runs of equal cost, each with one of its faults put back.

    python -m bench.experiments.masrn masrn data.train=DIR validation.data=DIR --out masrn.json --picture masrn.png

The arguments besides ``--out`` and ``--picture`` are those of ``cmslap train``. Every run starts from the same seed and
sees the same images. The picture shows part of scikit-image's astronaut, enlarged by each of the trained networks.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw
from torch import Tensor, nn
from tqdm import trange

from cmslap.files import write_json
from cmslap.imaging import imresize
from cmslap.models import MASRN, NETWORKS, masrn
from cmslap.provenance import provenance
from cmslap.training import config as configuration
from cmslap.training import distributed
from cmslap.training.config import Config
from cmslap.training.data import ScaleBatch, TrainingImages
from cmslap.training.record import published
from cmslap.training.trainer import Trainer
from cmslap.training.validation import ValidationSets

MEANS = (0.4488, 0.4371, 0.4040)  # of DIV2K, in R, G and B
CROP = 96  # pixels of the enlarged astronaut in the picture, at (top, left)
CORNER = (60, 168)


class Reshaped(MASRN):
    """Rows of RGB pixels reshaped to three planes where they should be transposed, going in and coming out."""

    def forward(self, image: Tensor, scale: int | None = None) -> list[Tensor]:
        (enlarged,) = super().forward(reshaped(image), scale)
        return [restored(enlarged)]


def reshaped(image: Tensor) -> Tensor:  # [N, 3, H, W], twice
    """The numbers of [H, W, 3] pixels in their order in memory, taken for [3, H, W]."""
    return image.permute(0, 2, 3, 1).reshape(image.shape)


def restored(image: Tensor) -> Tensor:  # [N, 3, H, W], twice
    """The inverse of :func:`reshaped`."""
    return image.flatten(1).unflatten(1, (*image.shape[2:], 3)).permute(0, 3, 1, 2)


class NoGlobalSkip(MASRN):
    """The image has to pass through every layer."""

    def forward(self, image: Tensor, scale: int | None = None) -> list[Tensor]:
        nothing = _Replaced(masrn, "enlarge", lambda image, scale: 0)
        with nothing:
            return super().forward(image, scale)


class Means(MASRN):
    """Channel means of the range 255 taken from images in [0, 1] and added at the end, by layers that train."""

    def __init__(self, channels: int = 64) -> None:
        super().__init__(channels)
        self.subtract, self.add = (self._shift(sign) for sign in (-1, 1))

    @staticmethod
    def _shift(sign: int) -> nn.Conv2d:
        layer = nn.Conv2d(3, 3, 1)
        with torch.no_grad():
            layer.weight.copy_(torch.eye(3)[:, :, None, None])
            layer.bias.copy_(sign * 255 * torch.tensor(MEANS))
        return layer

    def forward(self, image: Tensor, scale: int | None = None) -> list[Tensor]:
        (enlarged,) = super().forward(self.subtract(image), scale)
        return [self.add(enlarged)]


class ActivatedResiduals(MASRN):
    """φ before each residual sum, so that a block can only add; and the block's input added once more."""

    def forward(self, image: Tensor, scale: int | None = None) -> list[Tensor]:
        def block(self: nn.Module, x: Tensor) -> Tensor:
            source = x
            for first, second in (self.pairs[:2], self.pairs[2:]):
                x = x + second(first(x, 0.0), 0.0)
            return x + source

        with _Replaced(masrn.ExtractionBlock, "forward", block):
            return super().forward(image, scale)


class Everything(Reshaped, NoGlobalSkip, Means, ActivatedResiduals):
    """All of these together."""


class StepAScale(Trainer):
    """An update for each scale, one after the other, by one optimizer."""

    def learn(self, step: int, batches: list[ScaleBatch], *also_summed: Tensor) -> Tensor:
        return sum(super(StepAScale, self).learn(step, [batch], *also_summed) for batch in batches)


# What each run has different: its network, and what trains it.
RUNS: dict[str, tuple[type[MASRN], type[Trainer]]] = {
    "as it is now": (MASRN, Trainer),
    "pixels reshaped, not transposed": (Reshaped, Trainer),
    "no global skip": (NoGlobalSkip, Trainer),
    "means of the range 255, trained": (Means, Trainer),
    "φ before residual sums": (ActivatedResiduals, Trainer),
    "a step for each scale": (MASRN, StepAScale),
    "all of these": (Everything, StepAScale),
}


class _Replaced:
    """A name in a module or class, replaced for a while."""

    def __init__(self, home: object, name: str, value: object) -> None:
        self.home, self.name, self.value = home, name, value

    def __enter__(self) -> None:
        self.before = getattr(self.home, self.name)
        setattr(self.home, self.name, self.value)

    def __exit__(self, *error: object) -> None:
        setattr(self.home, self.name, self.before)


def train(config: Config, network: type[MASRN], trainer: type[Trainer]) -> tuple[MASRN, dict[str, Any]]:
    """A trained network and what it reached."""
    NETWORKS[network.__name__] = network
    table = asdict(config)
    config = configuration.from_dict(table | {"model": config.model | {"name": network.__name__}})
    workers = distributed.start(config.device)
    trained, counts = trainer(config, workers), config.counts
    images = TrainingImages(config.data, config.patch, trained.model, workers.device, announce=False)
    losses = []
    for step in trange(config.steps, desc=network.__name__, unit="step"):
        losses.append(trained.learn(step, images.batch(step, config.seed, counts)).mean().item())
    sets = ValidationSets(config.validation.data, config.validation_scales, trained.model)
    last = losses[-max(1, config.steps // 10) :]
    return trained.average, {"loss": sum(last) / len(last), "psnr": sets.measure(trained.average)}


@torch.no_grad()
def picture(networks: dict[str, Callable[[Tensor, int], Tensor]], scales: list[int]) -> Image.Image:
    """A column a scale, a row a network: part of the astronaut, shrunk and enlarged."""
    from skimage import data

    whole = torch.from_numpy(data.astronaut()[:252, 84:336].copy()).permute(2, 0, 1)[None].float() / 255
    top, left = CORNER[0], CORNER[1] - 84
    rows = {"the photograph": [whole] * len(scales)}
    for name, network in networks.items():
        rows[name] = [network(imresize(whole, 1 / scale), scale) for scale in scales]
    label, gap = 16, 4
    sheet = Image.new("RGB", ((CROP * 2 + gap) * len(scales), (CROP * 2 + label + gap) * len(rows)), "white")
    draw = ImageDraw.Draw(sheet)
    for row, (name, images) in enumerate(rows.items()):
        y = row * (CROP * 2 + label + gap)
        for column, (image, scale) in enumerate(zip(images, scales, strict=True)):
            x = column * (CROP * 2 + gap)
            crop = image[0, :, top : top + CROP, left : left + CROP].clamp(0, 1).mul(255).round().byte()
            tile = Image.fromarray(crop.permute(1, 2, 0).numpy()).resize((CROP * 2, CROP * 2), Image.Resampling.NEAREST)
            draw.text((x, y), f"{name}, {scale}x", fill="black", font_size=12)
            sheet.paste(tile, (x, y + label))
    return sheet


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="as for cmslap train")
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE", help="as for cmslap train")
    parser.add_argument("--out", type=Path, required=True, help="the JSON file to write")
    parser.add_argument("--picture", type=Path, help="the PNG file to write")
    args = parser.parse_args()
    config = configuration.load(args.config, args.settings)
    networks, runs = {}, {}
    for name, (network, trainer) in RUNS.items():
        average, runs[name] = train(config, network, trainer)
        networks[name] = lambda image, scale, average=average: average(image, scale)[-1]
        if not math.isfinite(runs[name]["loss"]):
            runs[name] = {"loss": None, "psnr": dict.fromkeys(runs[name]["psnr"])}
    report = {**provenance(torch.device("cpu")), "config": published(asdict(config)), "runs": runs}
    write_json(args.out, report)
    if args.picture:
        shown = {
            "bicubic": imresize,
            "bicubic, pixels reshaped": lambda image, scale: restored(imresize(reshaped(image), scale)),
            **networks,
        }
        picture(shown, config.scales).save(args.picture, optimize=True)


if __name__ == "__main__":
    main()
