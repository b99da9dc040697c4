"""A suite is a list of cases: a piece of work, and who does it. Here they are measured."""

from __future__ import annotations

import functools
import gc
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from bench.speed import energy, load
from bench.speed.baselines import Baseline, keeps_memory_in_graph
from bench.speed.ceilings import floor
from bench.speed.timing import Implementation, Pace, ready, reason, take_turns
from bench.speed.work import Build, Setting, Work
from bench.speed.worker import Worker


@dataclass(frozen=True)
class Case:
    """``note`` goes behind the work's name. ``memory`` asks for each baseline's peak memory; on a CPU that is a call
    in a process of its own."""

    build: Build
    setting: Setting
    baselines: Sequence[Baseline]
    note: str = ""
    memory: bool = False


def measure(case: Case, pace: Pace, ceilings: Mapping[str, Any], without: Sequence[str] = ()) -> dict[str, Any]:
    """What goes into the JSON file. The baselines named in ``without`` are left out."""
    baselines = [baseline for baseline in case.baselines if baseline.name not in without]
    layouts = functools.cache(lambda layout: case.build(replace(case.setting, layout=layout)))
    work = layouts(torch.channels_last)
    found = ready(
        {baseline.name: functools.partial(_prepare, baseline, case, layouts) for baseline in baselines}, pace.limit
    )
    timings = take_turns(found.working, work.name, pace)
    least = floor(work.gflop, work.gbyte, ceilings) if work.gflop else None
    result = {
        "name": work.name + case.note,
        **_setting_facts(case.setting),
        "size": work.size,
        "gflop": work.gflop,
        "gbyte": work.gbyte,
        "images": work.images,
        "floor_seconds": least,
        "baseline": next(iter(timings), None),
        "absent": found.absent
        | {name: "left out" for name in without if name in {baseline.name for baseline in case.baselines}},
        "failed": found.failed,
        "timings": {name: timing.to_json() for name, timing in timings.items()},
    }
    for baseline in baselines:
        if baseline.name in timings:
            row = result["timings"][baseline.name]
            row |= _besides(baseline, case, work, found.working[baseline.name], row["median"], least)
    return result


def _prepare(baseline: Baseline, case: Case, layouts: Callable[[torch.memory_format], Work]) -> Implementation:
    if baseline.environment is not None:
        return Worker(baseline, case.build, case.setting)
    return baseline.prepare(layouts(baseline.layout))


def _besides(
    baseline: Baseline, case: Case, work: Work, call: Implementation, seconds: float, least: float | None
) -> dict[str, float | None]:
    """A row's figures besides the time."""
    figures: dict[str, float | None] = {}
    if least is not None:
        figures["share_of_floor"] = least / seconds
    if work.images:
        figures["images_per_second"] = work.images / seconds
    if case.memory:
        figures["peak_bytes"] = _peak_bytes(baseline, case, call)
    if work.images and case.setting.device.type == "cuda":
        figures["joules"] = energy.joules(call, seconds, case.setting.device)
    return figures


def _peak_bytes(baseline: Baseline, case: Case, call: Implementation) -> int | None:
    """What a call takes beyond what is there before it."""
    device = case.setting.device
    if device.type == "cpu":
        return call.peak_bytes if isinstance(call, Worker) else Worker(baseline, case.build, case.setting).peak_bytes
    if keeps_memory_in_graph(baseline.name):
        return None
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    call()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def measure_all(
    cases: Mapping[str, Case], pace: Pace, ceilings: Mapping[str, Any], without: Sequence[str] = ()
) -> Iterator[dict[str, Any]]:
    """Every case's result, one after the other; only one case is in memory at a time."""
    for name, case in cases.items():
        others = load.others()
        try:
            result = measure(case, pace, ceilings, without)
        except Exception as error:
            result = _failure(name, case, error)
        yield {"case": name, "others": others, **result}
        torch.compiler.reset()  # gives back what the case's graphs hold
        gc.collect()
        if case.setting.device.type == "cuda":
            torch.cuda.empty_cache()


def _failure(name: str, case: Case, error: Exception) -> dict[str, Any]:
    """The result of a case that did not come to its timings: no memory for its inputs, or a broken device."""
    facts = {"name": name, **_setting_facts(case.setting), "size": "", "gflop": 0.0, "gbyte": 0.0, "images": 0}
    outcome = {"floor_seconds": None, "baseline": None, "absent": {}, "failed": {"all": reason(error)}, "timings": {}}
    return facts | outcome


def _setting_facts(setting: Setting) -> dict[str, Any]:
    return {"dtype": str(setting.dtype).removeprefix("torch."), "pixels": setting.pixels}
