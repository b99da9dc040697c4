import itertools

import pytest
import torch

from bench.speed.timing import Pace, TimeLimitError, ready, reason, take_turns


class Clock:
    """Time passes only when an implementation runs."""

    def __init__(self):
        self.now, self.calls = 0.0, []

    def implementation(self, name, *seconds):
        durations = itertools.cycle(seconds)

        def call():
            self.calls.append(name)
            self.now += next(durations)

        return call

    def pace(self, rounds, **more):
        return Pace(rounds, clock=lambda: self.now, **more)


def test_implementations_take_turns():
    """A disturbance that doubles a whole round's times changes neither median nor speed-up."""
    clock, factors = Clock(), (1, 1, 1, 2, 1, 1)  # warm-up, then five rounds
    ours = clock.implementation("ours", *(2.0 * factor for factor in factors))
    theirs = clock.implementation("theirs", *(3.0 * factor for factor in factors))
    timings = take_turns({"ours": ours, "theirs": theirs}, "case", clock.pace(5))
    assert clock.calls == ["ours", "theirs"] * 6
    assert (timings["ours"].median, timings["theirs"].median, timings["ours"].best) == (2.0, 3.0, 2.0)
    assert (timings["ours"].speedup, timings["theirs"].speedup) == (1.0, 1.5)


def test_short_calls_are_repeated():
    clock = Clock()
    calls = {"short": clock.implementation("short", 0.25), "long": clock.implementation("long", 4.0)}
    timings = take_turns(calls, "case", clock.pace(3, stretch=1.0))
    assert clock.calls == ["short", "long"] + 3 * (["short"] * 4 + ["long"])
    assert timings["short"].median == 0.25


@pytest.mark.parametrize(("seconds", "rounds"), [(100.0, 9), (50.0, 5), (1.0, 3)])
def test_rounds_fit_the_time_but_are_three_at_least(seconds, rounds):
    clock = Clock()
    take_turns({"one": clock.implementation("one", 10.0)}, "case", clock.pace(9, seconds=seconds))
    assert len(clock.calls) == 1 + rounds


def test_what_does_not_return_in_time_is_left_out():
    def endless():
        try:
            while True:
                pass
        except Exception:  # what a compiler does about a failed attempt
            endless()

    contenders = {"quick": lambda: lambda: None, "endless": lambda: endless, "late": lambda: lambda: None}
    found = ready(contenders, limit=0.2)
    assert "quick" in found.working
    assert found.failed["endless"] == "not ready within the 0 s of this case"
    assert not issubclass(TimeLimitError, Exception)


def test_what_is_not_installed_is_absent_and_what_raises_failed():
    def missing():
        raise ImportError("No module named 'baseline'")

    def broken():
        raise RuntimeError("raised:\nillegal address")

    found = ready({"missing": missing, "broken": lambda: broken, "fine": lambda: list})
    assert found.absent == {"missing": "No module named 'baseline'"}
    assert found.failed == {"broken": "RuntimeError: raised: illegal address"}
    assert found.working == {"fine": list}


@pytest.mark.parametrize(
    "error",
    [MemoryError(), torch.OutOfMemoryError("CUDA"), RuntimeError("DefaultCPUAllocator: can't allocate memory: 9")],
)
def test_out_of_memory_is_named_so(error):
    assert reason(error) == "out of memory"
