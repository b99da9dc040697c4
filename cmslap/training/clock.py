"""How long batches take, measured without slowing the step down."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

import torch


class DataClock:
    """Time spent making batches: on the host's clock, on CUDA on the device's own, without waiting for it."""

    def __init__(self, device: torch.device) -> None:
        self.cuda = device.type == "cuda"
        self.spans: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []
        self.seconds = 0.0

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        if self.cuda:
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            yield
            end.record()
            self.spans.append((begin, end))
        else:
            begin = time.perf_counter()
            yield
            self.seconds += time.perf_counter() - begin

    def take(self) -> float:
        """Seconds since the last call."""
        if self.spans:
            self.spans[-1][1].synchronize()
            self.seconds += sum(begin.elapsed_time(end) for begin, end in self.spans) / 1000
            self.spans.clear()
        seconds, self.seconds = self.seconds, 0.0
        return seconds
