"""Ending a run in good order when it is asked to."""

from __future__ import annotations

import signal
from types import FrameType


class StopRequest:
    """While entered, the first SIGINT or SIGTERM only sets ``signal`` to its number; a second one acts as usual."""

    def __init__(self) -> None:
        self.signal = 0

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.signal = number
        signal.signal(number, self.previous[number])

    def __enter__(self) -> StopRequest:
        self.previous = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)
