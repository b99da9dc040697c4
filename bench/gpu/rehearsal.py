"""Goes through the driver's paths without a GPU and checks what its summary says: ``python -m bench.gpu --rehearse``.

The driver runs as it would; each of its steps is replaced by a stand-in. In the first rehearsal all is well: trials and
measurements run in tiny sizes on the CPU, whose kernels play the part of the CUDA backend and plain PyTorch that of
Triton; the tests are collected and not run. In the second, what can go wrong does. The last trains, is stopped and goes
on.
"""

from __future__ import annotations

import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.gpu import driver
from bench.gpu.driver import ROOT
from bench.gpu.hopper import VARIANTS

FAULTY = "CMSLAP_REHEARSAL_FAULTY"  # in the environment of the second rehearsal
HANGING = 3600.0  # seconds
TRUE = {"descriptor": {"pitch": 8}}
AGREES = {"kernel": "conv", "size": [1, 8, 8], "error": 1e-3, "us": 1.0, "tflops": 1.0, "gbs": 1.0, "sm80_us": 2.0}


# What stands in for the driver's machine and steps -------------------------------------------------------------------


def drive(arguments: Sequence[str]) -> int:
    """The driver on a machine that seems to have a GPU."""
    driver.PYTHON = (sys.executable, "-m", "bench.gpu.rehearsal", "step")
    driver.facts = lambda: {"torch": "0", "device": "a rehearsal", "capability": [9, 0]}
    hanging = {"probe triton": 5.0, "hopper": 5.0} if FAULTY in os.environ else {}
    if FAULTY in os.environ:
        driver.OPERATIONS = driver.OPERATIONS[:3]  # more would show nothing else
    steps = driver.steps
    driver.steps = lambda *given: [  # a busy machine may take its time, and what hangs shall not
        driver.replace(step, limit=hanging.get(step.name, 10 * step.limit)) for step in steps(*given)
    ]
    return driver.main(arguments)


def step(arguments: Sequence[str]) -> int:
    """What ``python *arguments`` would do."""
    module, rest = (arguments[1], arguments[2:]) if arguments[0] == "-m" else (arguments[0], arguments[1:])
    stand_ins = {
        "setup.py": build,
        "bench.gpu.hopper": hopper,
        "bench.gpu.probe": probe,
        "bench": bench,
        "pytest": tests,
    }
    return stand_ins[module](rest, FAULTY in os.environ)


def build(arguments: Sequence[str], faulty: bool) -> int:
    print("built for", os.environ["TORCH_CUDA_ARCH_LIST"])
    return 0


def hopper(arguments: Sequence[str], faulty: bool) -> int:
    """Faulty: the first variant's values are no numbers, and the second hangs."""
    file = Path(arguments[arguments.index("--json") + 1])
    first, second, *_ = VARIANTS.values()
    file.write_text(json.dumps({first: [TRUE, AGREES | {"error": None if faulty else 1e-3}]}))
    if faulty:
        time.sleep(HANGING)
    file.write_text(json.dumps({first: [TRUE, AGREES], second: [TRUE, AGREES]}))
    return 0


def probe(arguments: Sequence[str], faulty: bool) -> int:
    """Faulty: the CUDA kernels of the device's own die, those for 8.0 are right; Triton's hang."""
    if faulty and arguments[0] == "triton":
        time.sleep(HANGING)
    if faulty and os.environ.get("CMSLAP_CUDA_KERNELS") != "sm80":
        os.abort()
    if faulty:
        return 0
    from bench.gpu import probe as trial

    played = {"cuda": "cpu", "triton": "reference"}[arguments[0]]
    trial.SETTING = trial.Setting(
        trial.torch.device("cpu"), trial.torch.float32, batch=1, side=12, channels=16, recursions=1
    )
    sys.argv = ["probe", played, "--cpu"]
    return trial.main()


def tests(arguments: Sequence[str], faulty: bool) -> int:
    if faulty:
        print("kernels:", os.environ.get("CMSLAP_CUDA_KERNELS", "its own"))
        print("== 1 failed, 2 passed in 0.1s ==")
        return 1
    return subprocess.run([sys.executable, "-m", "pytest", "--collect-only", "-q", *arguments]).returncode


def bench(arguments: Sequence[str], faulty: bool) -> int:
    from bench.speed import command

    tiny(faulty)
    shorter = ["--limit", "8"] if faulty else []
    return command.main([*arguments, "--rounds", "2", *shorter])


