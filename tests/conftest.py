"""Fixtures every test may use: a seed that is fresh each run but printed, and where the benchmark images are."""

import atexit
import os
import random
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

# A compile cache of this run's own: one that other PyTorch installations share can hold what this one cannot load.
os.environ["TORCHINDUCTOR_CACHE_DIR"] = tempfile.mkdtemp(prefix="cmslap-tests-")
atexit.register(shutil.rmtree, os.environ["TORCHINDUCTOR_CACHE_DIR"], ignore_errors=True)
# What is compiled for a single small kernel: no trials of vector instruction sets, and no headers for many kernels.
os.environ |= {"TORCHINDUCTOR_VEC_ISA_OK": "0", "TORCHINDUCTOR_CPP_CACHE_PRECOMPILE_HEADERS": "0"}

torch.set_num_threads(1)  # tests are many small calls: a second thread costs more than it gives

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def seed() -> int:
    """Fresh random inputs each run; rerun a failure with CMSLAP_TEST_SEED."""
    value = int(os.environ.get("CMSLAP_TEST_SEED", random.SystemRandom().randrange(2**31)))
    print(f"CMSLAP_TEST_SEED={value}")  # pytest shows it with a failure
    torch.manual_seed(value)
    np.random.seed(value)
    random.seed(value)
    return value


def _folder(variable: str, default: Path, *parts: str) -> Path:
    root = Path(os.environ.get(variable, default))
    folder = root.joinpath(*parts)
    if not folder.exists():
        pytest.skip(f"{folder} does not exist; point {variable} at a folder that has it")
    return folder


@pytest.fixture
def set5() -> Path:
    return _folder("CMSLAP_DATA", ROOT.parent / "shared" / "data", "val", "set5")


@pytest.fixture
def set14() -> Path:
    return _folder("CMSLAP_DATA", ROOT.parent / "shared" / "data", "val", "set14")


@pytest.fixture
def official_weights() -> Path:
    return _folder("CMSLAP_WEIGHTS", ROOT.parent / "shared" / "weights")


@pytest.fixture
def poisoned() -> Iterator[None]:
    """Fresh memory holds NaN, so that an element nobody writes shows; what varies from run to run is an error."""
    torch.use_deterministic_algorithms(True)
    assert torch.utils.deterministic.fill_uninitialized_memory
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def bfloat16() -> None:
    """For tests that compute in bfloat16 on the CPU."""
    from cmslap.ops import cpu, extension

    if extension.MISSING is not None:
        pytest.skip(extension.MISSING)
    if not cpu.multiplies_bfloat16():
        pytest.skip("this processor, or the instruction set CMSLAP_ISA forces, has no bfloat16 products")
