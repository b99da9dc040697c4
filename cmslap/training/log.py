"""The log of a run: JSON lines, and TensorBoard's events on request."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cmslap.errors import UserError
from cmslap.files import replacing
from cmslap.training.config import flat


class MissingExtraError(UserError, ImportError):
    """A setting that needs one of the package's extras, which is not installed."""


class LogError(UserError, ValueError):
    """A log with a line that no run wrote."""


class Log:
    """A JSON-lines file: one object a line, each with its ``step``, going on after step ``after``.

    What the file has of later steps is dropped, and so is a last line that a kill cut short. With ``tensorboard`` the
    numbers also go to a folder of that name beside the file. Raises :class:`MissingExtraError` where that is not
    installed, and :class:`LogError`.
    """

    def __init__(self, path: Path, after: int, tensorboard: bool) -> None:
        self.path = path
        kept = [line for line, step in _lines(path) if step <= after]
        self.events = _tensorboard(path.parent / "tensorboard", after) if tensorboard else None
        with replacing(path) as temporary:
            temporary.write_bytes(b"".join(kept))

    def write(self, entry: dict[str, Any]) -> None:
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(entry) + "\n")
        except OSError as error:  # a full disk's names no file
            raise OSError(error.errno, error.strerror, str(self.path)) from error
        if self.events:
            for name, value in flat(entry, dot="/").items():
                if name != "step":
                    self.events.add_scalar(name, value, entry["step"])

    def read(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.path.read_text(encoding="utf-8").splitlines()]

    def sync(self) -> None:
        """Make sure that the lines so far are on the disk, before a checkpoint that counts on them."""
        with self.path.open("rb") as file:
            os.fsync(file.fileno())
        if self.events:
            self.events.flush()


def _lines(path: Path) -> Iterator[tuple[bytes, int]]:
    """The whole lines of a log, if there is one, and the step of each."""
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    for number, line in enumerate(lines, 1):
        if number == len(lines) and not line.endswith(b"\n"):
            return
        try:
            step = json.loads(line)["step"] + 0
        except (ValueError, LookupError, TypeError):
            raise LogError(f"{path}, line {number}: damaged; remove that line to go on") from None
        yield line, step


def _tensorboard(folder: Path, after: int) -> Any:  # noqa: ANN401 - a SummaryWriter, which may not be installed
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise MissingExtraError("tensorboard = true: it is not installed; pip install cmslap[tensorboard]") from error
    return SummaryWriter(folder, purge_step=after + 1)
