"""Fair timings on a machine that is never quite idle.

The implementations of a case take turns, one timed stretch each a round, so that whatever disturbs the machine disturbs
them all; speed-ups are medians of the ratios within a round. One that raises is reported, and the others go on.
"""

from __future__ import annotations

import math
import signal
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
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
    stretch: float = 0.0,
) -> dict[str, Timing]:
    """Time every implementation ``rounds`` times, by turns, after one call each to warm up.

    ``clock`` must wait for what was started. A timed stretch is one call, or as many as take ``stretch`` seconds.
    """
    seconds: dict[str, list[float]] = {name: [] for name in implementations}
    calls = {}
    for name, implementation in implementations.items():
        implementation()
        calls[name] = math.ceil(stretch / max(_seconds(implementation, 1, clock), 1e-6)) if stretch else 1
    for _ in trange(rounds, desc=label, leave=False):
        for name, implementation in implementations.items():
            seconds[name].append(_seconds(implementation, calls[name], clock))
    first = next(iter(seconds.values()), [])
    return {name: _summary(values, first) for name, values in seconds.items()}


def _seconds(implementation: Implementation, calls: int, clock: Callable[[], float]) -> float:
    start = clock()
    for _ in range(calls):
        implementation()
    return (clock() - start) / calls


class TimeLimitError(BaseException):
    """The time is up. Like KeyboardInterrupt no Exception, so that no compiler takes it for a failed attempt."""


def ready(
    implementations: Mapping[str, Implementation], limit: float | None = None
) -> tuple[dict[str, Implementation], dict[str, str]]:
    """The implementations whose first call succeeds, where they compile and tune; and why the others don't.

    All first calls together may take ``limit`` seconds; what is not ready then is left out.
    """
    deadline = None if limit is None else time.monotonic() + limit
    working, failed = {}, {}
    for name, implementation in implementations.items():
        try:
            with _alarm(deadline):
                implementation()
        except Exception as error:
            failed[name] = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        except TimeLimitError:
            failed[name] = f"not ready within the {limit:.0f} s of this case"
        else:
            working[name] = implementation
    return working, failed


@contextmanager
def _alarm(deadline: float | None) -> Iterator[None]:
    """Raise TimeLimitError in the main thread at ``deadline``, a reading of time.monotonic."""
    if deadline is None:
        yield
        return

    def ring(*_: object) -> None:
        raise TimeLimitError

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, max(deadline - time.monotonic(), 1e-3))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


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
    absent: dict[str, str] = field(default_factory=dict)  # implementation -> why it is not there

    def measure(
        self,
        rounds: int,
        limit: float | None = None,
        clock: Callable[[], float] = time.perf_counter,
        stretch: float = 0.0,
    ) -> dict[str, Any]:
        """What goes into the JSON file; see :func:`ready` and :func:`take_turns` for the arguments."""
        working, failed = ready(self.implementations, limit)
        timings = take_turns(working, rounds, self.name, clock, stretch)
        return {
            "name": self.name,
            "size": self.size,
            "gflop": self.gflop,
            "absent": self.absent,
            "failed": failed,
            "timings": {name: timing.to_json() for name, timing in timings.items()},
        }
