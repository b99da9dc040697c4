"""The CUDA kernels in a model of a thread block (tests/csrc/cuda_model): no GPU and no CUDA are needed."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def program(tmp_path_factory) -> Path:
    if shutil.which("make") is None or shutil.which("g++") is None:
        pytest.skip("needs make and g++")
    # Kept between runs, so that only what changed is compiled again.
    subprocess.run(["make", "--silent", "-j2", "-f", "tests/csrc/cuda.mk"], cwd=ROOT, check=True)
    return ROOT / "build" / "cuda_model" / "cuda_tests"


@pytest.mark.parametrize(
    "part", ["sm80", "sm90", "model", "packing", "activation", "sums", "reduced", "picture", "residual"]
)
def test_in_the_model(program, part):
    run = subprocess.run([program, part], capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
