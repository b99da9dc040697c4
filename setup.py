"""Builds cmslap/_C.so, where nvcc is cmslap/_CUDA.so, and the wheel; the rest is described in pyproject.toml.

The libraries use LibTorch's stable ABI and nothing of CPython's: one binary, and so one wheel tagged
``py3-none-<platform>``, for every later PyTorch and Python. A failed compilation fails the installation.

The CUDA kernels need neither a GPU nor a CUDA build of PyTorch to compile. They are a library of their own, with CUDA's
runtime inside, so that nothing about CUDA can break the CPU kernels. Environment variables:

- ``CMSLAP_CPU=0`` leaves the CPU kernels out, and with them the need for a C++ compiler; PyTorch does their work.
- ``CMSLAP_CUDA=0`` leaves the CUDA kernels out, ``CMSLAP_CUDA=1`` fails where they can't be built. Otherwise they are
  built wherever nvcc is found (``CUDA_HOME``, ``PATH``, /usr/local/cuda), and ``cmslap info`` says why not.
- ``TORCH_CUDA_ARCH_LIST``: the compute capabilities to build for, from 8.0 on; default: "8.0+PTX 8.6 8.9 9.0a".
- ``CMSLAP_SM90_VARIANT``: which of the kernels' variants for Hopper to build (csrc/cuda/README.md); default: 0.
- ``MAX_JOBS``: how many compilers run at once. nvcc itself reads ``NVCC_CCBIN``, the C++ compiler it works with.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.errors import CompileError
from torch.utils.cpp_extension import BuildExtension, CppExtension, include_paths, library_paths

ROOT = Path(__file__).resolve().parent
CPU, CUDA = "cmslap._C", "cmslap._CUDA"
OLDEST_NVCC = (12, 5)  # the first whose runtime finds a function of the driver by version
# One set of PTX, that of the oldest, is what later devices compile for themselves.
ARCHITECTURES = "8.0+PTX 8.6 8.9 9.0a"
TORCH_TARGET_VERSION = "0x020a000000000000"  # the oldest PyTorch they run with: 2.10


def paths(pattern: str, folder: str = "csrc") -> list[str]:
    return sorted(str(path.relative_to(ROOT)) for path in (ROOT / folder).rglob(pattern))


extensions = [
    CppExtension(
        CPU,
        [path for path in paths("*.cpp") if not path.startswith("csrc/cuda/")],
        depends=paths("*.h"),
        include_dirs=[str(ROOT / "csrc")],
        define_macros=[("TORCH_TARGET_VERSION", TORCH_TARGET_VERSION)],
        extra_compile_args=["-O3", "-g0", "-std=c++17", "-Wall", "-Wno-psabi", "-fvisibility=hidden"],
        py_limited_api=True,  # leave libtorch_python out
    ),
    Extension(CUDA, []),  # its sources are csrc/cuda; a list here would make PyTorch ask for its own version of CUDA
]


class Build(BuildExtension):
    """PyTorch's way of building extensions, but for the CUDA library."""

    def finalize_options(self) -> None:
        super().finalize_options()
        self.left_out = {CPU: why_no_cpu(), CUDA: why_no_cuda()}
        self.extensions = [extension for extension in self.extensions if self.left_out[extension.name] is None]

    def run(self) -> None:
        if self.left_out[CUDA] is not None and os.environ.get("CMSLAP_CUDA") == "1":
            raise SystemExit(f"CMSLAP_CUDA=1, but {self.left_out[CUDA]}")
        super().run()
        for name, reason in self.left_out.items():
            library = Path(self.get_ext_fullpath(name))
            note = library.with_suffix(".txt")  # for `cmslap info`
            (note if reason is None else library).unlink(missing_ok=True)
            if reason is not None:
                print(f"built without {library.name}: {reason}", file=sys.stderr)
                library.parent.mkdir(parents=True, exist_ok=True)
                note.write_text(reason + "\n")

    def build_extensions(self) -> None:
        if self.extensions:
            check_compiler()
            super().build_extensions()

    def build_extension(self, extension: Extension) -> None:
        if extension.name != CUDA:
            super().build_extension(extension)
            return
        objects = Path(self.build_temp).resolve() / "cuda"
        objects.mkdir(parents=True, exist_ok=True)
        library = Path(self.get_ext_fullpath(CUDA)).resolve()
        library.parent.mkdir(parents=True, exist_ok=True)
        build_cuda(objects, library)


def check_compiler() -> None:
    """Ends in one line where there is no C++ compiler; setuptools' own would be "No such file or directory: 'g++'"."""
    compilers = [os.environ["CXX"]] if os.environ.get("CXX") else ["c++", sysconfig.get_config_var("CXX")]
    for name in (shlex.split(compiler)[0] for compiler in compilers if compiler):
        if shutil.which(name) is None:
            raise SystemExit(
                f"cmslap is built with a C++ compiler, and {name} was not found: install one (apt install g++, "
                "dnf install gcc-c++ or conda install gxx), name another in CXX, or go without by CMSLAP_CPU=0 and "
                "CMSLAP_CUDA=0, which is several times slower on a CPU"
            )


def why_no_cpu() -> str | None:
    """Why the CPU library is not to be built; None where it is."""
    return "it was left out by CMSLAP_CPU=0" if os.environ.get("CMSLAP_CPU") == "0" else None


