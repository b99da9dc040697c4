"""Build, test and measure on this machine's CUDA GPU, offline and in under ten minutes: ``make gpu``.

Every step is a process of its own with a time limit, and writes its log as it goes: a kernel that hangs or breaks the
device costs one step. The GPU suite's cases each leave ``<case>.json``; ``run.json`` says how every step ended. A
table of it all is printed last.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NEEDED = (  # not pip: looking for it makes setuptools step aside for distutils in this process
    "torch", "triton", "numpy", "scipy", "PIL", "safetensors", "tqdm", "skimage",
    "setuptools", "pytest", "pytest_timeout", "hypothesis",
)  # fmt: skip
BUILD = ("pip", "install", "--no-index", "--no-build-isolation", "--no-deps", "--editable", ".")
TESTS = ("pytest", "-m", "cuda", "-v", "--timeout", "90")
CASES = {  # and their shares of the time, which is mostly compilation's; what one leaves, the later ones share
    "conv-forward": 4, "conv-backward": 4, "tied": 4, "inference": 8, "block": 9, "training": 17,
}  # fmt: skip
AFTER_COMPILATION = 20  # seconds a case needs to start, to measure the ceilings and to take turns
LIMITS = {"build": 240.0, "tests": 180.0}  # seconds


@dataclass(frozen=True)
class Step:
    """How a step ended."""

    name: str
    outcome: str  # "ok" or what went wrong
    seconds: float


def missing() -> str | None:
    """What this machine lacks, or None."""
    absent = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if "torch" not in absent:
        import torch

        if torch.version.cuda is None:
            return f"no CUDA GPU can be used: PyTorch {torch.__version__} is built without CUDA"
        if not torch.cuda.is_available():
            return "PyTorch finds no CUDA GPU"
    return f"{sys.executable} has no module {', '.join(absent)}" if absent else None


def results_folder() -> Path:
    """bench/results/<device name>"""
    import torch

    name = re.sub(r"[^a-z0-9]+", "-", torch.cuda.get_device_name().lower()).strip("-")
    return ROOT / "bench" / "results" / name


def execute(name: str, module: Sequence[str], log: Path, limit: float) -> Step:
    """Run ``python -m *module``, output into ``log``; after ``limit`` seconds end it and all that it started."""
    start = time.monotonic()
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}
    with log.open("w", encoding="utf-8") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", *module],
            cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        try:
            status = process.wait(limit)
            outcome = "ok" if status == 0 else f"exit status {status}, see {log.name}"
        except subprocess.TimeoutExpired:
            outcome = f"stopped after {limit:.0f} s, see {log.name}"
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    return Step(name, outcome, time.monotonic() - start)


def steps(out: Path, quick: bool, deadline: float) -> Iterator[Step]:
    """Build, tests and cases, one after the other; without a build there is nothing to test or measure."""
    built = execute("build", BUILD, out / "build.log", LIMITS["build"])
    yield built
    if built.outcome != "ok":
        return
    yield execute("tests", TESTS, out / "tests.log", LIMITS["tests"])
    for position, case in enumerate(CASES):
        weights = list(CASES.values())[position:]
        limit = (deadline - time.monotonic()) * weights[0] / sum(weights)
        if limit <= AFTER_COMPILATION:
            yield Step(case, "not run: out of time", 0.0)
            continue
        options = ("--case", case, "--rounds", "15", "--limit", str(math.ceil(limit - AFTER_COMPILATION)))
        command = ("cmslap", "bench", "--suite", "gpu", *options, *["--quick"] * quick, "--json", str(_json(out, case)))
        yield execute(case, command, out / f"{case}.log", limit)


def _json(out: Path, case: str) -> Path:
    return out / f"{case}.json"


def write(path: Path, done: Sequence[Step]) -> None:
    from cmslap.files import replacing  # not before the extension is built

    with replacing(path) as temporary:
        temporary.write_text(json.dumps([asdict(step) for step in done], indent=2) + "\n", encoding="utf-8")


def summary(out: Path, done: Sequence[Step]) -> str:
    """Ceilings, every case's figures, and how every step ended."""
    from cmslap.benchmark.command import table

    records = [json.loads(_json(out, step.name).read_text()) for step in done if _json(out, step.name).exists()]
    results = [result for record in records for result in record["results"]]
    lines = [table(result) for result in results]
    if results:
        ceilings = results[-1]["ceilings"]
        lines.append(f"ceilings: {ceilings['matmul_tflops']:.0f} TFLOP/s matmul, {ceilings['copy_gbs']:.0f} GB/s copy")
    if (out / "tests.log").exists():
        lines.append("tests: " + (out / "tests.log").read_text().strip().rpartition("\n")[2].strip("= "))
    lines += [f"{step.name:<16}{step.seconds:6.0f} s  {step.outcome}" for step in done]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="folder of the results (default: bench/results/<device>)")
    parser.add_argument("--quick", action="store_true", help="leave torch.compile's max-autotune out")
    parser.add_argument("--minutes", type=float, default=9.5, help="time for everything (default: %(default)s)")
    args = parser.parse_args(arguments)
    deadline = time.monotonic() + 60 * args.minutes
    reason = missing()
    if reason:
        print(f"make gpu: {reason}", file=sys.stderr)
        return 1
    out = (args.out or results_folder()).resolve()
    out.mkdir(parents=True, exist_ok=True)
    for stale in (*(_json(out, case) for case in CASES), out / "tests.log"):
        stale.unlink(missing_ok=True)
    done: list[Step] = []
    for step in steps(out, args.quick, deadline):
        print(f"{step.name}: {step.outcome} ({step.seconds:.0f} s)", flush=True)
        done.append(step)
        write(out / "run.json", done)
    if done[0].outcome != "ok":
        print((out / "build.log").read_text()[-3000:])
        return 1
    print(f"\n{summary(out, done)}\nresults in {out}")
    return int(any(step.outcome != "ok" for step in done))


if __name__ == "__main__":
    sys.exit(main())
