"""Programs that tests compile with make."""

import fcntl
import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def make(program: str, compiler: str, *options: str) -> Path:
    """A program of tests/csrc/cuda.mk, kept between runs: only what changed is compiled again. One make at a time."""
    if shutil.which("make") is None or shutil.which(compiler) is None:
        pytest.skip(f"needs make and {compiler}")
    command = ["make", "--silent", f"-j{os.cpu_count()}", "-f", "tests/csrc/cuda.mk", *options, program]
    (ROOT / "build").mkdir(exist_ok=True)
    with (ROOT / "build" / "making").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        subprocess.run(command, cwd=ROOT, check=True)
    return ROOT / program
