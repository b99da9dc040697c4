"""Fair timings on a machine that is never quite idle.

The implementations of a case take turns, one call each a round, so that whatever disturbs the machine disturbs them
all; speed-ups are medians of the ratios within a round.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from tqdm import trange

Implementation = Callable[[], object]


@dataclass(frozen=True)
class Timing:
    """Seconds a call: over all rounds."""

    median: float
    low: float  # lower quartile
    high: float  # upper quartile
    best: float
    speedup: float  # of the case's first implementation over this one

    def to_json(self) -> dict[str, float]:
        return asdict(self)


def take_turns(
    implementations: Mapping[str, Implementation],
    rounds: int,
    label: str,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Timing]:
    """Time every implementation ``rounds`` times, by turns, after one call each to warm up."""
    seconds: dict[str, list[float]] = {name: [] for name in implementations}
    for implementation in implementations.values():
        implementation()
    for _ in trange(rounds, desc=label, leave=False):
        for name, implementation in implementations.items():
            start = clock()
            implementation()
            seconds[name].append(clock() - start)
    first = next(iter(seconds.values()))
    return {name: _summary(values, first) for name, values in seconds.items()}


def _summary(seconds: list[float], first: list[float]) -> Timing:
    low, _, high = statistics.quantiles(seconds, n=4, method="inclusive") if len(seconds) > 1 else seconds * 3
    speedup = statistics.median(other / own for other, own in zip(seconds, first, strict=True))
    return Timing(statistics.median(seconds), low, high, min(seconds), speedup)


@dataclass(frozen=True)
class Case:
    """One thing to do, done by several implementations; the first is ours."""

    name: str
    size: str
    gflop: float  # counted directly: multiply-adds of plain convolutions, twice
    implementations: dict[str, Implementation]
    absent: dict[str, str]  # implementation -> why it is not there

    def to_json(self, timings: Mapping[str, Timing]) -> dict[str, Any]:
        return {
            "name": self.name,
            "size": self.size,
            "gflop": self.gflop,
            "absent": self.absent,
            "timings": {name: timing.to_json() for name, timing in timings.items()},
        }
