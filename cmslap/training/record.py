"""The training record: what a set of weights came from, as JSON beside them."""

from __future__ import annotations

import hashlib
import statistics
from pathlib import Path
from typing import Any

from cmslap.checkpoints.checkpoint import find_weights
from cmslap.training.config import Config, flat

CURVE_POINTS = 500
FIRST = 200  # steps whose every loss is kept, to be compared with a rerun's


def _thin(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """At most CURVE_POINTS of the entries, evenly spread, the last one included."""
    stride = -(-len(entries) // CURVE_POINTS) or 1
    return entries[::-1][::stride][::-1]


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
        "loss": [{key: entry[key] for key in ("step", "loss", "lr")} for entry in _thin(training)],
        "validation": [{key: entry[key] for key in ("step", "psnr", "mean")} for entry in log if "psnr" in entry],
    }
