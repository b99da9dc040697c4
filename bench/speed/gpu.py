"""The GPU suite: CMS-LapSRN's operations, training steps and inference in bfloat16, beside what else runs there.

The activations of the operations are many times the size of a GPU's cache.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor
from torch._functorch import config as functorch_config

from bench.speed import baselines, end_to_end
from bench.speed.baselines import EAGER, EAGER_NCHW
from bench.speed.suite import Case
from bench.speed.timing import Implementation, Pace, clock_of
from bench.speed.work import OPERATIONS, Inputs, Setting, Work, forward, operation, training_step

DEVICE = torch.device("cuda")
DTYPE = torch.bfloat16
BUDGET = {"quick": 4.0, "usual": 6.0, "full": 20.0}  # seconds for the turns of a case

# The operations whose tuning by torch.compile is waited for. On large maps a CUDA graph would hide no launch, but copy
# the inputs at every replay.
TUNED = {
    "conv2d_lrelu": "max-autotune-no-cudagraphs",
    "conv2d_lrelu-backward-alone": "max-autotune-no-cudagraphs",
    "tied_conv_transpose2d+backward": "max-autotune-no-cudagraphs",
    "recursive_embedding+backward": "max-autotune",
}

SHORT = ("conv2d_lrelu", "tied_conv_transpose2d")  # a few kernels, which the launches of a call outlast


@dataclass(frozen=True)
class Sizes:
    """What to measure; the defaults are the paper's setting and maps of a million pixels."""

    batch: int = 16
    side: int = 256  # pixels of the operations' maps, along a side
    low: int = 64  # pixels along a side of the training step's input, an eighth of its HR patch
    reference_step: tuple[int, int] = (64, 16)  # batch and side of the reference code's
    image: int = 128
    photograph: tuple[int, int] = (1920, 1080)
    folder: int = 64
    recursions: int = 8


def pace(effort: str, rounds: int, limit: float | None) -> Pace:
    return Pace(rounds, BUDGET[effort], stretch=0.03, limit=limit, warm_ups=2, clock=clock_of(DEVICE))


def cases(effort: str, sizes: Sizes = Sizes(), device: torch.device = DEVICE) -> dict[str, Case]:
    """By name. "quick" leaves torch.compile's "max-autotune" out. What compiles longest comes last in a case."""
    ours, plain = baselines.ours(device), [EAGER, EAGER_NCHW]
    compiled = (
        [baselines.compiled()] if effort == "quick" else [baselines.compiled(), baselines.compiled("max-autotune")]
    )
    setting = Setting(device, DTYPE, batch=sizes.batch, side=sizes.side, recursions=sizes.recursions)
    found = {}
    for name in OPERATIONS:
        for backward in (False, True):
            graphs = baselines.captured() if name in SHORT else []
            everyone = [*ours, *graphs, *plain]
            found[name + "+backward" * backward] = Case(partial(operation, name, backward), setting, everyone)
    found["conv2d_lrelu-backward-alone"] = Case(_conv_backward, setting, [*ours, *plain])
    for name, case in found.items():
        modes = ["default"] if effort == "quick" or name not in TUNED else ["default", TUNED[name]]
        found[name] = replace(case, baselines=[*case.baselines, *map(baselines.compiled, modes)])
    image = replace(setting, batch=1, side=sizes.image)
    everyone = [*ours, *baselines.captured(), *plain, *compiled, baselines.TENSORRT]
    found["forward"] = Case(partial(forward, 4), image, everyone, memory=True)
    step = replace(setting, side=sizes.low)
    found["training"] = Case(partial(training_step, 8, False), step, [*ours, *plain, *compiled], memory=True)
    found["recompute-training"] = Case(
        partial(training_step, 8, True), step, [*ours, EAGER], note=", recompute", memory=True
    )
    batch, side = sizes.reference_step
    step = replace(setting, batch=batch, side=side)
    found["reference-training"] = Case(partial(training_step, 8, False), step, [*ours, EAGER, *compiled], memory=True)
    anywhere = Setting(device, DTYPE)
    build = partial(end_to_end.enlargement, 2, *sizes.photograph)
    found["photograph"] = Case(build, anywhere, [*ours, EAGER], memory=True)
    found["folder"] = Case(partial(end_to_end.folder, sizes.folder), anywhere, [*ours, EAGER])
    found["first-result"] = Case(end_to_end.first_result, anywhere, end_to_end.starters(device, compiled=False))
    return found


def _conv_backward(setting: Setting) -> Work:
    """The backward pass alone, over and over on one forward pass of each input."""
    both, forward_only = (operation("conv2d_lrelu", backward, setting) for backward in (True, False))
    name = "conv2d_lrelu backward alone"
    gflop, gbyte = both.gflop - forward_only.gflop, both.gbyte - forward_only.gbyte
    return Work(name, both.size, both.function, both.inputs, _backward_of(both.inputs), gflop, gbyte)


def _backward_of(inputs: Sequence[Inputs]) -> Callable[[Callable[..., Tensor]], Implementation]:
    def drive(function: Callable[..., Tensor]) -> Implementation:
        passes: list[tuple[Inputs, Tensor, Tensor]] = []
        turns = itertools.cycle(range(len(inputs)))

        def call() -> None:
            with functorch_config.patch(donated_buffer=False):  # compiled code must keep what it saved
                if not passes:
                    outputs = [function(*arguments) for arguments in inputs]
                    passes.extend((i, o, torch.randn_like(o)) for i, o in zip(inputs, outputs, strict=True))
                arguments, output, grad = passes[next(turns)]
                torch.autograd.grad(output, arguments, grad, retain_graph=True)

        return call

    return drive
