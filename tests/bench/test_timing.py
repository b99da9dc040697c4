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
    assert found.working.keys() == {"quick", "late"}
    assert found.failed["endless"] == "not ready within 0.2 s"
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


def test_a_fault_is_found_with_the_contender_that_caused_it():
    """Started work fails when it is waited for, as on a GPU."""
    pending = []

    def clock():
        if pending:
            raise RuntimeError(pending.pop())
        return 0.0

    contenders = {"faulty": lambda: lambda: pending.append("illegal address"), "next": lambda: lambda: None}
    found = ready(contenders, clock=clock)
    assert found.failed == {"faulty": "RuntimeError: illegal address"}
    assert found.working.keys() == {"next"}


@pytest.mark.parametrize("good_calls", [1, 3])
def test_one_that_fails_in_its_turns_leaves_and_the_others_go_on(good_calls):
    clock, calls, failed = Clock(), [], {}

    def faulty():
        calls.append(0)
        if len(calls) > good_calls:
            raise RuntimeError("illegal address")

    implementations = {"faulty": faulty, "fine": clock.implementation("fine", 1.0)}
    timings = take_turns(implementations, "case", clock.pace(5), failed)
    assert failed == {"faulty": "RuntimeError: illegal address"}
    assert timings.keys() == {"fine"}
    assert clock.calls == ["fine"] * 6
    with pytest.raises(RuntimeError):
        take_turns(implementations, "case", clock.pace(5))


@pytest.mark.parametrize(
    "error",
    [MemoryError(), torch.OutOfMemoryError("CUDA"), RuntimeError("DefaultCPUAllocator: can't allocate memory: 9")],
)
def test_out_of_memory_is_named_so(error):
    assert reason(error) == "out of memory"
