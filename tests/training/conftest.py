"""A folder of synthetic images and a run small enough to train in a blink."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cmslap.training.config import Config, from_dict

ROOT = Path(__file__).resolve().parents[2]
SIDES = ((24, 40), (33, 25), (48, 52))


def _image(height: int, width: int) -> Image.Image:
    coarse = np.random.randint(0, 256, (height // 4 + 1, width // 4 + 1, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


@pytest.fixture
def image() -> Callable[[int, int], Image.Image]:
    """Makes a random smooth RGB image of a height and width."""
    return _image


@pytest.fixture
def environment() -> dict[str, str]:
    """For a process that imports this checkout and, like the tests, computes with one thread."""
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    (folder / "deeper").mkdir(parents=True)
    for number, (height, width) in enumerate(SIDES):
        _image(height, width).save(folder / ("deeper" if number == 1 else "") / f"{number}.png")
    return folder


@pytest.fixture
def table(tmp_path: Path, images: Path) -> dict:
    """A configuration as TOML tables."""
    return {
        "out": str(tmp_path / "run"),
        "steps": 12,
        "batch": 5,
        "patch": 16,
        "scales": [2, 4],
        "log_every": 1,
        "checkpoint_every": 5,
        "model": {"name": "CMSLapSRN", "depth": 2, "recursions": 2, "channels": 8, "shared_conv": 2},
        "data": {"train": [str(images)]},
        "optimizer": {"lr": 1e-3},
    }


@pytest.fixture
def configure(table: dict) -> Callable[..., Config]:
    """The small run's configuration with some top-level keys changed."""
    return lambda **changes: from_dict({**table, **changes})
