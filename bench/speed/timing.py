"""Fair timings on a machine that is never quite idle.

The implementations of a case take turns, one timed stretch each a round, so that whatever disturbs the machine disturbs
them all; speed-ups are medians of the ratios within a round. One that raises is reported, and the others go on.
What was started is waited for before the next has its turn: an error belongs to whom it is found with.
"""

from __future__ import annotations

import math
import signal
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass

import torch
from tqdm import trange

from cmslap.devices import PrecisionError

Implementation = Callable[[], object]
FEWEST_ROUNDS = 3


@dataclass(frozen=True)
class Pace:
    """How long to measure a case.

    Attributes:
        rounds: turns of each implementation, if ``seconds`` suffice; at least three.
        seconds: for all turns together.
        stretch: seconds a turn should last; a shorter call is repeated that long.
        limit: seconds for the first call of each, where it compiles and tunes; None is no limit.
        warm_ups: calls before the first turn, after the one that showed that it works; a CUDA graph of torch.compile's
            is recorded in the first of them. One that takes over a second is enough.
        clock: must wait for what was started.
    """

    rounds: int
    seconds: float = math.inf
    stretch: float = 0.0
    limit: float | None = None
    warm_ups: int = 1
    clock: Callable[[], float] = time.perf_counter


@dataclass(frozen=True)
class Timing:
    """Seconds a call, over ``rounds`` turns."""

    rounds: int
    median: float
    low: float  # lower quartile
    high: float  # upper quartile
    best: float
    speedup: float  # of the case's first implementation over this one

    def to_json(self) -> dict[str, int | float]:
        return asdict(self)


def take_turns(
    implementations: Mapping[str, Implementation], label: str, pace: Pace, failed: dict[str, str] | None = None
) -> dict[str, Timing]:
    """Time every implementation by turns; ``label`` names the progress bar.

    One that raises leaves, with its reason in ``failed``; where that is None the exception is the caller's.
    """
    working = dict(implementations)

    def timed(name: str, calls: int) -> float | None:
        try:
            return seconds_of(working[name], calls, pace.clock)
        except Exception as error:
            if failed is None:
                raise
            failed[name] = reason(error)
            del working[name]
            return None

    calls, a_round = {}, 0.0
    for name in implementations:
        once = None
        for _ in range(pace.warm_ups):
            once = timed(name, 1)
            if once is None or once > 1:
                break
        if once is not None:
            once = max(once, 1e-6)
            calls[name] = max(math.ceil(pace.stretch / once), 1)
            a_round += calls[name] * once
    rounds = pace.rounds
    if rounds * a_round > pace.seconds:
        rounds = min(rounds, max(FEWEST_ROUNDS, int(pace.seconds / a_round)))
    seconds: dict[str, list[float]] = {name: [] for name in implementations}
    for _ in trange(rounds, desc=label, leave=False, disable=None):
        for name in list(working):
            seconds[name].append(timed(name, calls[name]))
    first = next((seconds[name] for name in working), [])
    return {name: _summary(seconds[name], first) for name in working}


def seconds_of(implementation: Implementation, calls: int, clock: Callable[[], float]) -> float:
    """Seconds a call, over ``calls`` of them."""
    if hasattr(implementation, "seconds"):  # another process has it, and its clock
        return implementation.seconds(calls)
    start = clock()
    for _ in range(calls):
        implementation()
    return (clock() - start) / calls


def _summary(seconds: list[float], first: list[float]) -> Timing:
    low, _, high = statistics.quantiles(seconds, n=4, method="inclusive") if len(seconds) > 1 else seconds * 3
    speedup = statistics.median(other / own for other, own in zip(seconds, first, strict=True))
    return Timing(len(seconds), statistics.median(seconds), low, high, min(seconds), speedup)


def clock_of(device: torch.device) -> Callable[[], float]:
    """Seconds on a clock that waits for what was started on ``device``."""
    if device.type != "cuda":
        return time.perf_counter

    def clock() -> float:
        torch.cuda.synchronize(device)
        return time.perf_counter()

    return clock


class TimeLimitError(BaseException):
    """The time is up. Like KeyboardInterrupt no Exception, so that no compiler takes it for a failed attempt."""


@dataclass(frozen=True)
class Ready:
    """The implementations whose first call succeeded, and why the others are not there or failed."""

    working: dict[str, Implementation]
    absent: dict[str, str]
    failed: dict[str, str]


def ready(
    contenders: Mapping[str, Callable[[], Implementation]],
    limit: float | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> Ready:
    """Prepare every contender and call it once, where it compiles and tunes; each may take ``limit`` seconds.

    One that raises ImportError or PrecisionError is absent: not installed, or not to be had here. ``clock`` must wait
    for what was started, or an asynchronous failure would be found with the next contender.
    """
    found = Ready({}, {}, {})
    for name, prepare in contenders.items():
        try:
            with _alarm(limit):
                implementation = prepare()
                implementation()
                clock()
        except (ImportError, PrecisionError) as error:
            found.absent[name] = str(error)
        except Exception as error:
            found.failed[name] = reason(error)
        except TimeLimitError:
            found.failed[name] = f"not ready within {limit:g} s"
        else:
            found.working[name] = implementation
    return found


def reason(error: Exception) -> str:
    """One line."""
    text = " ".join(str(error).split())[:200]
    memory = isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in text
    return "out of memory" if memory or "bad_alloc" in text else f"{type(error).__name__}: {text}"


@contextmanager
def _alarm(seconds: float | None) -> Iterator[None]:
    """Raise TimeLimitError in the main thread after ``seconds``."""
    if seconds is None:
        yield
        return

    def ring(*_: object) -> None:
        raise TimeLimitError

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
