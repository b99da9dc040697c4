"""Where a figure comes from: commit, versions and device, for the files that record figures."""

import os
import platform
import subprocess
from pathlib import Path

import numpy as np
import PIL
import torch

import cmslap


def provenance(device: torch.device | str = "cpu") -> dict[str, str | int | None]:
    """Commit, versions, device and threads.

    The commit ends in ``-dirty`` with uncommitted changes; outside a checkout it is CMSLAP_COMMIT's, or None.
    """
    device = torch.device(device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _processor()
    return {
        "commit": _commit(),
        "cmslap": cmslap.__version__,
        "python": platform.python_version(),
        "torch": str(torch.__version__),  # a subclass of str, which safe unpickling refuses
        "numpy": np.__version__,
        "pillow": PIL.__version__,
        "device": name,
        "threads": torch.get_num_threads(),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def _commit() -> str | None:
    root = Path(cmslap.__file__).parents[1]
    if not (root / ".git").exists():
        return os.environ.get("CMSLAP_COMMIT")
    describe = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        return subprocess.run(describe, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
