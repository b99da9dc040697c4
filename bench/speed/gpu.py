"""The GPU suite: CMS-LapSRN's operations, training steps and inference in bfloat16, beside what else runs there.

The activations of the operations are many times the size of a GPU's cache. Every baseline has a process of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch

from bench.speed import baselines, end_to_end
from bench.speed.baselines import EAGER, EAGER_NCHW, Baseline
from bench.speed.suite import Case
from bench.speed.timing import Pace, clock_of
from bench.speed.work import OPERATIONS, Setting, conv_gradient, forward, operation, training_step

DEVICE = torch.device("cuda")
DTYPE = torch.bfloat16
BUDGET = {"quick": 2.0, "usual": 4.0, "full": 20.0}  # seconds for the turns of a case
SHORT = ("conv2d_lrelu", "tied_conv_transpose2d")  # a few kernels, which the launches of a call outlast
# On large maps a CUDA graph would hide no launch, but copy the inputs at every replay.
TUNED = "max-autotune-no-cudagraphs"


@dataclass(frozen=True)
class Sizes:
    """What to measure; the defaults are the paper's setting and maps of a million pixels."""

    batch: int = 16
    side: int = 256  # pixels of the operations' maps, along a side
    low: int = 64  # pixels along a side of the training step's input, an eighth of its HR patch
    reference_step: tuple[int, int] = (64, 16)  # batch and side of the reference code's
    laptop_step: tuple[int, int] = (4, 32)  # of the CPU suite's, at 4x
    image: int = 128
    photograph: tuple[int, int] = (1920, 1080)
    folder: int = 64
    recursions: int = 8


def pace(effort: str, rounds: int, limit: float | None) -> Pace:
    return Pace(rounds, BUDGET[effort], stretch=0.03, limit=limit, warm_ups=2, clock=clock_of(DEVICE))


def cases(effort: str, sizes: Sizes = Sizes(), device: torch.device = DEVICE) -> dict[str, Case]:
    """By name. Those that torch.compile takes its time for have names of their own, "compiled-...", and come last.

    "quick" leaves out torch.compile's "max-autotune" of what is more than one convolution.
    """
    ours, plain = baselines.ours(device), [EAGER, EAGER_NCHW]
    setting = Setting(device, DTYPE, batch=sizes.batch, side=sizes.side, recursions=sizes.recursions)
    found = {}
    for name in OPERATIONS:
        able = baselines.ours(device, operation=name)
        for backward in (False, True):
            graphs = baselines.captured() if name in SHORT else []
            found[name + "+backward" * backward] = Case(
                partial(operation, name, backward), setting, [*able, *graphs, *plain]
            )
    for gradient in ("data", "weight"):
        found[f"conv2d_lrelu-{gradient}-gradient"] = Case(
            partial(conv_gradient, gradient), setting, [*ours, *baselines.captured(), *plain]
        )
    found |= _networks(sizes, setting, ours)
    anywhere = Setting(device, DTYPE)
    build = partial(end_to_end.enlargement, 2, *sizes.photograph)
    found["photograph"] = Case(build, anywhere, [*ours, EAGER], memory=True)
    found["folder"] = Case(partial(end_to_end.folder, sizes.folder), anywhere, [*ours, EAGER])
    found["first-result"] = Case(end_to_end.first_result, anywhere, end_to_end.starters(device, compiled=False))
    found |= {f"compiled-{name}": _compiled(effort, name, found[name], ours) for name in COMPILED}
    return {name: replace(case, apart=True) for name, case in found.items()}


def _networks(sizes: Sizes, setting: Setting, ours: Sequence[Baseline]) -> dict[str, Case]:
    """Training steps and inference."""
    everyone = [*ours, EAGER]

    def step(scale: int, batch: int, side: int, recompute: bool = False) -> Case:
        size = replace(setting, batch=batch, side=side)
        note = ", recompute" if recompute else ""
        return Case(partial(training_step, scale, recompute), size, everyone, note=note, memory=True)

    image = replace(setting, batch=1, side=sizes.image)
    return {
        "training": step(8, sizes.batch, sizes.low),
        "recompute-training": step(8, sizes.batch, sizes.low, recompute=True),
        "reference-training": step(8, *sizes.reference_step),
        "laptop-training": step(4, *sizes.laptop_step),
        "forward": Case(partial(forward, 4), image, [*ours, *baselines.captured(), EAGER], memory=True),
    }


# What torch.compile is measured with, besides its default; a convolution is tuned first, and quickly.
COMPILED = {
    "conv2d_lrelu": TUNED,
    "recursive_embedding+backward": TUNED,
    "training": None,
    "forward": "max-autotune",
    "tied_conv_transpose2d+backward": None,
}


def _compiled(effort: str, name: str, case: Case, ours: Sequence[Baseline]) -> Case:
    mode = COMPILED[name] if effort != "quick" or name == "conv2d_lrelu" else None
    modes = ["default", mode] if mode else ["default"]
    return replace(
        case, baselines=[*ours, *map(baselines.compiled, modes), *[baselines.TENSORRT] * (name == "forward")]
    )
