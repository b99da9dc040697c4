"""The training record: what a set of weights came from, as JSON beside them."""

from __future__ import annotations

import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

import cmslap
from cmslap.training.config import Config, to_dict

CURVE_POINTS = 500


def commit() -> str | None:
    """Commit of the checkout this package runs from (``-dirty`` appended where files differ), None outside one."""
    root = Path(cmslap.__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor()} ({torch.backends.cpu.get_cpu_capability()})"


def _thin(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """At most CURVE_POINTS of the entries, evenly spread, the last one included."""
    stride = -(-len(entries) // CURVE_POINTS) or 1
    return entries[::-1][::stride][::-1]


def build(
    config: Config,
    device: torch.device,
    world: int,
    images: int,
    seconds: float,
    step: int,
    log: list[dict[str, Any]],
) -> dict[str, Any]:
    """The record of a run after ``step`` steps; ``images`` is how many pictures it trains on, ``log`` its lines."""
    training = [entry for entry in log if "loss" in entry]
    return {
        "version": cmslap.__version__,
        "commit": commit(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "device": device_name(device),
        "processes": world,
        "threads": torch.get_num_threads(),
        "config": to_dict(config),
        "images": images,
        "step": step,
        "seconds": round(seconds, 1),
        "images_per_second": round(step * config.batch / seconds, 2) if seconds else None,
        "loss": [{key: entry[key] for key in ("step", "loss", "lr")} for entry in _thin(training)],
        "validation": [{key: entry[key] for key in ("step", "psnr", "mean")} for entry in log if "psnr" in entry],
    }