def tiny(faulty: bool) -> None:
    """The suites in sizes without meaning, on the CPU."""
    import torch

    from bench.speed import baselines, command, cpu, end_to_end, gpu, load, scaling, work
    from bench.speed.baselines import Baseline

    one, cpu_device = 1, torch.device("cpu")
    sizes = gpu.Sizes(one, 8, 2, (1, 2), (1, 2), 4, (8, 6), folder=1, recursions=1)
    triton = Baseline("cmslap triton", dies if faulty else baselines.plain)
    ours = [baselines.replace(baselines.backend("cpu"), name="cmslap cuda"), triton]
    baselines.ours = lambda device, operation=None: ours
    baselines.compiled = lambda mode="default": Baseline(
        "torch.compile" if mode == "default" else f"torch.compile {mode}",
        baselines.plain,
    )
    baselines.captured = list
    if faulty:
        gpu.EAGER_NCHW = Baseline("eager NCHW", hangs)
    gpu.cases = functools.partial(gpu.cases, sizes=sizes, device=cpu_device)
    gpu.DEVICE = scaling.DEVICE = cpu_device
    scaling.cases = lambda effort: {"8": next(iter(gpu.cases(effort).values()))}
    end_to_end.starters = lambda device, compiled: [Baseline("cmslap cuda", starts)]
    end_to_end.SMALLEST, end_to_end.LARGEST = 4, 6
    work.CACHES = 1
    load.others = lambda: 0.0
    command.measure_ceilings = lambda device, dtype: {
        "dtype": "bfloat16", "matmul_gflops": 1.0, "copy_gbs": 1.0, "triad_gbs": 1.0
    }  # fmt: skip
    cpu.DEVICE = cpu_device


def dies(work: object) -> object:
    """A baseline whose process ends in its second call."""
    calls = []
    return lambda: os._exit(1) if calls else calls.append(0)


def hangs(work: object) -> object:
    return lambda: time.sleep(HANGING)


def starts(work: object) -> object:
    return lambda: None


# The rehearsals ------------------------------------------------------------------------------------------------------


def started(*arguments: object, faulty: bool = False) -> subprocess.Popen:
    environment = os.environ | {FAULTY: "1"} if faulty else {k: v for k, v in os.environ.items() if k != FAULTY}
    command = [sys.executable, "-m", "bench.gpu.rehearsal", "drive", "--commit", "abc", *map(str, arguments)]
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)


def read(out: Path) -> dict[str, Any]:
    return json.loads((out / "summary.json").read_text())


def outcomes(out: Path) -> dict[str, str]:
    return {name: done["outcome"] for name, done in read(out)["steps"].items()}


def all_well(out: Path, *options: str) -> None:
    """Every step, and what comes back."""
    run = started("--out", out, "--limit", 3600, *options)
    said, _ = run.communicate()
    summary = read(out)
    assert run.returncode == 0, said
    assert all(outcome.startswith("ok") for outcome in outcomes(out).values()), outcomes(out)
    assert summary["hopper"] == "right"
    assert all(record["commit"] for record in summary["records"].values())
    if not options:
        assert all(bar["value"] is not None for bar in summary["bars"]), summary["bars"]
    row = next(iter(summary["records"].values()))["results"][0]
    assert row["failed"] == {}, row
    assert row["timings"]["cmslap cuda"]["backends"], row
    check_files(out)


def check_files(out: Path) -> None:
    files = [path for path in out.rglob("*") if path.is_file()]
    assert len(files) <= 4, files
    assert all(path.stat().st_size < 2**24 for path in files)
    with tarfile.open(out / "logs.tar.gz") as archive:
        assert archive.getnames()


