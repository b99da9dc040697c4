"""Build every variant of the Hopper kernels, check and time each on a GPU: ``python -m bench.gpu.hopper``.

Needs nvcc, no GPU build of PyTorch. Prints a table; ``--json OUT`` writes every figure. ``--build FOLDER`` keeps the
programs, and compiles nothing that is there already, built on a machine without a GPU, say; ``--build-only``
stops then.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from cmslap.files import replacing

ROOT = Path(__file__).resolve().parents[2]
VARIANTS = {  # of CMSLAP_SM90_VARIANT in csrc/cuda/sm90_*.cu, by what the convolution does
    0: "32x8 pixels, next tile prefetched to L2",
    1: "32x8 pixels",
    2: "16x8 pixels",
    3: "aligned operands",
}
TFLOPS, GBS = 790, 4300  # the H200's measured ceilings


def build(folder: Path, variant: int) -> Path:
    """The program that measures a variant."""
    program = folder / f"hopper-{variant}"
    if program.exists():
        return program
    sources = [ROOT / "bench/gpu/hopper.cu", *sorted((ROOT / "csrc/cuda").glob("sm*_*.cu"))]
    options = ["-O3", "-std=c++17", f"-I{ROOT / 'csrc'}", f"-DCMSLAP_SM90_VARIANT={variant}"]
    code = "-gencode=arch=compute_90a,code=sm_90a"
    subprocess.run(["nvcc", *options, code, "--threads", "0", *map(str, sources), "-o", str(program)], check=True)
    return program


def measure(program: Path) -> list[dict]:
    """What a program printed, whether or not it came to its end."""
    run = subprocess.run([str(program)], stdout=subprocess.PIPE, text=True, timeout=120)
    rows = [json.loads(line) for line in run.stdout.splitlines()]
    return rows if run.returncode == 0 else [*rows, {"failed": run.returncode}]


def line(row: dict) -> str:
    if "kernel" not in row:
        return json.dumps(row)
    size = "x".join(map(str, row["size"]))
    shares = f"{row['tflops'] / TFLOPS:6.0%} of arithmetic {row['gbs'] / GBS:6.0%} of memory"
    return (
        f"{row['kernel']:34} {size:>11} {row['us']:9.1f} us {row['tflops']:6.0f} TFLOP/s {row['gbs']:6.0f} GB/s "
        f"{shares}   sm_80 {row['sm80_us'] / row['us']:5.2f}x   error {row['error']:.1e}"
    )


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu.hopper", description=__doc__.split("\n")[0])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--build", type=Path)
    parser.add_argument("--build-only", action="store_true")
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.build or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        with ThreadPoolExecutor(max(1, (os.cpu_count() or 1) // 4)) as pool:
            programs = dict(zip(VARIANTS, pool.map(lambda variant: build(folder, variant), VARIANTS), strict=True))
        if arguments.build_only:
            return 0
        results = {}
        for variant, program in programs.items():
            results[VARIANTS[variant]] = measure(program)
            print(f"\n{VARIANTS[variant]}", *map(line, results[VARIANTS[variant]]), sep="\n", flush=True)
    if arguments.json is not None:
        with replacing(arguments.json) as file:
            Path(file).write_text(json.dumps(results, indent=1) + "\n")
    return int(any("failed" in row for rows in results.values() for row in rows))


if __name__ == "__main__":
    sys.exit(main())
