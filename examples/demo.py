"""The main job on real images: ``make demo``.

Upscales photographs that come with scikit-image 4x with the shipped weights, writes comparison images, prints the
PSNR beside bicubic's, then trains a small network for about a minute and shows its loss fall.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import matplotlib as mpl
import numpy as np
import skimage.data
import torch
from PIL import Image
from torch import Tensor

import cmslap
from cmslap import cli
from cmslap.evaluation.metrics import psnr
from cmslap.imaging.colour import rgb_to_ycbcr
from cmslap.imaging.resize import imresize

mpl.use("agg")
import matplotlib.pyplot as plt
from matplotlib.patches import Rectangle

SCALE = 4
PHOTOGRAPHS = {  # name -> (left, top, size) of the crop to look at
    "astronaut": (168, 60, 120),
    "coffee": (300, 255, 120),
    "chelsea": (140, 80, 120),
}
TRAINING_PICTURES = ["astronaut", "coffee", "chelsea", "rocket", "motorcycle_left", "retina"]


def to_tensor(image: Image.Image) -> Tensor:  # [3, H, W] in [0, 1], float64
    return torch.from_numpy(np.array(image)).double().permute(2, 0, 1) / 255


def to_image(rgb: Tensor) -> Image.Image:
    return Image.fromarray((rgb.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy())


def luma_psnr(image: Image.Image, original: Image.Image) -> float:
    """PSNR in dB on Y with a border of SCALE pixels removed."""
    x, y = (rgb_to_ycbcr(to_tensor(p))[0] for p in (image, original))
    return psnr(x, y, border=SCALE)


def draw(panels: dict[str, Image.Image], crop: tuple[int, int, int], path: Path) -> None:
    """Whole images above, the crop of each below."""
    left, top, size = crop
    width, height = panels["original"].size
    figure, axes = plt.subplots(
        2, len(panels), figsize=(12, 4 + 4 * height / width), height_ratios=[height / width, 1], layout="compressed"
    )
    for (title, image), above, below in zip(panels.items(), *axes, strict=True):
        above.imshow(image, interpolation="none")
        above.add_patch(Rectangle((left, top), size, size, fill=False, edgecolor="yellow", linewidth=1.5))
        above.set_title(title)
        below.imshow(image.crop((left, top, left + size, top + size)), interpolation="nearest")
        above.axis("off")
        below.axis("off")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def upscale_photographs(out: Path) -> None:
    model = cmslap.load_model()
    print(f"Upscaling {SCALE}x; PSNR in dB on luma")
    print(f"{'photograph':<12} {'bicubic':>8} {'cmslap':>8} {'gain':>7}")
    for name, crop in PHOTOGRAPHS.items():
        original = Image.fromarray(getattr(skimage.data, name)())
        original = original.crop((0, 0, original.width // SCALE * SCALE, original.height // SCALE * SCALE))
        small = to_image(imresize(to_tensor(original), 1 / SCALE))
        bicubic = to_image(imresize(to_tensor(small), SCALE))
        ours = cmslap.upscale(small, scale=SCALE, model=model)
        before, after = luma_psnr(bicubic, original), luma_psnr(ours, original)
        print(f"{name:<12} {before:8.2f} {after:8.2f} {after - before:+7.2f}")
        panels = {f"bicubic, {before:.2f} dB": bicubic, f"cmslap, {after:.2f} dB": ours, "original": original}
        draw(panels, crop, out / f"{name}-{SCALE}x.png")
    print(f"Wrote the comparisons to {out}/*-{SCALE}x.png\n")


def train_a_little(out: Path) -> None:
    images = out / "training-images"
    images.mkdir(exist_ok=True)
    package = Path(skimage.data.__file__).parent
    for file in package.iterdir():
        if file.stem in TRAINING_PICTURES:
            Image.open(file).convert("RGB").save(images / f"{file.stem}.png")
    run = out / "run"
    shutil.rmtree(run, ignore_errors=True)  # an earlier demo's
    print("Training a small network for about a minute")
    status = cli.main(["train", "tiny", f'data.train=["{images}"]', f'out="{run}"', "steps=2400"])
    if status:
        raise SystemExit(status)
    losses = [line["loss"] for line in map(json.loads, (run / "log.jsonl").read_text().splitlines()) if "loss" in line]
    print(f"Loss: {losses[0]:.4f} at the first logged step, {losses[-1]:.4f} at the last; curves in {run}/curves.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("demo"), help="folder for the results (default: demo)")
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    upscale_photographs(out)
    train_a_little(out)


if __name__ == "__main__":
    main()
