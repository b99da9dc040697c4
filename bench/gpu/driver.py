"""Build, test and measure on this machine's CUDA GPU, offline and in under ten minutes: ``make gpu``.

Every step is a process of its own with a time limit, and writes its log as it goes: a kernel that hangs or breaks the
device costs one step. Each backend is first tried on small maps; one that fails there is not measured. The measuring
steps each leave ``<step>.json``; ``run.json`` says how every step ended, and the plots are drawn where matplotlib is
installed. A short table is printed last; the long ones are in the logs.
"""

from __future__ import annotations

import argparse
import contextlib
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
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
NEEDED = ("torch", "numpy", "PIL", "safetensors", "tqdm", "setuptools")  # to build and measure
# not pip: looking for it makes setuptools step aside for distutils in this process
TEST_TOOLS = ("pytest", "hypothesis", "scipy", "skimage")
BUILD = ("pip", "install", "--no-index", "--no-build-isolation", "--no-deps", "--editable", ".")
TESTS = ("pytest", "-m", "cuda", "-v")
LIMITS = {"build": 240.0, "tests": 180.0, "probe": 60.0, "plots": 30.0}  # seconds
STARTING = 12.0  # seconds a step needs to start and to measure the ceilings
TURNS = 4.0  # seconds a case needs after its first calls
OURS = ("cuda", "triton")


@dataclass(frozen=True)
class Measurement:
    """A step of the GPU suite, or of ``suite``: its cases, and its share of the time, which is mostly compilation's."""

    share: int
    cases: tuple[str, ...]
    suite: str = "gpu"


# What one leaves of its time, the later ones share.
MEASUREMENTS = {
    "operations": Measurement(
        12,
        (
            "conv2d_lrelu", "conv2d_lrelu-backward-alone", "conv2d_lrelu+backward",
            "tied_conv_transpose2d+backward", "tied_conv_transpose2d",
        ),
    ),
    "forward": Measurement(7, ("forward",)),
    "block": Measurement(
        13,
        (
            "recursive_embedding+backward", "lapsrn_level+backward", "residual_head+backward",
            "recursive_embedding", "lapsrn_level", "residual_head",
        ),
    ),
    "training": Measurement(14, ("training", "recompute-training")),
    "scaling": Measurement(5, ("64", "128", "256", "512", "1024", "2048", "4096"), suite="scaling"),
    "end_to_end": Measurement(5, ("photograph", "folder", "reference-training")),
    "start": Measurement(3, ("first-result",)),
}  # fmt: skip


@dataclass(frozen=True)
class Step:
    """How a step ended."""

    name: str
    outcome: str  # begins with "ok", or is what went wrong
    seconds: float

    @property
    def ok(self) -> bool:
        return self.outcome.startswith("ok")


def missing() -> str | None:
    """What this machine lacks, or None."""
    absent = _absent(NEEDED)
    if "torch" not in absent:
        import torch

        if torch.version.cuda is None:
            return f"no CUDA GPU can be used: PyTorch {torch.__version__} is built without CUDA"
        if not torch.cuda.is_available():
            return "PyTorch finds no CUDA GPU"
    return f"{sys.executable} has no module {', '.join(absent)}" if absent else None


def _absent(modules: Sequence[str]) -> list[str]:
    return [name for name in modules if importlib.util.find_spec(name) is None]


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
            cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip
        try:
            status = process.wait(limit)
            outcome = "ok" if status == 0 else f"exit status {status}, see {log.name}"
        except subprocess.TimeoutExpired:
            outcome = f"stopped after {limit:.0f} s, see {log.name}"
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                with contextlib.suppress(subprocess.TimeoutExpired):  # one that waits for a broken device may stay
                    process.wait(10)
    return Step(name, outcome, time.monotonic() - start)


def steps(out: Path, quick: bool, deadline: float) -> Iterator[Step]:
    """Build, tests, backends and cases, one after the other; without a build there is nothing to test or measure."""
    built = execute("build", BUILD, out / "build.log", LIMITS["build"])
    yield built
    if not built.ok:
        return
    yield _tests(out)
    without = []
    for backend in _built_backends():
        tried = execute(f"probe {backend}", ("bench.gpu.probe", backend), out / f"probe-{backend}.log", LIMITS["probe"])
        yield tried
        if not tried.ok:
            without.append(backend)
    for position, name in enumerate(MEASUREMENTS):
        shares = [each.share for each in list(MEASUREMENTS.values())[position:]]
        left = deadline - LIMITS["plots"] - time.monotonic()
        yield _measure(name, out, quick, left * shares[0] / sum(shares), without)
    yield _plots(out)


def _tests(out: Path) -> Step:
    absent = _absent(TEST_TOOLS)
    if absent:
        return Step("tests", f"not run: no module {', '.join(absent)}", 0.0)
    timeout = () if _absent(["pytest_timeout"]) else ("--timeout", "90")
    return execute("tests", (*TESTS, *timeout), out / "tests.log", LIMITS["tests"])


