"""Where the kernel tests run.

``triton`` and ``cuda`` are the backends on a CUDA GPU. Without one, Triton's kernels run in its interpreter, in a
process of its own (test_interpreter.py), and those of csrc/cuda in a model of a thread block (tests/csrc/cuda_model).
"""

import dataclasses
import functools
import importlib.util
import os
from pathlib import Path

import pytest
import torch
from making import ROOT, make

import cmslap
from cmslap.ops import cuda, dispatch
from cmslap.ops.backend import Backend
from cmslap.ops.triton_backend import TRITON

if importlib.util.find_spec("triton") is None:
    collect_ignore_glob = ["test_aot.py"]

if importlib.util.find_spec("cmslap.kernels") is None:  # a source tree that is not installed
    cmslap.__path__.append(str(ROOT))

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
if INTERPRETED:  # looking for overflow at every addition of indices takes half the time, and no index here is large
    from triton.runtime.interpreter import interpreter_builder

    object.__setattr__(interpreter_builder.options, "sanitize_overflow", False)
ON_GPU = [pytest.param(name, marks=pytest.mark.cuda) for name in ("cuda", "triton")]


@dataclasses.dataclass(frozen=True)
class Place:
    """A backend and the device of the tensors it is tested with."""

    name: str
    backend: Backend
    device: torch.device

    @property
    def dtypes(self) -> tuple[torch.dtype, ...]:
        return (torch.float32, *cuda.DTYPES) if self.backend.name == "triton" else cuda.DTYPES


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave out tests of the CUDA backend with a type it has no kernels of."""

    def exists(item: pytest.Item) -> bool:
        parameters = item.callspec.params if hasattr(item, "callspec") else {}
        on_cuda = parameters.get("place") in ("cuda", "model")
        return not on_cuda or parameters.get("dtype", cuda.DTYPES[0]) in cuda.DTYPES

    items[:] = filter(exists, items)


def on_gpu(backend: Backend) -> Place:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA GPU")
    if backend.missing is not None:
        pytest.skip(backend.missing)
    return Place(backend.name, backend, torch.device("cuda"))


@pytest.fixture(params=["interpreter"] if INTERPRETED else ["model", *ON_GPU])
def place(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Place:
    """Each place in turn; its backend is the one that is forced by its name."""
    if request.param in ("triton", "cuda"):
        return on_gpu({"triton": TRITON, "cuda": cuda.CUDA}[request.param])
    if request.param == "interpreter":
        return Place("interpreter", TRITON, torch.device("cpu"))
    monkeypatch.setattr(cuda.LIBRARY, "operators", modelled_operators())
    backend = dataclasses.replace(cuda.CUDA, missing=None, unsupported=cuda._unsupported_sizes)
    monkeypatch.setattr(dispatch, "BACKENDS", [backend if b is cuda.CUDA else b for b in dispatch.BACKENDS])
    return Place("model", backend, torch.device("cpu"))


@pytest.fixture
def device(place: Place) -> torch.device:
    return place.device


@functools.cache
def modelled_operators() -> object:
    """The operators of csrc/cuda for CPU tensors, over its kernels in the model of a thread block."""
    library = make("build/cuda_model/operations.so", "g++", f"TORCH={Path(torch.__file__).parent}")
    torch.ops.load_library(library)
    return torch.ops.cmslap_cuda_model


@pytest.fixture(autouse=True)
def always_poisoned(poisoned: None) -> None:
    """Here every test's memory is, and what varies from run to run is refused."""
