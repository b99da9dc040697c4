"""The training record: what a set of weights came from, as JSON beside them; and whether it still holds."""

import hashlib
import json
import statistics
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import trange

from cmslap.checkpoints.checkpoint import find_weights
from cmslap.training import distributed
from cmslap.training.config import Config, ConfigError, flat
from cmslap.training.data import TrainingImages
from cmslap.training.trainer import Trainer

CURVE_POINTS = 500  # of the loss at most, evenly spread, the last one included
FIRST = 200  # steps whose every loss is kept, to be compared with a rerun's
TOLERANCE = 0.01  # of a rerun's loss: other processors round differently, and training amplifies that


def published(table: dict[str, Any]) -> dict[str, Any]:
    """A configuration with the names of its folders and files in place of their paths on this machine."""
    names = {key: Path(table[key]).name for key in ("out", "init")}
    for section, key in (("data", "train"), ("validation", "data")):
        names[section] = table[section] | {key: [Path(folder).name for folder in table[section][key]]}
    return table | names


def changes(old: dict[str, Any], new: dict[str, Any]) -> dict[str, list[Any]]:
    """What differs between two configurations: ``{dotted key: [old value, new value]}``."""
    before, now = flat(published(old)), flat(published(new))
    return {key: [before[key], now[key]] for key in sorted(now.keys() & before.keys()) if now[key] != before[key]}


def init_digest(config: Config) -> str | None:
    """SHA-256 of the weights a run starts from: a name may mean others in a later version."""
    return hashlib.sha256(find_weights(config.init).read_bytes()).hexdigest() if config.init else None


def build(
    state: dict[str, Any], init_sha256: str | None, images: int, first_losses: list[float], log: list[dict[str, Any]]
) -> dict[str, Any]:
    """The record of a run in the ``state`` that its checkpoint has.

    Its ``origins`` are those of the run's parts where they differ, the latest last; ``resumed`` says after which step
    which settings were changed. ``images`` is how many images the run trains on, ``first_losses`` are the losses of
    its first steps one by one, ``log`` are its lines.
    """
    training = [entry for entry in log if "loss" in entry]
    stride = -(-len(training) // CURVE_POINTS) or 1
    speeds = [entry["images_per_second"] for entry in training]
    return {
        **state["origins"][-1],
        "earlier": state["origins"][:-1],
        "config": published(state["config"]),
        "resumed": state["resumed"],  # [{"step": after which, "changes": {key: [before, from then on]}}]
        "init_sha256": init_sha256,
        "images": images,
        "step": state["step"],
        "seconds": round(state["seconds"], 1),  # with decoding, validating and saving
        "images_per_second": statistics.median(speeds) if speeds else None,  # of the training steps alone
        "first_losses": first_losses,
        "loss": [{key: entry[key] for key in ("step", "loss", "lr")} for entry in training[::-1][::stride][::-1]],
        "validation": [{key: entry[key] for key in ("step", "psnr", "mean")} for entry in log if "psnr" in entry],
    }


def mean_loss(scale_losses: Tensor, counts: dict[int, int]) -> float:
    """Mean over a step's images of the scales' mean losses [number of scales], on the CPU."""
    images = torch.tensor(list(counts.values()), dtype=torch.float64)
    return float((scale_losses * images).sum() / images.sum())


def reproduce(path: Path, config: Config) -> int:
    """Rerun the first steps of the record at ``path``, whose configuration is ``config``; nothing is written.

    Prints the largest difference of a loss, and returns 0 if it is within :data:`TOLERANCE`, else 1. With the
    record's commit, kind of processor and number of threads there is none.
    """
    record = json.loads(path.read_text(encoding="utf-8")) if path.suffix == ".json" else {}
    recorded = record.get("first_losses")
    if not recorded:
        raise ConfigError(f"{path} keeps no losses of first steps to compare with: a run's record.json is expected")
    begun_from = record.get("init_sha256")
    if begun_from and begun_from != init_digest(config):
        raise ConfigError(
            f"init = {config.init!r} are not the weights this run began from; give theirs with init=FILE. Those that "
            "came with the package then are in its history: "
            f"git show {record['commit'].removesuffix('-dirty')}:cmslap/weights/NAME.safetensors"
        )
    differences = [abs(loss / was - 1) for loss, was in zip(first_losses(config, len(recorded)), recorded, strict=True)]
    worst = max(range(len(differences)), key=differences.__getitem__)
    equal = sum(difference == 0 for difference in differences)
    print(
        f"{len(recorded)} losses, {equal} of them equal to the bit; "
        f"the largest relative difference is {differences[worst]:.1e}, in step {worst + 1}"
    )
    return int(differences[worst] > TOLERANCE)


def first_losses(config: Config, steps: int) -> list[float]:
    """The losses of a run's first steps, in one process."""
    workers = distributed.start(config.device)
    try:
        trainer, counts = Trainer(config, workers), config.counts
        images = TrainingImages(config.data, config.patch, trainer.model, workers.device)
        values = []
        for step in trange(steps, desc="rerunning", unit="step"):
            scale_losses = trainer.learn(step, images.batch(step, config.seed, counts))
            values.append(mean_loss(scale_losses.cpu(), counts))
        return values
    finally:
        distributed.stop(workers)
