"""What sharing a kernel with the upsampling costs or gains: the paper's ablation under an equal budget.

    python -m bench.experiments.ablation d5r2 steps=1000 data.train=DIR validation.data=DIR --out ablation.json

Trains CMS-LapSRN with shared_conv 1, 3 and 5 and the untied MS-LapSRN, each by the same configuration, one after
the other in folders under the configuration's ``out``; a run that was stopped goes on. Then their training steps are
timed by turns.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bench.speed.timing import Pace, take_turns
from cmslap.files import write_json
from cmslap.training import config as configuration
from cmslap.training import directory, distributed, loop
from cmslap.training.config import Config
from cmslap.training.data import TrainingImages
from cmslap.training.trainer import Trainer

VARIANTS = {
    "shared_conv = 1": {"name": "CMSLapSRN", "shared_conv": 1},
    "shared_conv = 3": {"name": "CMSLapSRN", "shared_conv": 3},
    "shared_conv = 5": {"name": "CMSLapSRN", "shared_conv": 5},
    "MS-LapSRN (untied)": {"name": "MSLapSRN"},
}
ROUNDS = 15


def variant(base: Config, name: str) -> Config:
    table = asdict(base)
    common = {key: value for key, value in base.model.items() if key not in ("name", "shared_conv")}
    table["model"] = common | VARIANTS[name]
    table["out"] = str(Path(base.out) / name.split(" (")[0].replace(" ", ""))
    return configuration.from_dict(table)


def train(config: Config) -> dict[str, Any]:
    """The record of a configuration's run, which is trained as far as it is not."""
    status = loop.train(config, resume=directory.saved(Path(config.out)))
    if status:
        sys.exit(status)
    return json.loads((Path(config.out) / "record.json").read_text(encoding="utf-8"))


def step(config: Config) -> Callable[[], object]:
    """One training step of a fresh network, on images made beforehand."""
    workers = distributed.start(config.device)
    trainer = Trainer(config, workers)
    shares = TrainingImages(config.data, config.patch, trainer.model, workers.device).batch(
        0, config.seed, config.counts
    )
    return lambda: float(trainer.learn(0, shares).sum())  # reading the loss waits for the device


def result(config: Config, record: dict[str, Any], seconds: float) -> dict[str, Any]:
    parameters = sum(parameter.numel() for parameter in config.build_model().parameters())
    return {"parameters": parameters, "step_seconds": seconds, "psnr": record["validation"][-1]["psnr"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="as for cmslap train")
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE", help="as for cmslap train")
    parser.add_argument("--out", type=Path, required=True, help="the JSON file to write")
    args = parser.parse_args()
    configs = {name: variant(configuration.load(args.config, args.settings), name) for name in VARIANTS}
    records = {name: train(config) for name, config in configs.items()}
    steps = {name: step(config) for name, config in configs.items()}
    timings = take_turns(steps, "training step", Pace(ROUNDS))
    record = next(iter(records.values()))
    shared = {key: record[key] for key in ("commit", "torch", "device", "threads", "config", "step")}
    del shared["config"]["model"]["shared_conv"], shared["config"]["out"]
    shared["variants"] = {name: result(config, records[name], timings[name].median) for name, config in configs.items()}
    write_json(args.out, shared)


if __name__ == "__main__":
    main()
