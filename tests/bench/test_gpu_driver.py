"""``make gpu`` without a GPU: what it says, how its steps end, what it leaves behind."""

import copy
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from bench.gpu import driver, probe
from bench.speed import gpu, scaling
from bench.speed.work import Setting
from cmslap.ops import extension

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture
def fake(monkeypatch, tmp_path, record):
    """Steps that end as ``outcomes`` says, "ok" if it says nothing; measurements leave their files then."""
    outcomes = {}

    def execute(name, module, log, limit):
        execute.commands.append(module)
        outcome = outcomes.get(name, "ok")
        failed = {}
        if isinstance(outcome, dict):  # of the implementations, if they are not left out
            failed = {who: why for who, why in outcome.items() if who not in module}
            outcome = "exit status 1, see log" if failed else "ok"
        log.write_text("===== 3 passed =====\n")
        if name in driver.MEASUREMENTS and (failed or outcome == "ok"):
            left = copy.deepcopy(record)
            left["results"][0] |= {"name": name, "failed": failed}
            (tmp_path / f"{name}.json").write_text(json.dumps(left))
        return driver.Step(name, outcome, 1.0)

    execute.commands = []
    outcomes["commands"] = execute.commands
    monkeypatch.setattr(driver, "missing", lambda: None)
    monkeypatch.setattr(driver, "execute", execute)
    monkeypatch.setattr(driver, "_built_backends", lambda: ["cuda", "triton"])
    return outcomes


def run(tmp_path, *options):
    status = driver.main(["--out", str(tmp_path), *options])
    return status, {step["name"]: step["outcome"] for step in json.loads((tmp_path / "run.json").read_text())}


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA GPU")
def test_without_a_gpu(tmp_path, capsys):
    assert driver.main(["--out", str(tmp_path / "out")]) == 1
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert "GPU" in err
    assert not (tmp_path / "out").exists()


def test_measures_every_case_of_the_suites():
    cases = [case for step in driver.MEASUREMENTS.values() if step.suite == "gpu" for case in step.cases]
    assert sorted(cases) == sorted(gpu.cases("usual"))
    assert driver.MEASUREMENTS["scaling"].cases == tuple(map(str, scaling.SIDES["cuda"]))


def test_everything_fine(fake, tmp_path, capsys):
    status, outcomes = run(tmp_path)
    assert status == 0
    assert list(outcomes) == ["build", "tests", "probe cuda", "probe triton", *driver.MEASUREMENTS, "plots"]
    out = capsys.readouterr().out
    assert "training, 1×1×8×8: cmslap 10.0 ms (50% of limit), which is 2.00x eager" in out
    assert "Ceilings measured: 200 GFLOP/s" in out
    assert "tests: 3 passed" in out


def test_quick_mode_leaves_max_autotune_out(fake, tmp_path):
    run(tmp_path, "--quick")
    commands = [command for command in fake["commands"] if command[0] == "bench"]
    assert commands
    assert all("--quick" in command for command in commands)


def test_failed_tests_do_not_stop_the_measuring(fake, tmp_path, capsys, record):
    fake.update({"tests": "exit status 1, see tests.log", "training": "stopped after 90 s, see training.log"})
    record["results"][0]["name"] = "an earlier run"
    (tmp_path / "training.json").write_text(json.dumps(record))
    status, outcomes = run(tmp_path)
    assert status == 1
    assert outcomes["forward"] == "ok"
    out = capsys.readouterr().out
    assert "stopped after 90 s, see training.log" in out
    assert "an earlier run" not in out


def test_a_backend_that_fails_its_trial_is_not_measured(fake, tmp_path):
    fake["probe cuda"] = "stopped after 60 s, see probe-cuda.log"
    status, _ = run(tmp_path)
    assert status == 1
    for command in fake["commands"]:
        assert ("cmslap cuda" in command) == (command[0] == "bench")
        assert "cmslap triton" not in command


def test_a_backend_that_breaks_the_device_is_left_out_the_next_time(fake, tmp_path):
    fake["block"] = {
        "cmslap cuda": "AcceleratorError: CUDA error: an illegal memory access was encountered",
        "cmslap triton": "AcceleratorError: CUDA error: an illegal memory access was encountered",
    }
    _, outcomes = run(tmp_path)
    assert outcomes["block"] == "cuda broke the device; without: triton broke the device; without: ok"
    assert outcomes["training"] == "ok"


def test_nothing_follows_a_failed_build(fake, tmp_path):
    fake["build"] = "exit status 1, see build.log"
    assert run(tmp_path) == (1, {"build": "exit status 1, see build.log"})


def test_out_of_time(fake, tmp_path):
    status, outcomes = run(tmp_path, "--minutes", "0.1")
    assert status == 1
    assert {outcomes[name] for name in driver.MEASUREMENTS} == {"not run: out of time"}


def test_what_is_not_installed_is_named(fake, tmp_path, monkeypatch):
    monkeypatch.setattr(
        driver, "_absent", lambda modules: [name for name in modules if name in ("scipy", "matplotlib")]
    )
    status, outcomes = run(tmp_path)
    assert status == 1
    assert outcomes["tests"] == "not run: no module scipy"
    assert outcomes["plots"] == "ok: none, as matplotlib is not installed"


@pytest.mark.parametrize(
    ("statement", "outcome"),
    [
        ("print(7)", "ok"),
        ("1 / 0", "exit status 1, see log"),
        ("import time; time.sleep(60)", "stopped after 2 s, see log"),
    ],
)
def test_steps(statement, outcome, tmp_path):
    start = time.monotonic()
    step = driver.execute("step", ("timeit", "-n1", "-r1", statement), tmp_path / "log", limit=2)
    assert step.outcome == outcome
    assert time.monotonic() - start < 30
    assert (outcome != "ok") or "7" in (tmp_path / "log").read_text()


@pytest.mark.skipif(extension.MISSING is not None, reason=str(extension.MISSING))
def test_trial_finds_the_cpu_kernels_right():
    outcomes = probe.probe("cpu", Setting(side=10, channels=8, recursions=2))
    assert len(outcomes) == 5
    assert all(outcome.error < 1e-4 for outcome in outcomes)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA GPU")
def test_trial_of_what_is_not_there():
    trial = subprocess.run(
        [sys.executable, "-m", "bench.gpu.probe", "cuda", "--cpu"], cwd=ROOT, capture_output=True, text=True
    )
    assert trial.returncode == 1
    assert trial.stdout.count("backend cuda can't run this") == 5
