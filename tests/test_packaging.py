"""What goes into the sdist and the wheel, and that the extension keeps to LibTorch's stable ABI."""

import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from cmslap.ops import extension

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The sdist and the wheel's Python part, built without compiling."""
    folder = tmp_path_factory.mktemp("built")
    commands = [
        "egg_info",
        "--egg-base",
        folder,
        "sdist",
        "--dist-dir",
        folder,
        "build_py",
        "--build-lib",
        folder / "lib",
    ]
    subprocess.run(
        [sys.executable, "setup.py", "--quiet", *map(str, commands)], cwd=ROOT, check=True, capture_output=True
    )
    return folder


def test_sdist_has_all_that_builds_and_tests_it(built):
    (path,) = built.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    tracked = {
        "csrc/cpu/bindings.cpp",
        "csrc/cpu/kernels.h",
        "csrc/cuda/dispatch.cu",
        "kernels/__init__.py",
        "cmslap/ops/reference.py",
    }
    beside = {"setup.py", "pyproject.toml", "LICENSE", "constraints.txt", "Makefile", "tests/conftest.py"}
    assert tracked | beside <= names
    assert {str(config.relative_to(ROOT)) for config in (ROOT / "cmslap").rglob("*.toml")} <= names
    assert not [name for name in names if name.endswith((".so", ".pyc", ".o"))]


def test_wheel_has_the_package_and_its_data_only(built):
    names = {str(path.relative_to(built / "lib")) for path in (built / "lib").rglob("*") if path.is_file()}
    kinds = (".py", ".toml", ".safetensors", ".json", ".html", ".js", ".typed")
    source = {path for path in (ROOT / "cmslap").rglob("*") if path.suffix in kinds}
    assert {str(path.relative_to(ROOT)) for path in source} <= names
    assert {"cmslap/kernels/__init__.py", "cmslap/inference/img-comparison-slider/LICENSE"} <= names
    assert not [name for name in names if not name.startswith("cmslap/") or name.endswith((".cpp", ".h", ".cu"))]


@pytest.mark.parametrize(
    ("library", "missing"),
    [(extension.LIBRARY, extension.MISSING), (extension.CUDA_LIBRARY, extension.CUDA_MISSING)],
    ids=["cpu", "cuda"],
)
@pytest.mark.skipif(shutil.which("nm") is None, reason="nm lists a library's symbols")
def test_libraries_use_the_stable_abi_alone(library, missing):
    if missing is not None:
        pytest.skip(missing)
    listing = subprocess.run(["nm", "-D", "--undefined-only", library], capture_output=True, text=True, check=True)
    symbols = re.findall(r" [Uw] (\w+)", listing.stdout)
    assert any(symbol.startswith("aoti_torch_") for symbol in symbols)
    # CPython's symbols begin with Py, PyTorch's unstable ones are C++ names in at::, c10:: and torch::. CUDA's runtime
    # is inside the library, and looks for the driver when first called.
    assert not [symbol for symbol in symbols if re.match(r"_?Py|_ZNK?(2at|3c10|5torch)|cu[A-Z]|cuda[A-Z]", symbol)]
