"""A suite is a list of cases: a piece of work, and who does it. Here they are measured."""

from __future__ import annotations

import functools
import gc
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from bench.speed import energy, load
from bench.speed.baselines import Baseline, backends_of, keeps_memory_in_graph
from bench.speed.ceilings import floor
from bench.speed.timing import Implementation, Pace, ready, reason, take_turns
from bench.speed.work import Build, Setting, Work
from bench.speed.worker import Worker, Workers


@dataclass(frozen=True)
class Case:
    """A piece of work, and who does it.

    Attributes:
        note: goes behind the work's name.
        roofline: whether the ceilings are of the precision that is computed in.
        memory: whether to measure each baseline's peak memory; on a CPU that is a call in a process of its own.
        apart: whether each baseline has a process of its own, which serves all such cases of a run.
    """

    build: Build
    setting: Setting
    baselines: Sequence[Baseline]
    note: str = ""
    memory: bool = False
    apart: bool = False
    roofline: bool = True


def measure(
    name: str, case: Case, pace: Pace, ceilings: Mapping[str, Any], workers: Workers, without: Sequence[str] = ()
) -> dict[str, Any]:
    """What goes into the JSON file. The baselines named in ``without`` are left out."""
    baselines = [baseline for baseline in case.baselines if baseline.name not in without]
    layouts = functools.cache(lambda layout: case.build(replace(case.setting, layout=layout)))
    if case.apart:
        workers.start([baseline.name for baseline in baselines])
    facts = None if case.apart else layouts(torch.channels_last).facts
    found = ready(
        {baseline.name: functools.partial(_prepare, baseline, case, layouts, workers) for baseline in baselines},
        pace.limit,
        pace.clock,
    )
    left_out = {baseline.name: "left out" for baseline in case.baselines if baseline.name in without}
    facts = facts or next((call.facts for call in found.working.values()), None)
    if facts is None:
        return _failure(name, case, found.failed, found.absent | left_out)
    timings = take_turns(found.working, facts["name"], pace, found.failed)
    least = floor(facts["gflop"], facts["gbyte"], ceilings) if facts["gflop"] and case.roofline else None
    result = {
        **facts,
        "name": facts["name"] + case.note,
        **_setting_facts(case.setting),
        "floor_seconds": least,
        "baseline": next(iter(timings), None),
        "absent": found.absent | left_out,
        "failed": found.failed,
        "timings": {name: timing.to_json() for name, timing in timings.items()},
    }
    for baseline in baselines:
        if baseline.name in timings:
            row = result["timings"][baseline.name]
            try:
                row |= _besides(baseline, case, facts, found.working[baseline.name], row["median"], least)
            except Exception as error:
                found.failed[baseline.name] = f"after its turns: {reason(error)}"
    return result


def _prepare(
    baseline: Baseline, case: Case, layouts: Callable[[torch.memory_format], Work], workers: Workers
) -> Implementation:
    if case.apart:
        return workers.of(baseline.name).prepare(baseline, case.build, case.setting)
    if baseline.environment is not None:
        return Worker(baseline.environment).prepare(baseline, case.build, case.setting)
    return baseline.prepare(layouts(baseline.layout))


def _besides(
    baseline: Baseline,
    case: Case,
    facts: Mapping[str, Any],
    call: Implementation,
    seconds: float,
    least: float | None,
) -> dict[str, Any]:
    """A row's figures besides the time."""
    figures: dict[str, Any] = {}
    if backends_of(call):
        figures["backends"] = backends_of(call)
    if least is not None:
        figures["share_of_floor"] = least / seconds
    if facts["images"]:
        figures["images_per_second"] = facts["images"] / seconds
    if case.memory:
        figures["peak_bytes"] = _peak_bytes(baseline, case, call)
    if facts["images"] and case.setting.device.type == "cuda":
        figures["joules"] = energy.joules(call, seconds, case.setting.device)
    return figures


def _peak_bytes(baseline: Baseline, case: Case, call: Implementation) -> int | None:
    """What a call takes beyond what is there before it."""
    if keeps_memory_in_graph(baseline.name):
        return None
    if not isinstance(call, Worker):
        call = Worker().prepare(baseline, case.build, case.setting)
    return call.peak_bytes


def measure_all(
    cases: Mapping[str, Case], pace: Pace, ceilings: Mapping[str, Any], without: Sequence[str] = ()
) -> Iterator[dict[str, Any]]:
    """Every case's result, one after the other; only one case is in memory at a time."""
    workers = Workers()
    for name, case in cases.items():
        others = load.others()
        try:
            result = measure(name, case, pace, ceilings, workers, without)
        except Exception as error:
            result = _failure(name, case, {"all": reason(error)})
        yield {"case": name, "others": others, **result}
        workers.release()
        torch.compiler.reset()  # gives back what the case's graphs hold
        gc.collect()


def _failure(
    name: str, case: Case, failed: Mapping[str, str], absent: Mapping[str, str] = types.MappingProxyType({})
) -> dict[str, Any]:
    """The result of a case that did not come to its timings: no memory for its inputs, or nobody could."""
    facts = {"name": name, **_setting_facts(case.setting), "size": "", "gflop": 0.0, "gbyte": 0.0, "images": 0}
    outcome = {"floor_seconds": None, "baseline": None, "absent": dict(absent), "failed": dict(failed), "timings": {}}
    return facts | outcome


def _setting_facts(setting: Setting) -> dict[str, Any]:
    return {"dtype": str(setting.dtype).removeprefix("torch."), "pixels": setting.pixels}
