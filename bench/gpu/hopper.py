"""Build every variant of the Hopper kernels, check and time each on a GPU: ``python -m bench.gpu.hopper``.

Needs nvcc, no GPU build of PyTorch. Prints a table, and last which variants are right; ``--json OUT`` has every figure
so far after each variant. A variant that ends late or badly keeps what it printed before. Exit status 1 where one
failed or has a wrong kernel. ``--build FOLDER`` keeps the programs, and compiles nothing that is there already, built
on a machine without a GPU, say; ``--build-only`` stops then.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from cmslap.files import replacing

ROOT = Path(__file__).resolve().parents[2]
# Of CMSLAP_SM90_VARIANT in csrc/cuda/sm90_*.cu, by what the convolution does. The second is the first's fallback.
VARIANTS = {
    0: "32x8 pixels, next tile prefetched to L2",
    3: "aligned operands",
    1: "32x8 pixels",
    2: "16x8 pixels",
}
LIMIT = 60.0  # seconds a variant may take
TOLERANCE = 1e-2  # of the error relative to the sm_80 kernels; rounding to bfloat16 makes 4e-3 at most
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


def measure(program: Path, limit: float) -> list[dict]:
    """What a program printed, and how it failed if it did not come to its end."""
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen([str(program)], stdout=output)
        try:
            status = process.wait(limit)
            failure = [] if status == 0 else [{"failed": f"exit status {status}"}]
        except subprocess.TimeoutExpired:
            process.kill()
            with contextlib.suppress(subprocess.TimeoutExpired):  # one that waits for a broken device may stay
                process.wait(10)
            failure = [{"failed": f"stopped after {limit:.0f} s"}]
        output.seek(0)
        complete = [line for line in output if line.endswith("\n")]
    return [json.loads(line) for line in complete] + failure


def is_wrong(row: dict) -> bool:
    """Whether it failed, or is a kernel with too large an error, or none."""
    if "kernel" not in row:
        return "failed" in row
    return row["error"] is None or not row["error"] <= TOLERANCE  # no number, or a NaN


def line(row: dict) -> str:
    if "kernel" not in row:
        return json.dumps(row)
    size = "x".join(map(str, row["size"]))
    shares = f"{row['tflops'] / TFLOPS:6.0%} of arithmetic {row['gbs'] / GBS:6.0%} of memory"
    error = "NaN" if row["error"] is None else f"{row['error']:.1e}"
    return (
        f"{row['kernel']:34} {size:>11} {row['us']:9.1f} us {row['tflops']:6.0f} TFLOP/s {row['gbs']:6.0f} GB/s "
        f"{shares}   sm_80 {row['sm80_us'] / row['us']:5.2f}x   error {error}{'   WRONG' * is_wrong(row)}"
    )


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu.hopper", description=__doc__.split("\n")[0])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--build", type=Path)
    parser.add_argument("--build-only", action="store_true")
    parser.add_argument("--limit", type=float, default=LIMIT, help="seconds a variant may take (default: %(default)s)")
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.build or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        with ThreadPoolExecutor(max(1, (os.cpu_count() or 1) // 4)) as pool:
            programs = dict(zip(VARIANTS, pool.map(lambda variant: build(folder, variant), VARIANTS), strict=True))
        if arguments.build_only:
            return 0
        results, right = {}, []
        for variant, program in programs.items():
            rows = results[VARIANTS[variant]] = measure(program, arguments.limit)
            print(f"\n{VARIANTS[variant]}", *map(line, rows), sep="\n", flush=True)
            if not any(map(is_wrong, rows)):
                right.append(variant)
            if arguments.json is not None:
                with replacing(arguments.json) as file:
                    Path(file).write_text(json.dumps(results, indent=1) + "\n")
    print("\nright variants (CMSLAP_SM90_VARIANT):", *(right or ["none"]))
    return int(len(right) < len(VARIANTS))


if __name__ == "__main__":
    sys.exit(main())
