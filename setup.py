"""Builds cmslap/_C.so from csrc/ and the wheel around it; everything else is described in pyproject.toml.

The extension uses LibTorch's stable ABI and nothing of CPython's: one binary, and so one wheel tagged
``py3-none-<platform>``, for every later PyTorch and Python. A failed compilation fails the installation.
"""

from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.bdist_wheel import bdist_wheel
from torch.utils.cpp_extension import BuildExtension, CppExtension

ROOT = Path(__file__).parent

extension = CppExtension(
    "cmslap._C",
    sorted(str(path.relative_to(ROOT)) for path in (ROOT / "csrc").rglob("*.cpp")),
    depends=sorted(str(path.relative_to(ROOT)) for path in (ROOT / "csrc").rglob("*.h")),
    include_dirs=[str(ROOT / "csrc")],
    define_macros=[("TORCH_TARGET_VERSION", "0x020a000000000000")],  # the oldest PyTorch it runs with: 2.10
    extra_compile_args=["-O3", "-g0", "-std=c++17", "-Wall", "-Wno-psabi", "-fvisibility=hidden"],
    py_limited_api=True,  # leave libtorch_python out
)


class Wheel(bdist_wheel):
    """A wheel that needs this platform but no particular Python."""

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


setup(
    packages=[*find_packages(include=["cmslap", "cmslap.*"]), "cmslap.kernels"],
    package_dir={"cmslap.kernels": "kernels"},
    include_package_data=False,  # the data below and no more
    package_data={"cmslap": ["training/configs/*.toml", "weights/*"]},
    ext_modules=[extension],
    cmdclass={"build_ext": BuildExtension.with_options(no_python_abi_suffix=True), "bdist_wheel": Wheel},
)
