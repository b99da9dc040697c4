"""Build, try, measure and test on this machine's CUDA GPU, offline, in calls of a few minutes: ``make gpu``.

README.md beside this file says how to use half an hour of a GPU. Every step is a process of its own with a time limit:
a kernel that hangs or breaks the device costs one step. A step for which too little time is left is not begun;
``--resume`` goes on where the last call stopped. What comes back are a few files: ``summary.json``, with everything
measured and how every step ended, and ``logs.tar.gz``, both written anew after every step; ``running.log`` of the step
that runs; and Triton's compiled kernels, which ``--resume`` takes along.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from bench.gpu import bars
from bench.gpu.hopper import VARIANTS, is_wrong
from cmslap.files import replacing

ROOT = Path(__file__).resolve().parents[2]
PYTHON = (sys.executable,)  # what runs a step
NEEDED = ("torch", "numpy", "PIL", "safetensors", "tqdm", "setuptools")  # to build and measure
HOPPER = (9, 0)
TEST_PROCESSES = 8
ENDING = 5.0  # seconds kept for the files that come back
LARGEST = 15 * 2**20  # bytes of a file that comes back
CACHE = Path(tempfile.gettempdir(), "cmslap-triton")  # the same in every call: what Triton keeps names its own place


@dataclass(frozen=True)
class Step:
    """One process: ``python *command``. Times are in seconds."""

    name: str
    command: tuple[str, ...]
    limit: float  # after which it is ended
    least: float  # it is not begun with less left
    environment: Mapping[str, str] = field(default_factory=dict)


def steps(work: Path, quick: bool) -> list[Step]:
    """In the order of what they are worth; what compiles longest comes last."""
    sm80 = {"CMSLAP_CUDA_KERNELS": "sm80"}
    few = {"CMSLAP_CUDA_MULTIPROCESSORS": "5"}  # a trial's maps have some 24 tiles: a block takes several, in turns
    alone = "peak_memory or more_elements"
    others = f"not ({alone}) and not sm80_kernels"

    def measured(name: str, cases: Sequence[str], limit: float, a_call: int, suite: str = "gpu") -> Step:
        options = ["--suite", suite, "--json", str(work / f"{name}.json"), "--limit", str(a_call), *["--quick"] * quick]
        chosen = [option for case in cases for option in ("--case", case)]
        return Step(name, ("-m", "bench", *options, *chosen), limit, least=40)

    programs = ROOT / "build" / "hopper"
    hopper = ("-m", "bench.gpu.hopper", "--build", str(programs), "--json", str(work / "hopper.json"))
    return [
        Step("build", ("setup.py", "build_ext", "--inplace"), 240, 60),
        Step("hopper", hopper, 200, 30),
        Step("probe cuda", ("-m", "bench.gpu.probe", "cuda"), 60, 15, few),
        Step("probe cuda sm80", ("-m", "bench.gpu.probe", "cuda"), 60, 15, few | sm80),
        Step("probe triton", ("-m", "bench.gpu.probe", "triton"), 90, 20),
        measured("network", NETWORK, 150, 45),
        measured("operations", OPERATIONS, 150, 45),
        Step("tests cuda", _tests(f"not triton and {others}"), 150, 30),
        Step("tests triton", _tests(f"triton and {others}"), 180, 40),
        Step("tests sm80", _tests("not triton", "test_every_operation.py", "test_backend.py"), 100, 30, sm80),
        Step("tests memory", _tests(alone, parallel=False), 90, 30),
        measured("end to end", END_TO_END, 100, 30),
        measured("scaling", (), 90, 30, suite="scaling"),
        measured("compiled", COMPILED, 420, 150),
    ]


NETWORK = (
    "recursive_embedding+backward", "training", "recompute-training", "lapsrn_level+backward", "laptop-training",
    "reference-training", "forward",
)  # fmt: skip
OPERATIONS = (
    "conv2d_lrelu", "conv2d_lrelu-data-gradient", "conv2d_lrelu-weight-gradient", "tied_conv_transpose2d+backward",
    "tied_conv_transpose2d", "conv2d_lrelu+backward", "residual_head+backward", "residual_head",
    "recursive_embedding", "lapsrn_level", "dense_recursion+backward", "dense_recursion",
)  # fmt: skip
END_TO_END = ("photograph", "folder", "first-result")
COMPILED = (
    "compiled-conv2d_lrelu", "compiled-recursive_embedding+backward", "compiled-training", "compiled-forward",
    "compiled-tied_conv_transpose2d+backward",
)  # fmt: skip


def _tests(which: str, *files: str, parallel: bool = True) -> tuple[str, ...]:
    options = ["-m", "cuda", "-v", "-p", "no:cacheprovider", "-k", which]
    if parallel and _there("xdist"):
        options += ["-n", str(TEST_PROCESSES)]
    if _there("pytest_timeout"):
        options += ["--timeout", "60"]
    return ("-m", "pytest", *(f"tests/kernels/{file}" for file in files or ("",)), *options)


def _there(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


# What a machine is ----------------------------------------------------------------------------------------------------


class MachineError(Exception):
    """Why nothing can be measured here."""


_FACTS = """
import json, torch
there = torch.cuda.is_available()
print(json.dumps({
    "torch": torch.__version__,
    "device": torch.cuda.get_device_name() if there else None,
    "capability": torch.cuda.get_device_capability() if there else None,
}))
"""


def facts() -> dict[str, Any]:
    """PyTorch's version, the GPU's name and compute capability; asked in another process, as asking may hang."""
    absent = [name for name in NEEDED if not _there(name)]
    if absent:
        raise MachineError(f"{sys.executable} has no module {', '.join(absent)}")
    try:
        asked = subprocess.run([sys.executable, "-c", _FACTS], capture_output=True, text=True, timeout=90)
    except subprocess.TimeoutExpired:
        raise MachineError("PyTorch did not find out in 90 s whether there is a CUDA GPU") from None
    if asked.returncode:
        raise MachineError(f"PyTorch can't be asked for a CUDA GPU: {asked.stderr.strip().rpartition(chr(10))[2]}")
    found = json.loads(asked.stdout)
    if found["device"] is None:
        raise MachineError(f"PyTorch {found['torch']} finds no CUDA GPU")
    return found


def results_folder() -> Path:
    """bench/results/<device name>"""
    name = re.sub(r"[^a-z0-9]+", "-", facts()["device"].lower()).strip("-")
    return ROOT / "bench" / "results" / name


def link_kernels() -> None:
    """Make ``kernels/`` the package ``cmslap.kernels`` where no installation does."""
    there = subprocess.run([sys.executable, "-c", "import cmslap.kernels"], cwd=ROOT, capture_output=True)
    if there.returncode:
        with contextlib.suppress(FileExistsError):  # the package can't be imported for another reason: the steps say it
            (ROOT / "cmslap" / "kernels").symlink_to("../kernels")


# Running --------------------------------------------------------------------------------------------------------------


def execute(step: Step, log: Path, limit: float, environment: Mapping[str, str]) -> dict[str, Any]:
    """Run a step, output into ``log``; after ``limit`` seconds end it and all that it started."""
    start = time.monotonic()
    with log.open("w", encoding="utf-8") as output:
        process = subprocess.Popen(
            [*PYTHON, *step.command],
            cwd=ROOT, env={**os.environ, **environment}, stdin=subprocess.DEVNULL, stdout=output,
            stderr=subprocess.STDOUT, preexec_fn=_end_with_driver,
        )  # fmt: skip
        try:
            status = process.wait(limit)
            outcome = "ok" if status == 0 else f"exit status {status}"
        except subprocess.TimeoutExpired:
            outcome = f"stopped after {limit:.0f} s"
        finally:
            with contextlib.suppress(ProcessLookupError):  # nothing is left of it
                os.killpg(process.pid, signal.SIGKILL)
            with contextlib.suppress(subprocess.TimeoutExpired):  # one that waits for a broken device may stay
                process.wait(10)
    return {"outcome": outcome, "seconds": round(time.monotonic() - start, 1)}


def _end_with_driver() -> None:
    """A group of processes that can be ended together, and whose first one ends with the driver, however that does."""
    os.setpgrp()
    set_signal_at_parents_death = 1  # PR_SET_PDEATHSIG
    ctypes.CDLL(None).prctl(set_signal_at_parents_death, signal.SIGKILL)


class Session:
    """What is known of a GPU so far, and the files that say so."""

    def __init__(self, out: Path, work: Path, summary: dict[str, Any]) -> None:
        self.out, self.work, self.summary = out, work, summary
        self.steps: dict[str, dict[str, Any]] = summary["steps"]
        self.variant = VARIANTS.get(int(os.environ.get("CMSLAP_SM90_VARIANT") or 0))  # that the library is built with

    def ok(self, name: str) -> bool:
        return self.steps.get(name, {}).get("outcome", "").startswith("ok")

    def failed(self, name: str) -> bool:
        """Whether a step was begun and did not end well."""
        return name in self.steps and not self.ok(name) and not self.steps[name]["outcome"].startswith("not run")

    @property
    def on_sm80(self) -> bool:
        """Whether a Hopper device's own kernels failed, so that those for 8.0 serve it."""
        return self.summary["hopper"] == "wrong" or self.failed("probe cuda")

    @property
    def without(self) -> list[str]:
        """The backends that failed their trials."""
        cuda = "probe cuda sm80" if self.on_sm80 and self.hopper else "probe cuda"
        return [name for name, trial in (("cuda", cuda), ("triton", "probe triton")) if self.failed(trial)]

    @property
    def hopper(self) -> bool:
        return tuple(self.summary["capability"]) == HOPPER

    def environment(self, step: Step) -> dict[str, str]:
        found = {"PYTHONUNBUFFERED": "1", "TRITON_CACHE_DIR": str(CACHE)}
        if self.summary["commit"]:
            found["CMSLAP_COMMIT"] = self.summary["commit"]
        if step.name == "build":
            found["TORCH_CUDA_ARCH_LIST"] = ".".join(map(str, self.summary["capability"]))
        if self.on_sm80 and step.name != "probe cuda":
            found["CMSLAP_CUDA_KERNELS"] = "sm80"
        return found | step.environment

    def needless(self, step: Step) -> str | None:
        """Why a step need not be run, or None."""
        if step.name == "hopper" and not self.hopper:
            return "not a Hopper device"
        if step.name in ("probe cuda sm80", "tests sm80") and not self.hopper:
            return "these are its own kernels"
        if step.name == "probe cuda sm80" and not self.on_sm80:
            return "its own kernels serve"
        if step.name == "tests sm80" and self.on_sm80:
            return "see tests cuda"
        return None

    def run(self, step: Step, left: float) -> None:
        needless = self.needless(step)
        if needless:
            self.steps[step.name] = {"outcome": f"ok: not needed, {needless}", "seconds": 0.0}
        elif left < step.least + ENDING:
            self.steps[step.name] = {"outcome": f"not run: {max(left, 0):.0f} s were left", "seconds": 0.0}
        else:
            left_out = [option for each in self.without for who in _names(each) for option in ("--without", who)]
            if step.command[:2] == ("-m", "bench"):
                step = replace(step, command=(*step.command, *left_out))
            running = self.out / "running.log"
            done = execute(step, running, min(step.limit, left - ENDING), self.environment(step))
            self.steps[step.name] = done | self._said(running)
            shutil.move(running, self.work / f"{step.name.replace(' ', '-')}.log")
            self._take_in(step.name)
        self.write()

    def _said(self, log: Path) -> dict[str, str]:
        """The last line of a log, which says most about tests and failures."""
        lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return {"last_line": lines[-1].strip("= ")[:300]} if lines else {}

    def _take_in(self, name: str) -> None:
        """A step's figures."""
        file = self.work / f"{name}.json"
        if not file.exists():
            return
        found = json.loads(file.read_text())
        if name == "hopper":
            self.summary["hopper_variants"] = found
            self.summary["hopper"] = "right" if _right(found.get(self.variant, [])) else "wrong"
        else:
            self.summary["records"][name] = found

    def write(self) -> None:
        self.summary["bars"] = [asdict(bar) | {"text": bar.text} for bar in bars.answered(self.summary["records"])]
        with replacing(self.out / "summary.json") as file:
            file.write_text(json.dumps(self.summary, indent=1) + "\n", encoding="utf-8")
        with replacing(self.out / "logs.tar.gz") as file, tarfile.open(file, "w:gz") as archive:
            for path in sorted((*self.work.glob("*.log"), *self.work.glob("*.json"))):
                archive.add(path, path.name)

    def unpack_cache(self, folder: Path) -> None:
        archive = folder / "triton-cache.tar.gz"
        if archive.exists():
            with tarfile.open(archive) as packed:
                packed.extractall(CACHE.parent, filter="data")

    def pack_cache(self) -> None:
        """The compiled kernels, without what the compiler wrote on the way."""
        if not CACHE.exists():
            return
        packed = self.out / "triton-cache.tar.gz"
        with replacing(packed) as file, tarfile.open(file, "w:gz") as archive:
            for path in sorted((*CACHE.rglob("*.cubin"), *CACHE.rglob("*.json"))):
                archive.add(path, path.relative_to(CACHE.parent))
        if packed.stat().st_size > LARGEST:
            packed.unlink()


