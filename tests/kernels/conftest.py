"""Where the kernel tests run.

``triton`` and ``cuda`` are the backends on a CUDA GPU. Without one, Triton's kernels run in its interpreter, in a
process of its own (test_interpreter.py), and the CUDA backend is built for CPU tensors: over plain loops in place of
its kernels.
"""

import dataclasses
import importlib.util
import os
import shutil
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
    monkeypatch.setattr(cuda, "_kernels", request.getfixturevalue(f"cuda_{request.param}"))
    backend = dataclasses.replace(cuda.CUDA, missing=None, unsupported=cuda._unsupported_sizes)
    monkeypatch.setattr(choice, "BACKENDS", [backend if b is cuda.CUDA else b for b in choice.BACKENDS])
    return Place(request.param, backend, torch.device("cpu"))


@pytest.fixture
def device(place: Place) -> torch.device:
    return place.device


@pytest.fixture(scope="session")
def cuda_loops(pytestconfig: pytest.Config) -> object:
    """The operators of csrc/cuda over plain loops."""
    return build("cmslap_cuda_loops", [ROOT / "tests" / "csrc" / "cuda_plain.cpp"], pytestconfig)


def build(namespace: str, kernels: list[Path], config: pytest.Config) -> object:
    """csrc/cuda with ``kernels`` in place of its own, compiled without CUDA; its operators, in ``namespace``."""
    if shutil.which(os.environ.get("CXX", "c++")) is None:
        pytest.skip("needs a C++ compiler")
    from torch.utils.cpp_extension import load

    folder = config.cache.mkdir(namespace)
    sources = [*(ROOT / "csrc" / "cuda").glob("*.cpp"), *kernels]
    torch_version = "-DTORCH_TARGET_VERSION=0x020a000000000000"
    load(
        namespace,
        [str(_renamed(path, namespace, folder)) for path in sources],
        extra_cflags=["-O2", "-w", torch_version],
        extra_include_paths=[str(ROOT / part) for part in ("csrc", "csrc/cuda", "tests/csrc", "tests/csrc/cuda_model")],
        build_directory=str(folder),
        is_python_module=False,
    )
    return getattr(torch.ops, namespace)


def _renamed(source: Path, namespace: str, folder: Path) -> Path:
    """A copy for the compiler of this machine whose operators' names do not clash with the extension's."""
    copy = folder / f"{source.stem}.cpp"
    text = f'#line 1 "{source}"\n' + source.read_text().replace("cmslap_cuda", namespace)
    if not copy.exists() or copy.read_text() != text:
        copy.write_text(text)
    return copy


@pytest.fixture(autouse=True)
def poisoned() -> Iterator[None]:
    """Fill fresh memory with NaN, so that an element nobody wrote shows, and refuse what varies from run to run."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)
