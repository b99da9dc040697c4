"""Run the CUDA kernels on small maps under CUDA's compute-sanitizer, and write down what it found.

``python -m bench.sanitizer`` runs tests of whole operations, forward and backward, once a tool: memory out
of bounds, races in shared memory, memory read before it is written, barriers misused. It needs a CUDA GPU.
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

from bench.gpu import results_folder
from cmslap.files import replacing

ROOT = Path(__file__).resolve().parent.parent
TOOLS = ("memcheck", "racecheck", "initcheck", "synccheck")
TESTS = ("-m", "cuda", "-k", "not triton and not float16", "tests/kernels/test_operations.py")
FOUND = 9  # the exit status that means: the tool found something


def sanitizer() -> str | None:
    return shutil.which("compute-sanitizer") or shutil.which("compute-sanitizer", path="/usr/local/cuda/bin")


def run(tool: str, limit: float) -> dict[str, Any]:
    """One tool's outcome: "ok", or what it found or what else went wrong, and its own summary."""
    command = [
        sanitizer(), "--tool", tool, "--error-exitcode", str(FOUND), "--print-limit", "10",
        # What PyTorch's kernels write must be seen where reading what nobody wrote is looked for.
        *([] if tool == "initcheck" else ["--kernel-name", "kns=cmslap"]),
        sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *TESTS,
    ]  # fmt: skip
    environment = os.environ | {
        "PYTORCH_NO_CUDA_MEMORY_CACHING": "1",  # else where one allocation ends another begins
        "CMSLAP_POISON": "0",  # the tests fill fresh memory, which would hide that nobody else has written it
    }
    start = time.monotonic()
    try:
        result = subprocess.run(
            command,
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=limit,
        )
    except subprocess.TimeoutExpired:
        return {"outcome": f"stopped after {limit:.0f} s", "seconds": limit}
    print(result.stdout, flush=True)
    outcome = {0: "ok", FOUND: "found errors"}.get(result.returncode, f"exit status {result.returncode}")
    summary = re.findall(r"=+ ((?:ERROR|RACECHECK) SUMMARY: .*)", result.stdout)
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
    record = {"device": torch.cuda.get_device_name(), "tools": {}}
    for tool in TOOLS:
        record["tools"][tool] = run(tool, options.limit)
        with replacing(options.json or results_folder() / "sanitizer.json") as path:
            path.write_text(json.dumps(record, indent=2) + "\n")
    return int(any(tool["outcome"] != "ok" for tool in record["tools"].values()))


if __name__ == "__main__":
    sys.exit(main())