def _names(backend: str) -> tuple[str, str]:
    """What the suite calls a backend's implementations."""
    return f"cmslap {backend}", f"cmslap graph {backend}"


def _right(rows: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a variant of the Hopper kernels came to its end and agrees with the kernels for 8.0."""
    return bool(rows) and not any(map(is_wrong, rows))


def report(summary: Mapping[str, Any]) -> str:
    """A line a case, the ceilings, the bars, and how every step ended."""
    from bench.speed import table  # imports PyTorch, which takes a moment: not before the steps

    records = summary["records"].values()
    lines = [table.brief(result) for record in records for result in record["results"]]
    lines += [table.ceilings_text(record["ceilings"]) for record in list(records)[:1]]
    lines += ["", *(bar["text"] for bar in summary["bars"]), ""]
    if summary["hopper"]:
        lines.append(f"The Hopper kernels are {summary['hopper']}.")
    for name, step in summary["steps"].items():
        said = "" if step["outcome"] == "ok" and not name.startswith("tests") else f"   {step.get('last_line', '')}"
        lines.append(f"{name:<16}{step['seconds']:6.0f} s  {step['outcome']}{said}")
    return "\n".join(lines)


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="python -m bench.gpu", description=__doc__.splitlines()[0])
    made.add_argument("--out", type=Path, help="folder of the results (default: bench/results/<device>)")
    made.add_argument("--limit", type=float, default=540.0, metavar="SECONDS", help="for everything (%(default)s)")
    made.add_argument("--steps", metavar="A,B", help="run these, and nothing else")
    made.add_argument("--resume", type=Path, metavar="SUMMARY", help="go on: run what is not ok in this summary.json")
    made.add_argument("--no-build", action="store_true", help="cmslap/_C.so and _CUDA.so were brought along")
    made.add_argument("--commit", help="where there is no .git: what the figures belong to")
    made.add_argument("--quick", action="store_true", help="fewer rounds, and little of torch.compile's max-autotune")
    made.add_argument("--rehearse", action="store_true", help="go through every path here, without a GPU, and check it")
    return made


def begin(args: argparse.Namespace) -> dict[str, Any]:
    """The summary to go on with. Raises MachineError."""
    found = facts()
    if args.commit is None and not (ROOT / ".git").exists():
        raise MachineError("there is no .git: say with --commit what is measured")
    known = {"steps": {}, "records": {}, "hopper": None, "bars": []}
    if args.resume:
        known |= json.loads(args.resume.read_text())
    return known | found | {"commit": args.commit}


def choose(args: argparse.Namespace, work: Path, done: Session) -> list[Step]:
    everything = {step.name: step for step in steps(work, args.quick)}
    if args.steps:
        named = args.steps.split(",")
        unknown = [name for name in named if name not in everything]
        if unknown:
            raise MachineError(f"--steps are of {', '.join(everything)}, not {unknown[0]!r}")
        return [step for name, step in everything.items() if name in named]
    left_out = ("build",) * args.no_build
    return [step for name, step in everything.items() if name not in left_out and not (args.resume and done.ok(name))]


def main(arguments: Sequence[str] | None = None) -> int:
    args = parser().parse_args(arguments)
    if args.rehearse:
        from bench.gpu import rehearsal  # not above: it imports this module

        return rehearsal.main()
    deadline = time.monotonic() + args.limit
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that the running step ends, too
    with tempfile.TemporaryDirectory(prefix="cmslap-gpu-") as folder:
        work = Path(folder)
        try:
            summary = begin(args)
            out = (args.out or results_folder()).resolve()
            out.mkdir(parents=True, exist_ok=True)
            session = Session(out, work, summary)
            chosen = choose(args, work, session)
        except MachineError as error:
            print(f"make gpu: {error}", file=sys.stderr)
            return 1
        if args.resume:
            session.unpack_cache(args.resume.parent)
        link_kernels()
        for step in chosen:
            session.run(step, deadline - time.monotonic())
            done = session.steps[step.name]
            print(f"{step.name}: {done['outcome']} ({done['seconds']:.0f} s)", flush=True)
            if step.name == "build" and not session.ok("build"):
                print((work / "build.log").read_text()[-3000:])
                return 1
        session.pack_cache()
    print(f"\n{report(summary)}\nresults in {out}")
    return int(not all(session.ok(step.name) for step in chosen))
