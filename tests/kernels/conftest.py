"""Where the kernel tests run: natively on a CUDA GPU, and on CPU tensors in Triton's interpreter."""

import importlib.util
import os
from pathlib import Path

import pytest
import torch

import cmslap

if importlib.util.find_spec("triton") is None:
    collect_ignore_glob = ["test_aot.py", "test_triton_*.py"]  # test_interpreter.py skips with the reason

if importlib.util.find_spec("cmslap.kernels") is None:  # a source tree that is not installed
    cmslap.__path__.append(str(Path(__file__).resolve().parents[2]))

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


@pytest.fixture(params=["interpreter"] if INTERPRETED else [pytest.param("cuda", marks=pytest.mark.cuda)])
def device(request: pytest.FixtureRequest) -> torch.device:
    """The device of the test's tensors. The interpreter has a process of its own, see test_interpreter.py."""
    if request.param == "interpreter":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA GPU")
    return torch.device("cuda")


@pytest.fixture(autouse=True)
def poisoned() -> None:
    """Fill fresh memory with NaN, so that an element nobody wrote shows, and refuse what varies from run to run."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)
