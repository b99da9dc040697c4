"""The log of a run: JSON lines, and TensorBoard's events on request."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from cmslap.errors import UserError
from cmslap.files import replacing


class MissingExtraError(UserError, ImportError):
    """A setting that needs one of the package's extras, which is not installed."""


class Log:
    """A JSON-lines file: one object a line, each with its ``step``, going on after step ``after``.

    What the file has of later steps is dropped, and so is a line that a kill cut short. With ``tensorboard`` the
    numbers also go to a folder of that name beside the file. Raises :class:`MissingExtraError` where that is not
    installed.
    """

    def __init__(self, path: Path, after: int, tensorboard: bool) -> None:
        self.path = path
        self.events = _tensorboard(path.parent / "tensorboard", after) if tensorboard else None
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
        kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= after]
        with replacing(path) as temporary:
            temporary.write_text("".join(kept), encoding="utf-8")

    def write(self, entry: dict[str, Any]) -> None:
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(entry) + "\n")
        except OSError as error:  # a full disk's names no file
            raise OSError(error.errno, error.strerror, str(self.path)) from error
        if self.events:
            for name, value in _scalars(entry):
                self.events.add_scalar(name, value, entry["step"])

    def read(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.path.read_text(encoding="utf-8").splitlines()]

    def sync(self) -> None:
        """Make sure that the lines so far are on the disk, before a checkpoint that counts on them."""
        with self.path.open("rb") as file:
            os.fsync(file.fileno())
        if self.events:
            self.events.flush()


def _tensorboard(folder: Path, after: int) -> Any:  # noqa: ANN401 - a SummaryWriter, which may not be installed
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise MissingExtraError("tensorboard = true: it is not installed; pip install cmslap[tensorboard]") from error
    return SummaryWriter(folder, purge_step=after + 1)


def _scalars(entry: dict[str, Any]) -> list[tuple[str, float]]:
    """Name and value of each number of a log line, a table's as ``table/key``."""
    scalars = []
    for key, value in entry.items():
        if isinstance(value, dict):
            scalars += [(f"{key}/{name}", number) for name, number in value.items()]
        elif key != "step":
            scalars.append((key, value))
    return scalars