def all_wrong(out: Path) -> None:
    """A wrong variant, hangs, deaths, failing tests; killed in the middle: what was done stands, the rest follows."""
    steps = "hopper,probe cuda,probe cuda sm80,probe triton,operations,tests cuda,tests memory"
    run = started("--out", out, "--steps", steps, "--quick", "--limit", 3600, faulty=True)
    deadline = time.monotonic() + 120
    while not ((out / "summary.json").exists() and "probe triton" in outcomes(out)):
        assert time.monotonic() < deadline, "no summary before the kill"
        assert run.poll() is None, "the driver ended before the kill"
        time.sleep(0.1)
    run.kill()  # as a machine's time limit does
    run.communicate()
    before = outcomes(out)
    assert before["hopper"] == "stopped after 5 s", before
    assert before["probe cuda"] == f"exit status {-signal.SIGABRT}", before
    assert before["probe cuda sm80"] == "ok", before
    assert before["probe triton"] == "stopped after 5 s", before
    assert "operations" not in before
    check_files(out)

    # Triton's backend would be left out; let it be tried, to see a contender's process die.
    summary = read(out)
    summary["steps"]["probe triton"]["outcome"] = "ok"
    (out / "summary.json").write_text(json.dumps(summary))
    run = started(
        "--out", out, "--resume", out / "summary.json", "--steps", "operations,tests cuda,tests memory", "--quick",
        "--limit", 3600, faulty=True,
    )  # fmt: skip
    said, _ = run.communicate()
    assert run.returncode == 1, said
    after = outcomes(out)
    assert after["probe cuda sm80"] == "ok", after
    assert after["tests cuda"] == "exit status 1", after
    summary = read(out)
    assert summary["steps"]["tests cuda"]["last_line"] == "1 failed, 2 passed in 0.1s", summary["steps"]
    assert summary["hopper"] == "wrong"
    first, second, third, *_ = summary["records"]["operations"]["results"]
    for result in (first, second, third):
        assert result["timings"].keys() == {"cmslap cuda", "eager"}, result
    assert "its process was ended" in first["failed"]["cmslap triton"], first
    assert "not ready within" in first["failed"]["eager NCHW"], first
    assert "its process was ended, start 2 of 2" in third["failed"]["eager NCHW"], third
    assert "its process was ended" in said, said  # the reason stands in the table
    check_files(out)


def out_of_time(out: Path) -> None:
    """Nothing is begun that can't end; a trial that failed leaves its backend out."""
    run = started("--out", out, "--limit", "1", "--steps", "probe cuda,compiled")
    run.communicate()
    assert run.returncode == 1
    assert all(outcome.startswith("not run: ") for outcome in outcomes(out).values()), outcomes(out)


def training(folder: Path) -> None:
    """Part of a run, stopped by its time limit, and the rest of it."""
    import numpy as np
    from PIL import Image

    images = folder / "train"
    images.mkdir()
    for index in range(2):
        Image.fromarray(np.random.default_rng().integers(256, size=(64, 64, 3), dtype=np.uint8)).save(
            images / f"{index}.png"
        )
    with tarfile.open(folder / "images.tar", "w") as archive:
        archive.add(images, "train")
    run = folder / "run"
    command = ["sh", "bench/gpu/train.sh", str(folder / "images.tar"), str(run)]
    options = [
        "tiny",
        "device=cpu",
        "batch=3",
        "patch=16",
        "model.recursions=1",
        "checkpoint_every=1000000",
        "schedule.warmup=1",
    ]
    options += ["validation.data=[]"]
    environment = os.environ | {"PYTHON": sys.executable}

    def train(seconds: int, steps: int) -> dict[str, Any]:
        subprocess.run([*command, str(seconds), *options, f"steps={steps}"], cwd=ROOT, env=environment, check=True)
        return json.loads((run / "record.json").read_text()) if (run / "last.pt").exists() else {"step": 0}

    stopped = {"step": 0}
    for seconds in (8, 30, 120):  # the first that suffices to start on a machine as busy as this
        if not stopped["step"]:
            shutil.rmtree(run, ignore_errors=True)
            stopped = train(seconds, 1_000_000)
    assert 0 < stopped["step"] < 1_000_000, stopped["step"]
    ended = train(300, stopped["step"] + 2)
    assert ended["step"] == stopped["step"] + 2, ended["step"]
    files = [path for path in run.iterdir() if path.is_file()]
    assert len(files) <= 8, files
    assert all(path.stat().st_size < 2**24 for path in files)


def main() -> int:
    start = time.monotonic()
    for rehearsal in (all_well, all_wrong, out_of_time, training):
        folder = Path(tempfile.mkdtemp(prefix="cmslap-rehearsal-"))
        try:
            rehearsal(folder)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        print(f"{rehearsal.__name__}: as it should be, after {time.monotonic() - start:.0f} s", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit({"drive": drive, "step": step}[sys.argv[1]](sys.argv[2:]))
