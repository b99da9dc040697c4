"""How time and memory grow with the image: one network, squares from 64×64 pixels to what the device can do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import torch

from bench.speed import baselines, cpu, gpu
from bench.speed.suite import Case
from bench.speed.timing import Pace
from bench.speed.work import Setting, forward

DEVICE = gpu.DEVICE if torch.cuda.is_available() else cpu.DEVICE
DTYPE = gpu.DTYPE if torch.cuda.is_available() else cpu.DTYPE
SIDES = {"cpu": (64, 128, 256, 512, 1024, 2048), "cuda": (64, 128, 256, 512, 1024, 2048, 4096)}
QUICK = 4  # of a CPU's sides
RECURSIONS = 2  # the shipped network's; a processor can do 2048×2048 pixels of it


def pace(effort: str, rounds: int, limit: float | None) -> Pace:
    return (gpu if DEVICE.type == "cuda" else cpu).pace(effort, rounds, limit)


def cases(effort: str, sides: Sequence[int] = SIDES[DEVICE.type]) -> dict[str, Case]:
    """By side. Each baseline has a process of its own, on a CPU a fresh one: its memory can be seen and can run out."""
    everyone, on_gpu = [*baselines.ours(DEVICE), baselines.EAGER], DEVICE.type == "cuda"
    if not on_gpu:
        everyone = [*(replace(baseline, environment={}) for baseline in everyone), baselines.EAGER_TUNED]
        sides = sides[:QUICK] if effort == "quick" else sides
    setting = Setting(DEVICE, DTYPE, recursions=RECURSIONS)
    return {
        str(side): Case(partial(forward, 2), replace(setting, side=side), everyone, memory=True, apart=on_gpu)
        for side in sides
    }
