from __future__ import annotations

import pytest

from cmslap.training.config import ScheduleConfig
from cmslap.training.optimizers import factor

STEPS = 101


def values(**settings):
    return [factor(ScheduleConfig(**settings), step, STEPS) for step in range(STEPS)]


def test_constant_after_linear_warmup():
    assert values(name="constant", warmup=4)[:6] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]


def test_step_drops_every_so_many_steps():
    got = values(name="step", every=30, gamma=0.1)
    assert [got[i] for i in (0, 29, 30, 60, 90, 100)] == pytest.approx([1, 1, 0.1, 0.01, 0.001, 0.001])


def test_cosine_falls_from_the_peak_to_final():
    got = values(name="cosine", final=0.2)
    assert [got[0], got[50], got[100]] == pytest.approx([1, 0.6, 0.2])
    assert got == sorted(got, reverse=True)


def test_onecycle_rises_over_warmup_and_falls_to_final():
    got = values(name="onecycle", warmup=20)
    assert [got[0], got[10], got[20], got[60], got[100]] == pytest.approx([0.04, 0.52, 1, 0.5, 0])
    assert max(got) == got[20] == 1


def test_a_run_of_one_step():
    assert factor(ScheduleConfig(name="cosine"), 0, 1) == 1
