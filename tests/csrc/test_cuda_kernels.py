"""The CUDA kernels in a model of a thread block (tests/csrc/cuda_model): no GPU and no CUDA are needed."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def test_in_the_model():
    if shutil.which("make") is None or shutil.which("g++") is None:
        pytest.skip("needs make and g++")
    # Kept between runs, so that only what changed is compiled again.
    subprocess.run(["make", "--silent", "-j2", "-f", "tests/csrc/cuda.mk"], cwd=ROOT, check=True)
    run = subprocess.run([ROOT / "build/cuda_model/cuda_tests"], capture_output=True, text=True, check=False)
    wrong = [line for line in run.stdout.splitlines() if not line.startswith("passed")]
    assert run.returncode == 0, "\n".join(wrong) + run.stderr
