"""The CUDA kernels in a model of a thread block (tests/csrc/cuda_model), and where there is a GPU, on that."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]


def run(program: str, compiler: str) -> None:
    if shutil.which("make") is None or shutil.which(compiler) is None:
        pytest.skip(f"needs make and {compiler}")
    # Kept between runs, so that only what changed is compiled again.
    make = ["make", "--silent", f"-j{os.cpu_count()}", "-f", "tests/csrc/cuda.mk"]
    subprocess.run([*make, program], cwd=ROOT, check=True)
    result = subprocess.run([ROOT / program], capture_output=True, text=True, check=False)
    wrong = [line for line in result.stdout.splitlines() if not line.startswith("passed")]
    assert result.returncode == 0, "\n".join(wrong) + result.stderr


def test_in_the_model():
    run("build/cuda_model/cuda_tests", "g++")


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_on_the_gpu():
    run("build/cuda_native/cuda_tests", "nvcc")
