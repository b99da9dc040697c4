"""The curves of a run as an image (extra ``plot``)."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from cmslap.files import replacing


def available() -> bool:
    """Whether matplotlib is installed."""
    return importlib.util.find_spec("matplotlib") is not None


def draw(path: Path, entries: list[dict[str, Any]]) -> None:
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
