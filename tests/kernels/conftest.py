"""Where the kernel tests run.

``triton`` and ``cuda`` are the backends on a CUDA GPU. Without one, Triton's kernels run in its interpreter, in a
process of its own (test_interpreter.py), and the CUDA backend is built for CPU tensors: over plain loops in place of
its kernels.
"""

import dataclasses
import functools
import importlib.util
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import cmslap
from cmslap.ops import choice, cuda
from cmslap.ops.backend import Backend
from cmslap.ops.triton_backend import TRITON

ROOT = Path(__file__).resolve().parents[2]

if importlib.util.find_spec("triton") is None:
    collect_ignore_glob = ["test_aot.py"]

if importlib.util.find_spec("cmslap.kernels") is None:  # a source tree that is not installed
    cmslap.__path__.append(str(ROOT))

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
ON_GPU = [pytest.param(name, marks=pytest.mark.cuda) for name in ("triton", "cuda")]


@dataclasses.dataclass(frozen=True)
class Place:
    """A backend and the device of the tensors it is tested with."""

    name: str
    backend: Backend
    device: torch.device

    @property
    def dtypes(self) -> tuple[torch.dtype, ...]:
        half = (torch.bfloat16, torch.float16)
        return (torch.float32, *half) if self.backend.name == "triton" else half


def on_gpu(backend: Backend) -> Place:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA GPU")
    if backend.missing is not None:
        pytest.skip(backend.missing)
    return Place(backend.name, backend, torch.device("cuda"))


@pytest.fixture(params=["interpreter"] if INTERPRETED else ["loops", *ON_GPU])
def place(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Place:
    """Each place in turn; its backend is the one that is forced by its name."""
    if request.param in ("triton", "cuda"):
        return on_gpu({"triton": TRITON, "cuda": cuda.CUDA}[request.param])
    if request.param == "interpreter":
        return Place("interpreter", TRITON, torch.device("cpu"))
    monkeypatch.setattr(cuda, "_kernels", cuda_on_cpu(request.param))
    backend = dataclasses.replace(cuda.CUDA, missing=None, unsupported=cuda._unsupported_sizes)
    monkeypatch.setattr(choice, "BACKENDS", [backend if b is cuda.CUDA else b for b in choice.BACKENDS])
    return Place(request.param, backend, torch.device("cpu"))


@pytest.fixture
def device(place: Place) -> torch.device:
    return place.device


@functools.cache
def cuda_on_cpu(kernels: str) -> object:
    """The operators of csrc/cuda for CPU tensors, over ``kernels``: "model" or "loops"."""
    if shutil.which("make") is None or shutil.which("g++") is None:
        pytest.skip("needs make and g++")
    library = f"build/cuda_model/{kernels}.so"
    torch_folder = Path(torch.__file__).parent
    command = ["make", "--silent", "-j2", "-f", "tests/csrc/cuda.mk", f"TORCH={torch_folder}", library]
    subprocess.run(command, cwd=ROOT, check=True)
    torch.ops.load_library(ROOT / library)
    return getattr(torch.ops, f"cmslap_cuda_{kernels}")


@pytest.fixture(autouse=True)
def poisoned() -> Iterator[None]:
    """Fill fresh memory with NaN, so that an element nobody wrote shows, and refuse what varies from run to run."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)
