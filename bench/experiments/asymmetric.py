"""VDSR and Asym_VDSR trained alike: what a third of the weights less costs in PSNR, and what it saves in time.

    python -m bench.experiments.asymmetric data.train=DIR validation.data=DIR --out asymmetric.json

Trains the shipped configurations ``vdsr`` and ``asym-vdsr`` one after the other, in folders of these names under
``--runs``; the arguments are those of ``cmslap train``, and a run that was stopped goes on. Then measures the averaged
weights on the first folder of ``validation.data``, and times the forward pass beside plain PyTorch's.
"""

from __future__ import annotations

import argparse
import functools
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bench.experiments.ablation import train
from bench.speed import networks
from bench.speed.timing import Pace, take_turns
from cmslap import accelerate
from cmslap.checkpoints.checkpoint import load_model, save_model
from cmslap.evaluation.evaluate import evaluate
from cmslap.files import replacing
from cmslap.models import VDSR, AsymVDSR, Network
from cmslap.training import config as configuration

CONFIGS = {"VDSR": "vdsr", "Asym_VDSR": "asym-vdsr"}
SIDE = 256  # pixels of the enlarged image that is timed
ROUNDS = 15


def plain(asymmetric: bool) -> nn.Module:
    """The network after bicubic, in plain PyTorch, as fast as it gets by itself: in channels_last memory."""
    network = networks.AsymVDSR(depth=18, channels=64)
    if not asymmetric:
        network.body = nn.Sequential(*_squares(network.body))
    return network.requires_grad_(False).to(memory_format=torch.channels_last)


def _squares(layers: nn.Sequential) -> list[nn.Module]:
    """The layers with one 3×3 convolution for each pair."""
    kept = [layer for layer in layers if getattr(layer, "kernel_size", None) != (3, 1)]
    return [nn.Conv2d(64, 64, 3, padding=1) if getattr(k, "kernel_size", None) == (1, 3) else k for k in kept]


class _Ours(nn.Module):
    """A network of ours at a scale of 1, so to speak: what comes after bicubic."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network.requires_grad_(False)

    def forward(self, image: Tensor) -> Tensor:
        return self.network.restore(image)


@torch.inference_mode()
def times(rounds: int) -> dict[str, dict[str, float]]:
    """Seconds a forward pass of either network takes, in turns."""
    image = torch.rand(1, 1, SIDE, SIDE)
    calls = {}
    for name, ours in (("VDSR", VDSR), ("Asym_VDSR", AsymVDSR)):
        eager = plain(ours is AsymVDSR)
        accelerated = plain(ours is AsymVDSR)
        accelerate(accelerated)
        implementations = {
            "cmslap": _Ours(ours()),
            "accelerate": accelerated,
            "eager": eager,
            "torch.compile": torch.compile(eager, dynamic=False),
        }
        calls |= {f"{name}, {how}": functools.partial(call, image) for how, call in implementations.items()}
    return {name: timing.to_json() for name, timing in take_turns(calls, "forward", Pace(rounds)).items()}


def quality(network: Network, folder: str, scales: list[int]) -> dict[str, Any]:
    """Mean PSNR of a folder at each scale, and every image's."""
    report = evaluate(network, folder, scales)
    images = {f"{Path(row.image).stem} {row.scale}x": row.model.psnr for row in report.rows}
    return {"psnr": {f"{scale}x": report.mean(scale).model.psnr for scale in scales}, "images": images}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE", help="as for cmslap train")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="where the runs lie (default: %(default)s)")
    parser.add_argument("--out", type=Path, required=True, help="the JSON file to write")
    args = parser.parse_args()
    rows = {}
    for name, config in CONFIGS.items():
        loaded = configuration.load(config, [*args.settings, f"out={args.runs / config}"])
        record = train(loaded)
        network = load_model(args.runs / config / "last.safetensors")
        half = args.runs / config / "half.safetensors"
        save_model(network.half(), half)
        rows[name] = {
            "parameters": sum(parameter.numel() for parameter in network.parameters()),
            "bytes": half.stat().st_size,
            "seconds": record["seconds"],
            **quality(load_model(half), loaded.validation.data[0], loaded.scales),
        }
    shared = {key: record[key] for key in ("commit", "torch", "device", "threads", "config", "step")}
    report = {
        **shared,
        "networks": rows,
        "forward": {"side": SIDE, "threads": torch.get_num_threads(), "times": times(ROUNDS)},
    }
    with replacing(args.out) as temporary:
        temporary.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
