"""The CPU suite: CMS-LapSRN on this machine's processor, the operations it is made of, and what people do with it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial

import torch

from bench.speed import baselines, end_to_end
from bench.speed.baselines import EAGER, EAGER_NCHW, EAGER_TUNED, Baseline
from bench.speed.suite import Case
from bench.speed.timing import Pace
from bench.speed.work import (
    OPERATIONS,
    THIRD_PARTY,
    Setting,
    Work,
    conv_gradient,
    forward,
    operation,
    recipe_step,
    sister,
    third_party,
    training_step,
    video_frame,
    video_step,
)

DEVICE = torch.device("cpu")
DTYPE = torch.float32  # of the ceilings
BUDGET = {"quick": 8.0, "usual": 20.0, "full": 120.0}  # seconds for the turns of a case
AVX2 = {"CMSLAP_ISA": "avx2", "ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"}  # as if it had no AVX-512


@dataclass(frozen=True)
class Sizes:
    """Pixels a side, and counts."""

    operation: int = 128
    block: int = 64  # of the recursive operations
    image: int = 128
    enlarged: int = 256  # what the networks read that enlarge by bicubic first
    step: tuple[int, int] = (4, 32)  # batch and side, a laptop's training
    small_step: tuple[int, int] = (16, 16)
    reference_step: tuple[int, int] = (64, 16)  # the reference code's: HR patches of 128 at 8x
    photograph: tuple[int, int] = (1920, 1080)
    frame: int = 480  # as many pixels as 640×360
    crops: tuple[int, int] = (16, 60)  # batch and side
    folder: int = 16
    recursions: int = 8


def pace(effort: str, rounds: int, limit: float | None) -> Pace:
    return Pace(rounds, BUDGET[effort], stretch=0.05, limit=limit)


def cases(effort: str, sizes: Sizes = Sizes()) -> dict[str, Case]:
    """By name. "quick" compiles little, "full" adds what takes minutes."""
    compiled = [] if effort == "quick" else [baselines.compiled()]
    ours = baselines.ours(DEVICE)
    image = Setting(side=sizes.image, recursions=sizes.recursions)
    batch, side = sizes.step
    step = Setting(batch=batch, side=side, recursions=sizes.recursions)
    thorough = effort != "quick"
    found = {}
    exported = [baselines.ONNXRUNTIME, baselines.OPENVINO]
    tuned = [baselines.compiled("max-autotune")] if effort == "full" else []
    everyone = [*ours, EAGER, EAGER_NCHW, EAGER_TUNED, baselines.compiled(), *tuned, *exported]
    found["forward"] = Case(partial(forward, 4), image, everyone, memory=thorough)
    found["bfloat16-forward"] = _in_bfloat16(partial(forward, 4), image)
    found["avx2-forward"] = Case(partial(forward, 4), image, _restricted(AVX2), note=", AVX2 only")
    found["training"] = Case(
        partial(training_step, 4, False), step, [*ours, EAGER, EAGER_NCHW, *compiled], memory=thorough
    )
    batch, side = sizes.small_step
    small = replace(step, batch=batch, side=side)
    found["small-training"] = Case(partial(training_step, 4, False), small, [*ours, EAGER, *compiled])
    found["recipe-training"] = Case(partial(recipe_step, "d5r2"), Setting(), [*ours, EAGER])
    if effort == "full":
        batch, side = sizes.reference_step
        setting = replace(step, batch=batch, side=side)
        found["reference-training"] = Case(partial(training_step, 8, False), setting, [*ours, EAGER], memory=True)
    if thorough:
        build = partial(end_to_end.enlargement, 2, *sizes.photograph)
        found["photograph"] = Case(build, Setting(), [*ours, EAGER, EAGER_TUNED], memory=True)
    frame = Setting(side=sizes.frame)
    found["video-frame"] = Case(video_frame, frame, [*ours, EAGER, EAGER_NCHW, EAGER_TUNED, *compiled, *exported])
    found["bfloat16-video-frame"] = _in_bfloat16(video_frame, frame)
    batch, side = sizes.crops
    crops = Setting(batch=batch, side=side)
    found["video-training"] = Case(video_step, crops, [*ours, EAGER, EAGER_NCHW, *compiled])
    accelerated = [baselines.ACCELERATED, EAGER, EAGER_NCHW, *compiled]
    for name in THIRD_PARTY if thorough else THIRD_PARTY[:1]:
        found[f"accelerate-{name}"] = Case(partial(third_party, name, False), image, accelerated)
        found[f"accelerate-{name}+backward"] = Case(partial(third_party, name, True), image, accelerated)
    enlarged = replace(image, side=sizes.enlarged)
    for name in ("VDSR", "AsymVDSR", "MASRN"):
        found[f"sister-{name}"] = Case(partial(sister, name, 2), enlarged, [*ours, EAGER, *compiled])
    found["folder"] = Case(partial(end_to_end.folder, sizes.folder), Setting(), [*ours, EAGER, EAGER_TUNED])
    found["first-result"] = Case(end_to_end.first_result, Setting(), end_to_end.starters(DEVICE, effort == "full"))
    return found | _operations(sizes, compiled)


def _operations(sizes: Sizes, compiled: list[Baseline]) -> dict[str, Case]:
    """Compiled with their gradients only, as each takes some ten seconds to compile."""
    found = {}
    for name in OPERATIONS:
        side = sizes.block if name in ("recursive_embedding", "lapsrn_level") else sizes.operation
        setting = Setting(side=side, recursions=sizes.recursions)
        everyone = [*baselines.ours(DEVICE), EAGER, EAGER_NCHW]
        found[name] = Case(partial(operation, name, False), setting, everyone)
        found[f"{name}+backward"] = Case(partial(operation, name, True), setting, [*everyone, *compiled])
    for prefix, batch, side in (("", 1, sizes.operation), ("laptop-", *sizes.step), ("small-", *sizes.small_step)):
        setting = Setting(batch=batch, side=side)
        everyone = [*baselines.ours(DEVICE), EAGER, *compiled]
        found[f"{prefix}weight-gradient"] = Case(partial(conv_gradient, "weight"), setting, everyone)
        if prefix:
            found[f"{prefix}conv2d_lrelu+backward"] = Case(partial(operation, "conv2d_lrelu", True), setting, everyone)
    return found


def _in_bfloat16(build: Callable[[Setting], Work], setting: Setting) -> Case:
    everyone = [baselines.in_precision("bf16"), *baselines.ours(DEVICE, "cmslap float32"), baselines.OPENVINO_BF16]
    return Case(build, setting, everyone, note=", bfloat16", roofline=False)


def _restricted(environment: Mapping[str, str]) -> list[Baseline]:
    return [replace(baseline, environment=environment) for baseline in (*baselines.ours(DEVICE), EAGER)]