def why_no_cuda() -> str | None:
    """Why the CUDA library can't be, or is not to be, built; None where it is."""
    if os.environ.get("CMSLAP_CUDA") == "0":
        return "it was left out by CMSLAP_CUDA=0"
    if sys.platform != "linux":
        return f"it is built on Linux only, not on {sys.platform}"
    nvcc = find_nvcc()
    if nvcc is None:
        return "nvcc was not found at installation, in CUDA_HOME or on the PATH"
    version = nvcc_version(nvcc)
    if version < OLDEST_NVCC:
        return f"{nvcc} is version {dotted(version)}, and {dotted(OLDEST_NVCC)} is the oldest that will do"
    wanted = os.environ.get("TORCH_CUDA_ARCH_LIST", ARCHITECTURES)
    if not architectures(wanted):
        return f"TORCH_CUDA_ARCH_LIST={wanted!r} has no compute capability of 8.0 or later"
    return None


def find_nvcc() -> str | None:
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    if home:
        return shutil.which("nvcc", path=f"{home}/bin")
    return shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")


def nvcc_version(nvcc: str) -> tuple[int, int]:
    report = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=False).stdout
    found = re.search(r"release (\d+)\.(\d+)", report)
    return (int(found[1]), int(found[2])) if found else (0, 0)


def dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))


def architectures(wanted: str) -> list[tuple[str, bool]]:
    """nvcc's names, and whether to keep the PTX: "8.6 9.0+PTX" is [("86", False), ("90a", True)]."""
    found = []
    for item in re.split(r"[;,\s]+", wanted.strip()):
        match = re.fullmatch(r"(\d+)\.(\d)([af]?)(\+PTX)?", item)
        if match is None:
            raise SystemExit(f"TORCH_CUDA_ARCH_LIST must be like '8.0 8.6 9.0+PTX', got {wanted!r}")
        major, minor, feature, ptx = match.groups()
        if int(major) >= 8:
            # Hopper's own instructions are those of 9.0a, which any device of 9.0 has.
            found.append((major + minor + ("a" if (major, minor) == ("9", "0") else feature), ptx is not None))
    return found


def machine_code(file: Path, wanted: list[tuple[str, bool]]) -> list[str]:
    """nvcc's options for what to put into one file; the kernels for Hopper are for no other device."""
    if file.name.startswith("sm90_") and "90a" in dict(wanted):
        wanted = [("90a", False)]
    options = []
    for name, ptx in wanted:
        options.append(f"-gencode=arch=compute_{name},code=sm_{name}")
        if ptx:
            plain = name.rstrip("af")  # PTX with a letter runs on that one device
            options.append(f"-gencode=arch=compute_{plain},code=compute_{plain}")
    return options


def build_cuda(objects: Path, library: Path) -> None:
    """Compile csrc/cuda into ``objects``, several files at once, and link them to ``library``."""
    nvcc, wanted = find_nvcc(), architectures(os.environ.get("TORCH_CUDA_ARCH_LIST", ARCHITECTURES))
    sources = [ROOT / path for path in paths("*.cu", "csrc/cuda") + paths("*.cpp", "csrc/cuda")]
    jobs = int(os.environ.get("MAX_JOBS") or len(os.sched_getaffinity(0)))
    options = [
        "-O3", "-std=c++17", f"-DTORCH_TARGET_VERSION={TORCH_TARGET_VERSION}", f"-I{ROOT / 'csrc'}",
        "--threads", str(max(1, jobs // len(sources))),
        "--compiler-options", "-fPIC,-fvisibility=hidden,-Wall,-Wno-psabi",
    ]  # fmt: skip
    options += [option for path in include_paths() for option in ("-isystem", path)]

    def compiled(source: Path) -> str:
        target = objects / f"{source.name}.o"
        own = machine_code(source, wanted) if source.suffix == ".cu" else []
        if source.name.startswith("sm90_"):
            own.append(f"-DCMSLAP_SM90_VARIANT={os.environ.get('CMSLAP_SM90_VARIANT') or 0}")
        make(target, [nvcc, "-c", str(source), "-o", str(target), *options, *own], [source, *map(Path, paths("*.h"))])
        return str(target)

    with ThreadPoolExecutor(jobs) as pool:
        compiled_objects = list(pool.map(compiled, sources))
    libraries = [option for path in library_paths() for option in ("-L", path)] + ["-ltorch_cpu"]
    code = machine_code(library, wanted)
    run([nvcc, "-shared", "-o", str(library), *compiled_objects, *code, *libraries, "-Xlinker", "--no-undefined"])


def make(target: Path, command: list[str], needs: list[Path]) -> None:
    """Run the command unless it has made ``target`` of the same files before."""
    record = target.with_suffix(".command")
    fresh = target.exists() and record.exists() and record.read_text() == " ".join(command)
    if fresh and all(path.stat().st_mtime <= target.stat().st_mtime for path in needs):
        return
    run(command)
    record.write_text(" ".join(command))


def run(command: list[str]) -> None:
    print(" ".join(command), flush=True)
    result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    print(result.stdout, end="", flush=True)
    if result.returncode != 0:
        failed = next((line for line in result.stdout.splitlines() if "error" in line), f"status {result.returncode}")
        raise CompileError(
            f"{command[0]} (version {dotted(nvcc_version(command[0]))}) failed: {failed.strip()}\n"
            "NVCC_CCBIN names another C++ compiler for it; CMSLAP_CUDA=0 installs without the CUDA kernels."
        )


class Wheel(bdist_wheel):
    """A wheel that needs this platform but no particular Python."""

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


if __name__ == "__main__":
    setup(
        packages=[*find_packages(include=["cmslap", "cmslap.*"]), "cmslap.kernels"],
        package_dir={"cmslap.kernels": "kernels"},
        include_package_data=False,  # the data below and no more
        package_data={
            "cmslap": ["py.typed", "training/configs/*.toml", "weights/*", "inference/*.html", "inference/*slider/*"]
        },
        ext_modules=extensions,
        cmdclass={"build_ext": Build.with_options(no_python_abi_suffix=True), "bdist_wheel": Wheel},
    )
