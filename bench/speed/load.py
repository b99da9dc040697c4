"""Whether a machine is idle enough to measure on, and how it is kept busy."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

NOISY = 0.1  # share of the processors

_COMPUTES = "import os\nparent = os.getppid()\nwhile os.getppid() == parent: pass"  # not longer than who started it


@contextmanager
def busy(processes: int) -> Iterator[None]:
    """Inside the ``with``, so many other processes compute all the time."""
    with ExitStack() as stack:
        for _ in range(processes):
            process = stack.enter_context(subprocess.Popen([sys.executable, "-c", _COMPUTES]))
            stack.callback(process.kill)
        yield


def others(seconds: float = 0.5) -> float | None:
    """The share of all processors that is busy while this process waits; None where the system does not say."""
    try:
        before = _ticks()
        time.sleep(seconds)
        after = _ticks()
    except OSError:  # not Linux
        return None
    passed = [b - a for a, b in zip(before, after, strict=True)]
    idle = passed[3] + passed[4]  # waiting for a disk counts as such
    return 1 - idle / max(sum(passed), 1)


def _ticks() -> list[int]:
    """Of user, nice, system, idle, iowait, irq, softirq and steal, since the start."""
    return [int(field) for field in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]


def noise(results: Sequence[Mapping[str, Any]]) -> str:
    """A sentence if any case found the machine busy, else nothing."""
    most = max((result["others"] or 0.0 for result in results), default=0.0)
    return f"Other programs kept up to {most:.0%} of the processors busy: expect noise." if most > NOISY else ""
