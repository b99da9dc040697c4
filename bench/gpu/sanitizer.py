"""Run the tests of the CUDA kernels on this machine's GPU under CUDA's compute-sanitizer, and write down what it found.

``python -m bench.gpu.sanitizer`` compiles and runs them once a tool: memory out of bounds, races in shared
memory, memory read before it is written, barriers misused.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from bench.gpu.driver import ROOT, results_folder
from cmslap.files import replacing

TOOLS = ("memcheck", "racecheck", "initcheck", "synccheck")
FOUND = 9  # the exit status that means: the tool found something
PROGRAM = "build/cuda_native/cuda_tests"
BUILD = ("make", "--silent", f"-j{os.cpu_count()}", "-f", "tests/csrc/cuda.mk", PROGRAM)


def sanitizer() -> str | None:
    return shutil.which("compute-sanitizer") or shutil.which("compute-sanitizer", path="/usr/local/cuda/bin")


def run(tool: str, limit: float) -> dict[str, Any]:
    """One tool's outcome: "ok", or what it found or what else went wrong; its own summary; seconds."""
    options = ("--tool", tool, "--error-exitcode", str(FOUND), "--print-limit", "10")
    command = [sanitizer(), *options, ROOT / PROGRAM, "--cases", "1"]
    start = time.monotonic()
    try:
        result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=limit)
    except subprocess.TimeoutExpired:
        return {"outcome": f"stopped after {limit:.0f} s", "summary": None, "seconds": limit}
    print(result.stdout, flush=True)
    outcome = {0: "ok", FOUND: "found errors"}.get(result.returncode, f"exit status {result.returncode}")
    summary = re.findall(r"=+ (\w+ SUMMARY: .*)", result.stdout)
    seconds = round(time.monotonic() - start, 1)
    return {"outcome": outcome, "summary": summary[-1] if summary else None, "seconds": seconds}


def main(arguments: list[str] | None = None) -> int:
    import torch

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="default: bench/results/<device>/sanitizer.json")
    parser.add_argument("--limit", type=float, default=120.0, help="seconds a tool may take (default: %(default)s)")
    options = parser.parse_args(arguments)
    for there, reason in (
        (torch.cuda.is_available(), "PyTorch finds no CUDA GPU"),
        (sanitizer() is not None, "there is no compute-sanitizer"),
    ):
        if not there:
            print(reason, file=sys.stderr)
            return 1
    subprocess.run(BUILD, cwd=ROOT, check=True)
    record = {"device": torch.cuda.get_device_name(), "tools": {}}
    for tool in TOOLS:
        record["tools"][tool] = run(tool, options.limit)
        with replacing(options.json or results_folder() / "sanitizer.json") as path:
            path.write_text(json.dumps(record, indent=2) + "\n")
    return int(any(tool["outcome"] != "ok" for tool in record["tools"].values()))


if __name__ == "__main__":
    sys.exit(main())
