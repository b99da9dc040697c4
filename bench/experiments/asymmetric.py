"""VDSR and Asym_VDSR trained alike: what a third of the weights less costs in PSNR.

    python -m bench.experiments.asymmetric data.train=DIR validation.data=DIR --out asymmetric.json

Trains the shipped configurations ``vdsr`` and ``asym-vdsr`` one after the other, in folders of these names under
``--runs``; the arguments are those of ``cmslap train``, and a run that was stopped goes on. Then measures the averaged
weights on the first folder of ``validation.data``. Their speed is measured by ``python -m bench``.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from bench.experiments.ablation import train
from cmslap.checkpoints.checkpoint import load_model, save_model
from cmslap.evaluation.evaluate import evaluate
from cmslap.files import write_json
from cmslap.models import Network
from cmslap.training import config as configuration

CONFIGS = {"VDSR": "vdsr", "Asym_VDSR": "asym-vdsr"}


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
    report = {**shared, "networks": rows}
    write_json(args.out, report)


if __name__ == "__main__":
    main()
