"""What people do, whole: an image, a folder of images, and the first image after the start."""

from __future__ import annotations

import contextlib
import functools
import io
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from bench.speed.baselines import Baseline, gpu_backends
from bench.speed.timing import Implementation
from bench.speed.work import Setting, Work, forward_of, network_work
from cmslap.checkpoints.checkpoint import load_model
from cmslap.inference.upscaling import upscale

SMALLEST, LARGEST = 48, 96  # pixels a side of a folder's images
FIRST_SIDE = 64  # pixels a side of the first image

_FIRST_RESULT = """
import sys, numpy, cmslap
from cmslap.ops.dispatch import prefer_backend
device, precision, backend, compiled, side = sys.argv[1:]
model = cmslap.load_model(device=device)
if compiled:
    model.compile()
with prefer_backend(backend):
    cmslap.upscale(numpy.zeros((int(side), int(side)), numpy.uint8), scale=4, model=model, precision=precision)
"""


def _photograph(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng().integers(256, size=(height, width, 3), dtype=np.uint8))


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def enlargement(scale: int, width: int, height: int, setting: Setting) -> Work:
    """``cmslap.upscale`` of a photograph in memory by the shipped network, chroma and tiles included."""
    model = load_model(device=setting.device)
    inputs = [(_photograph(width, height),) for _ in range(2)]

    def enlarge(image: Image.Image) -> Image.Image:
        return upscale(image, scale, model, precision=_name(setting.dtype))

    side = Setting(dtype=setting.dtype, side=1, recursions=model.recursions)
    gflop, gbyte = (width * height * each for each in network_work(side, scale))
    name = f"upscale, {scale}x, shipped network D{model.depth}R{model.recursions}"
    return Work(name, f"{width}×{height}", enlarge, inputs, forward_of(inputs), gflop, gbyte, images=1)


def folder(count: int, setting: Setting) -> Work:
    """The command ``cmslap upscale FOLDER``: small PNG files read, enlarged 4x and written."""
    place = tempfile.TemporaryDirectory(prefix="cmslap-bench-")
    source, out = Path(place.name, "in"), Path(place.name, "out")
    source.mkdir()
    sides = np.random.default_rng().integers(SMALLEST, LARGEST, size=(count, 2), endpoint=True)
    for index, (width, height) in enumerate(sides):
        _photograph(width, height).save(source / f"{index}.png")
    options = ["--overwrite", "--device", setting.device.type, "--precision", _name(setting.dtype)]

    def run(folder: tempfile.TemporaryDirectory) -> None:
        from cmslap.cli import main  # which imports this package

        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as errors:
            status = main(["upscale", str(source), "-o", str(out), *options])
        if status:
            raise RuntimeError(errors.getvalue())

    inputs = [(place,)]
    size = f"{count} files of {SMALLEST} to {LARGEST} pixels a side"
    return Work("cmslap upscale FOLDER, 4x", size, run, inputs, forward_of(inputs), 0.0, 0.0, images=count)


def first_result(setting: Setting) -> Work:
    """A new process until its first image is there: imports, the network's weights, one small enlargement."""

    def run(environment: Mapping[str, str], backend: str, compiled: str = "") -> None:
        options = [setting.device.type, _name(setting.dtype), backend, compiled, str(FIRST_SIDE)]
        command = [sys.executable, "-c", _FIRST_RESULT, *options]
        done = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(done.stderr.strip().rpartition("\n")[2])

    return Work("time to the first result, 4x", f"{FIRST_SIDE}×{FIRST_SIDE}", run, [], forward_of([]), 0.0, 0.0)


def _start(backend: str, compiled: str, work: Work) -> Implementation:
    variables = {"TORCHINDUCTOR_FORCE_DISABLE_CACHES": "1"} if compiled else {}  # as the first time
    return lambda: work.function(variables, backend, compiled)


def starters(device: torch.device, compiled: bool) -> list[Baseline]:
    """Who may start for :func:`first_result`: ours, plain PyTorch, and that compiled."""
    own = {"cmslap": "cpu"} if device.type == "cpu" else {f"cmslap {name}": name for name in gpu_backends()}
    baselines = [
        Baseline(name, functools.partial(_start, backend, ""))
        for name, backend in {**own, "eager": "reference"}.items()
    ]
    return baselines + [Baseline("torch.compile", functools.partial(_start, "reference", "compiled"))] * compiled
