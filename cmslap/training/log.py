"""The log of a run: JSON lines, TensorBoard's events on request, and the curves as an image (extra ``plot``)."""

import importlib.util
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cmslap.errors import require
from cmslap.files import naming, replacing
from cmslap.training.config import flat
from cmslap.training.directory import RunError


class Log:
    """A JSON-lines file: one object a line, each with its ``step``, going on after step ``after``.

    What the file has of later steps is dropped, and so is a last line that a kill cut short. With ``tensorboard`` the
    numbers also go to a folder of that name beside the file. Raises MissingPackageError where that is not installed,
    and :class:`RunError`.
    """

    def __init__(self, path: Path, after: int, tensorboard: bool) -> None:
        self.path = path
        kept = [line for line, step in _lines(path) if step <= after]
        self.events = None
        if tensorboard:
            require("tensorboard = true", "tensorboard", "tensorboard")
            from torch.utils.tensorboard import SummaryWriter

            self.events = SummaryWriter(path.parent / "tensorboard", purge_step=after + 1)
        with replacing(path) as temporary:
            temporary.write_bytes(b"".join(kept))

    def write(self, entry: dict[str, Any]) -> None:
        with naming(self.path), self.path.open("a", encoding="utf-8") as file:  # a full disk's error names no file
            file.write(json.dumps(entry) + "\n")
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
            raise RunError(f"{path}, line {number}: damaged; remove that line to go on") from None
        yield line, step


def curves_can_be_drawn() -> bool:
    """Whether matplotlib is installed."""
    return importlib.util.find_spec("matplotlib") is not None


def draw_curves(path: Path, entries: list[dict[str, Any]]) -> None:
    """Draw loss, learning rate and validation PSNR over the steps of a log into a PNG."""
    from matplotlib.figure import Figure  # no pyplot: no display, no global state

    training = [entry for entry in entries if "loss" in entry]
    validation = [entry for entry in entries if "psnr" in entry]
    figure = Figure(figsize=(5 * (3 if validation else 2), 3.5), layout="constrained")
    loss, rate, *quality = figure.subplots(1, 3 if validation else 2)

    steps = [entry["step"] for entry in training]
    for name in training[0]["losses"] if training else ():
        loss.plot(steps, [entry["losses"][name] for entry in training], label=name)
    loss.set(title="loss, summed over the levels", xlabel="step", yscale="log")
    rate.plot(steps, [entry["lr"] for entry in training])
    rate.set(title="learning rate", xlabel="step")
    if training:
        loss.legend()
    for axes in quality:
        for name in validation[-1]["psnr"]:
            axes.plot(
                *zip(*((e["step"], e["psnr"][name]) for e in validation if name in e["psnr"]), strict=True), label=name
            )
        axes.set(title="validation PSNR, dB", xlabel="step")
        axes.legend()
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=120)
