"""The main job on real images: ``make demo``.

Upscales photographs that come with scikit-image 4x with the shipped weights, prints the PSNR beside bicubic's, trains a
small network for about a minute and shows its loss fall. Writes comparison images and a page with before/after sliders.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import matplotlib as mpl
import skimage.data
import torch
from PIL import Image

import cmslap
from cmslap import cli
from cmslap.inference.compare import assemble, enlarge, shrink
from cmslap.inference.page import write_page

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


def upscale_photographs(out: Path) -> Path:
    """Print and draw how the network compares with bicubic; the path of a page that shows it."""
    models = {"cmslap": cmslap.load_model()}
    comparisons = []
    print(f"Upscaling {SCALE}x; PSNR in dB on luma")
    print(f"{'photograph':<12} {'bicubic':>8} {'cmslap':>8} {'gain':>7}")
    for name, crop in PHOTOGRAPHS.items():
        small, original = shrink(Image.fromarray(getattr(skimage.data, name)()), SCALE)
        results = enlarge(small, models, SCALE)
        comparisons.append(assemble(name, small.size, results, original))
        before, after = (version.quality.psnr for version in comparisons[-1].versions[:2])
        print(f"{name:<12} {before:8.2f} {after:8.2f} {after - before:+7.2f}")
        bicubic, ours = (image for image, _ in results.values())
        panels = {f"bicubic, {before:.2f} dB": bicubic, f"cmslap, {after:.2f} dB": ours, "original": original}
        draw(panels, crop, out / f"{name}-{SCALE}x.png")
    print(f"Wrote the comparisons to {out}/*-{SCALE}x.png\n")
    page = out / "compare.html"
    write_page(comparisons, page, torch.device("cpu"), "float32")
    return page


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
    torch.set_num_threads(1)  # as fast as two for so small a network, and ten times as fast beside a busy program
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
    page = upscale_photographs(out)
    train_a_little(out)
    print(f"Before and after, with a slider and a magnifier: open {page} in a browser")


if __name__ == "__main__":
    main()
