"""Crops at 8x in the manner of the papers: bicubic, other networks, the shipped one, the original.

    python examples/comparison.py docs/comparison-8x.png --network 'MS-LapSRN D5R8=MSLapSRN_D5R8.mat'

The photographs come with scikit-image (public domain or CC0). They are shrunk and enlarged by the protocol of `cmslap
evaluate`; PSNR and SSIM are those of the whole image. The figures also go to a JSON file beside the image.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib as mpl
import skimage.data
import torch
from matplotlib.axes import Axes
from torch import Tensor, nn

import cmslap
from cmslap.checkpoints.checkpoint import ALIASES
from cmslap.evaluation.evaluate import Quality, enlarge, quality
from cmslap.files import replacing, write_json
from cmslap.imaging.resize import imresize

mpl.use("agg")
import matplotlib.pyplot as plt
from matplotlib.patches import Rectangle

SCALE = 8
DEFAULT = ALIASES["cms-lapsrn"]
PHOTOGRAPHS = {  # name -> (left, top, size) of the crop to look at
    "astronaut": (160, 40, 136),
    "coffee": (296, 232, 152),
    "rocket": (272, 120, 136),
}


def photograph(name: str) -> Tensor:  # [3, H, W] float64 in [0, 1], multiples of the scale
    pixels = torch.from_numpy(getattr(skimage.data, name)()[..., :3].copy()).permute(2, 0, 1).double() / 255
    height, width = (length // SCALE * SCALE for length in pixels.shape[1:])
    return pixels[:, :height, :width]


def results(original: Tensor, networks: dict[str, nn.Module]) -> dict[str, Tensor]:
    """The shrunken image enlarged again by bicubic and by every network: [3, H, W]."""
    low = imresize(original, 1 / SCALE)
    return {"bicubic": imresize(low, SCALE)} | {name: enlarge(net, low, SCALE) for name, net in networks.items()}


def show(axes: Axes, image: Tensor, title: str) -> None:
    axes.imshow(image.clamp(0, 1).permute(1, 2, 0).numpy(), interpolation="nearest")
    axes.set_title(title, fontsize=8)
    axes.axis("off")


def show_whole(axes: Axes, image: Tensor, crop: tuple[int, int, int]) -> None:
    show(axes, image, "")
    left, top, size = crop
    axes.add_patch(Rectangle((left, top), size, size, fill=False, edgecolor="yellow", linewidth=1.5))


def caption(name: str, measured: Quality) -> str:
    return f"{name}\n{measured.psnr:.2f} dB / {measured.ssim:.4f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="the image to write")
    parser.add_argument(
        "--network", action="append", default=[], metavar="TITLE=WEIGHTS", help="another network to show"
    )
    args = parser.parse_args()
    others = (entry.rpartition("=")[::2] for entry in args.network)
    networks = {title: cmslap.load_model(path) for title, path in others} | {f"{DEFAULT} (ours)": cmslap.load_model()}
    figures, columns = {}, len(networks) + 3
    figure, rows = plt.subplots(
        len(PHOTOGRAPHS), columns, figsize=(2 * columns, 2.2 * len(PHOTOGRAPHS)), layout="compressed"
    )
    for (name, crop), row in zip(PHOTOGRAPHS.items(), rows, strict=True):
        original, (left, top, size) = photograph(name), crop
        shown = results(original, networks)
        measured = {title: quality(image, original, SCALE) for title, image in shown.items()}
        figures[name] = {title: {"psnr": q.psnr, "ssim": q.ssim} for title, q in measured.items()}
        show_whole(row[0], original, crop)
        for axes, (title, image) in zip(row[1:], (shown | {"original": original}).items(), strict=True):
            window = image[:, top : top + size, left : left + size]
            show(axes, window, caption(title, measured[title]) if title in measured else title)
    with replacing(args.out) as temporary:
        figure.savefig(temporary, format="png", dpi=110)
    write_json(args.out.with_suffix(".json"), {"scale": SCALE, "images": figures})


if __name__ == "__main__":
    main()
