"""What compilers made of GPU kernels: registers, spills and instructions, read from machine code by CUDA's cuobjdump.

``python -m bench.gpu.machine_code`` writes down what nvcc made of the kernels of csrc/cuda that are built here, to
``bench/results/aot/cuda.json``; bench/gpu/aot.py does the same for Triton's.
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import json
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from cmslap.files import replacing
from cmslap.ops.extension import CUDA_LIBRARY, CUDA_MISSING

INSTRUCTIONS = {  # by what their names in machine code begin with, or contain
    "wgmma": r"HGMMA",  # Hopper's tensor cores, operands in shared memory
    "mma": r"HMMA",  # tensor cores, operands in registers
    "ldmatrix": r"LDSM",
    "tma_loads": r"UTMALDG",
    "tma_stores": r"UTMASTG",
    "async_copies": r"LDGSTS",
    "async_copies_past_l1": r"LDGSTS.*BYPASS",
    "global_16_bytes": r"(LDG|STG|LDGSTS)\b.*\.128",
    "global_narrower": r"(LDG|STG|LDGSTS)\b(?!.*\.128)",
    "local": r"LDL|STL",  # registers that went to memory
}
NAME = re.compile(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([\w.]+)", re.MULTILINE)  # of an instruction


def cuobjdump() -> str | None:
    """CUDA's disassembler: on the PATH, or the one that Triton brings."""
    found = shutil.which("cuobjdump")
    if found is None and importlib.util.find_spec("triton") is not None:
        import triton

        found = triton.knobs.nvidia.cuobjdump.path
    return found


def resources(file: Path, arch: str | None = None) -> dict[str, dict[str, int]]:
    """Registers and spills of every kernel in a cubin or library, or of those for one architecture ("sm_80")."""
    usage = dump("-res-usage", file, arch)
    found = re.findall(r"Function (\S+?):\s+REG:(\d+) STACK:(\d+) .*?LOCAL:(\d+)", usage)
    return {  # stack and local memory are all spills, since no kernel has local arrays
        _readable(name): {"registers": int(registers), "spilled_bytes": int(stack) + int(local)}
        for name, registers, stack, local in found
    }


def kernels(file: Path, arch: str | None = None) -> dict[str, dict[str, int]]:
    """The same and how many instructions of each kind."""
    found = resources(file, arch)
    for part in dump("-sass", file, arch).split("Function : ")[1:]:
        name, _, body = part.partition("\n")
        counts = Counter(NAME.findall(body))
        found[_readable(name)] |= {
            kind: sum(count for instruction, count in counts.items() if re.match(pattern, instruction))
            for kind, pattern in INSTRUCTIONS.items()
        }
    return found


def dump(what: str, file: Path, arch: str | None) -> str:
    command = [cuobjdump(), *([] if arch is None else ["-arch", arch]), what, str(file)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@functools.cache
def _readable(name: str) -> str:
    """A kernel's name and template arguments, where c++filt can read them."""
    if shutil.which("c++filt") is None or not name.startswith("_Z"):
        return name
    full = subprocess.run(["c++filt", name], check=True, capture_output=True, text=True).stdout.strip()
    short = re.sub(r"\(anonymous namespace\)::|cmslap::cuda::|^void ", "", full)
    return re.sub(r"\((?!\w+\)\d)[^()]*\)$", "", short)  # its parameters, but no enumerator's "(Kind)1"


def one_row_a_line(header: dict[str, Any], rows: list[dict[str, Any]]) -> str:
    """JSON that a diff shows well."""
    lines = ",\n".join(json.dumps(row) for row in rows)
    return json.dumps(header, indent=1)[:-2] + f',\n "kernels": [\n{lines}\n]}}\n'


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--arch", nargs="+", default=["sm_80", "sm_90a"], help="default: sm_80 sm_90a")
    parser.add_argument("-o", "--output", type=Path, default=Path("bench/results/aot/cuda.json"))
    options = parser.parse_args(arguments)
    reason = CUDA_MISSING or ("there is no cuobjdump" if cuobjdump() is None else None)
    if reason is not None:
        print(reason, file=sys.stderr)
        return 1
    rows = [
        {"arch": arch, "kernel": name, **made}
        for arch in options.arch
        for name, made in sorted(kernels(CUDA_LIBRARY, arch).items())
    ]
    header = {
        "note": "compiled ahead of time; these kernels have not run on a GPU",
        "compiler": re.search(rb"Cuda compilation tools, release [\d.]+", CUDA_LIBRARY.read_bytes())[0].decode(),
    }
    with replacing(options.output) as path:
        path.write_text(one_row_a_line(header, rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
