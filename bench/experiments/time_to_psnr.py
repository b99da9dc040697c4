"""Training time to a fixed PSNR, fused against plain PyTorch: the same recipe, the same images, step by step.

    python -m bench.experiments.time_to_psnr d5r2 steps=300 data.train=DIR validation.data=DIR --psnr 34 --out time.json

Trains the configuration twice, in folders under its ``out``: with the backend that cmslap chooses and with the
reference, plain PyTorch. Time is that of the training steps alone, without decoding and validating.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from bench.experiments import ablation
from cmslap.files import write_json
from cmslap.ops import use_backend
from cmslap.training import config as configuration
from cmslap.training.config import Config


def run(config: Config, name: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The record of a run, and its curve: seconds of training and mean PSNR at each validation."""
    out = Path(config.out) / name
    record = ablation.train(dataclasses.replace(config, out=str(out)))
    entries = map(json.loads, (out / "log.jsonl").read_text(encoding="utf-8").splitlines())
    return record, curve(entries, config.batch)


def curve(entries: Any, batch: int) -> list[dict[str, Any]]:
    points, seconds, before = [], 0.0, 0
    for entry in entries:
        if "loss" in entry:
            seconds += (entry["step"] - before) * batch / entry["images_per_second"]
            before = entry["step"]
        else:
            points.append({"step": entry["step"], "seconds": round(seconds, 2), "psnr": entry["mean"]})
    return points


def reached(points: list[dict[str, Any]], psnr: float) -> float:
    """Seconds of training until the first validation at ``psnr`` dB or more."""
    for point in points:
        if point["psnr"] >= psnr:
            return point["seconds"]
    sys.exit(f"--psnr {psnr}: the best validation is {max(point['psnr'] for point in points):.2f} dB; ask for less")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="as for cmslap train")
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE", help="as for cmslap train")
    parser.add_argument("--psnr", type=float, required=True, help="dB, mean over the validation's sets and scales")
    parser.add_argument("--out", type=Path, required=True, help="the JSON file to write")
    args = parser.parse_args()
    config = configuration.load(args.config, args.settings)
    report: dict[str, Any] = {"psnr": args.psnr, "runs": {}}
    for name, backend in (("cmslap", nullcontext()), ("eager", use_backend("reference"))):
        with backend:
            record, points = run(config, name)
        report |= {key: record[key] for key in ("commit", "torch", "device", "threads", "config")}
        report["runs"][name] = {"seconds": reached(points, args.psnr), "curve": points}
    write_json(args.out, report)


if __name__ == "__main__":
    main()
