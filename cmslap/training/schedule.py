"""Learning-rate schedules as pure functions of the step, so that resuming needs no state."""

from __future__ import annotations

import math

from cmslap.training.config import ScheduleConfig


def _cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * share)) / 2


def factor(schedule: ScheduleConfig, step: int, steps: int) -> float:
    """Learning rate of step 0 ... ``steps - 1`` as a share of the peak.

    Warmup rises linearly over its steps, ending at the peak, and the schedule proper starts after it. One-cycle
    rises along a cosine from 1/25 of the peak instead. Cosine and one-cycle reach ``final`` at the last step.
    """
    if step < schedule.warmup:
        if schedule.name == "onecycle":
            return _cosine(1 / 25, 1.0, step / schedule.warmup)
        return (step + 1) / schedule.warmup
    done = step - schedule.warmup
    if schedule.name == "step":
        return schedule.gamma ** (done // schedule.every)
    if schedule.name in ("cosine", "onecycle"):
        return _cosine(1.0, schedule.final, done / max(1, steps - schedule.warmup - 1))
    return 1.0
