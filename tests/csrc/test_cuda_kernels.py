"""The CUDA kernels in a model of a thread block (tests/csrc/cuda_model), and where there is a GPU, on that."""

from __future__ import annotations

import subprocess

import pytest
import torch
from making import make


def run(program: str, compiler: str) -> None:
    result = subprocess.run([make(program, compiler)], capture_output=True, text=True, check=False)
    wrong = [line for line in result.stdout.splitlines() if not line.startswith("passed")]
    assert result.returncode == 0, "\n".join(wrong) + result.stderr


def test_in_the_model():
    run("build/cuda_model/cuda_tests", "g++")


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_on_the_gpu():
    run("build/cuda_native/cuda_tests", "nvcc")