def _built_backends() -> list[str]:
    """Ours for GPUs, as the build just made them; in another process, as this one must not load it."""
    command = "from bench.speed.baselines import gpu_backends; print(*gpu_backends())"
    try:
        done = subprocess.run([sys.executable, "-c", command], cwd=ROOT, capture_output=True, text=True, timeout=60)
    except subprocess.TimeoutExpired:
        return list(OURS)
    return done.stdout.split()


def _measure(name: str, out: Path, quick: bool, limit: float, without: Sequence[str]) -> Step:
    """Measure a step's cases; once more, without them, if backends of ours broke the device, and there is time."""
    measurement = MEASUREMENTS[name]
    start = time.monotonic()
    turns = TURNS * len(measurement.cases)
    for_first_calls = limit - STARTING - turns
    if for_first_calls <= 0:
        return Step(name, "not run: out of time", 0.0)
    a_case = math.ceil(for_first_calls / len(measurement.cases))
    command = [
        "bench", "--suite", measurement.suite, "--json", str(_json(out, name)), "--limit", str(a_case),
        *(option for case in measurement.cases for option in ("--case", case)),
        *["--quick"] * quick,
        *(option for each in without for who in _names(each) for option in ("--without", who)),
    ]  # fmt: skip
    step = execute(name, command, out / f"{name}.log", limit)
    breaking = [each for each in OURS if each not in without and _broke_the_device(out, name, each)]
    left = limit - (time.monotonic() - start)
    if not breaking or left < STARTING + turns:
        return step
    again = _measure(name, out, quick, left, [*without, *breaking])
    return Step(name, f"{', '.join(breaking)} broke the device; without: {again.outcome}", time.monotonic() - start)


def _names(backend: str) -> tuple[str, str]:
    """What the suite calls a backend's implementations."""
    return f"cmslap {backend}", f"cmslap graph {backend}"


def _broke_the_device(out: Path, name: str, backend: str) -> bool:
    """Whether it was the first to fail in a case with an error after which CUDA serves the process no more."""
    for result in _results(out, name):
        reasons = [(who, why) for who, why in result["failed"].items() if "CUDA error" in why or "illegal" in why]
        if reasons:
            return reasons[0][0] in _names(backend)
    return False


def _results(out: Path, name: str) -> list[dict[str, Any]]:
    return json.loads(_json(out, name).read_text())["results"] if _json(out, name).exists() else []


def _plots(out: Path) -> Step:
    if _absent(["matplotlib"]):
        return Step("plots", "ok: none, as matplotlib is not installed", 0.0)
    return execute("plots", ("bench.report", "--plots", str(out)), out / "plots.log", LIMITS["plots"])


def _json(out: Path, step: str) -> Path:
    return out / f"{step}.json"


def write(path: Path, done: Sequence[Step]) -> None:
    from cmslap.files import replacing  # not before the extension is built

    with replacing(path) as temporary:
        temporary.write_text(json.dumps([asdict(step) for step in done], indent=2) + "\n", encoding="utf-8")


def summary(out: Path, done: Sequence[Step]) -> str:
    """A line a case, the ceilings, and how every step ended."""
    from bench.speed import table

    records = [json.loads(_json(out, name).read_text()) for name in MEASUREMENTS if _json(out, name).exists()]
    lines = [table.brief(result) for record in records for result in record["results"]]
    if records:
        lines.append(table.ceilings_text(records[0]["ceilings"]))
    if (out / "tests.log").exists():
        lines.append("tests: " + (out / "tests.log").read_text().strip().rpartition("\n")[2].strip("= "))
    lines += [f"{step.name:<16}{step.seconds:6.0f} s  {step.outcome}" for step in done]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="folder of the results (default: bench/results/<device>)")
    parser.add_argument("--quick", action="store_true", help="fewer rounds, and no max-autotune of torch.compile's")
    parser.add_argument("--minutes", type=float, default=9.5, help="time for everything (default: %(default)s)")
    args = parser.parse_args(arguments)
    deadline = time.monotonic() + 60 * args.minutes
    reason = missing()
    if reason:
        print(f"make gpu: {reason}", file=sys.stderr)
        return 1
    out = (args.out or results_folder()).resolve()
    out.mkdir(parents=True, exist_ok=True)
    for stale in (*(_json(out, name) for name in MEASUREMENTS), out / "tests.log"):
        stale.unlink(missing_ok=True)
    done: list[Step] = []
    for step in steps(out, args.quick, deadline):
        print(f"{step.name}: {step.outcome} ({step.seconds:.0f} s)", flush=True)
        done.append(step)
        write(out / "run.json", done)
    if not done[0].ok:
        print((out / "build.log").read_text()[-3000:])
        return 1
    print(f"\n{summary(out, done)}\nresults in {out}")
    return int(not all(step.ok for step in done))
