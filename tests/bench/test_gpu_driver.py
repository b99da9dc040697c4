"""``make gpu`` without a GPU: what it says, how its steps end, what it leaves behind."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from bench.gpu import bars, driver, probe, rehearsal
from bench.gpu.driver import Session, Step
from bench.gpu.hopper import VARIANTS
from bench.speed import baselines, gpu, scaling
from bench.speed.work import Setting
from cmslap.ops import extension
from cmslap.ops.backend import Backend
from cmslap.ops.operation import OPERATIONS

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture
def session(tmp_path):
    """Of a Hopper device on which nothing has run; in-process, with steps that end as ``outcomes`` says."""
    out, work = tmp_path / "out", tmp_path / "work"
    out.mkdir()
    work.mkdir()
    summary = {"steps": {}, "records": {}, "hopper": None, "bars": [], "capability": [9, 0], "commit": "abc"}
    return Session(out, work, summary)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA GPU")
def test_without_a_gpu(tmp_path, capsys):
    assert driver.main(["--out", str(tmp_path / "out")]) == 1
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert "GPU" in err
    assert not (tmp_path / "out").exists()


def test_measures_every_case_of_the_suites():
    chosen = (*driver.NETWORK, *driver.OPERATIONS, *driver.END_TO_END, *driver.COMPILED)
    assert sorted(chosen) == sorted(gpu.cases("usual"))
    assert scaling.SIDES["cuda"]


def test_only_backends_with_a_kernel_are_measured(monkeypatch):
    """One without would make its step fail on every machine."""
    built = Backend("cuda", forward={"conv2d_lrelu": None}), Backend("triton", forward=dict.fromkeys(OPERATIONS))
    monkeypatch.setattr(baselines, "BACKENDS", built)
    names = {case: [each.name for each in found.baselines] for case, found in gpu.cases("usual").items()}
    assert names["dense_recursion+backward"] == ["cmslap triton", "eager", "eager NCHW"]
    assert names["conv2d_lrelu+backward"][:2] == ["cmslap cuda", "cmslap triton"]


@pytest.mark.parametrize(("built_with", "verdict"), [(None, "wrong"), ("0", "wrong"), ("3", "right")])
def test_the_variant_that_is_built_is_judged(session, monkeypatch, built_with, verdict):
    """Or the fallback's library would never be measured."""
    monkeypatch.delenv("CMSLAP_SM90_VARIANT", raising=False)
    if built_with:
        monkeypatch.setenv("CMSLAP_SM90_VARIANT", built_with)
    rows = {VARIANTS[0]: [{"kernel": "conv", "error": 0.5}], VARIANTS[3]: [{"kernel": "conv", "error": 1e-3}]}
    (session.work / "hopper.json").write_text(json.dumps(rows))
    session = Session(session.out, session.work, session.summary)
    session._take_in("hopper")
    assert session.summary["hopper"] == verdict


def test_compiled_kernels_come_back_to_their_place(session, monkeypatch, tmp_path):
    """What Triton keeps names paths; sources and listings stay behind."""
    cache = tmp_path / "cache" / "cmslap-triton"
    monkeypatch.setattr(driver, "CACHE", cache)
    (cache / "key").mkdir(parents=True)
    for name in ("kernel.cubin", "kernel.json", "kernel.ttir"):
        (cache / "key" / name).write_text(name)
    session.pack_cache()
    shutil.rmtree(cache)
    session.unpack_cache(session.out)
    assert sorted(path.name for path in (cache / "key").iterdir()) == ["kernel.cubin", "kernel.json"]


def test_order_and_limits(tmp_path):
    """Trials before measurements, block and training first, torch.compile last; no step outlasts a call."""
    steps = driver.steps(tmp_path, quick=False)
    assert [step.name for step in steps] == [
        "build", "hopper", "probe cuda", "probe cuda sm80", "probe triton", "network", "operations", "tests cuda",
        "tests triton", "tests sm80", "tests memory", "end to end", "scaling", "compiled",
    ]  # fmt: skip
    assert all(step.least < step.limit < 480 for step in steps)


@pytest.mark.parametrize(
    ("outcomes", "hopper", "kernels", "without"),
    [
        ({}, None, None, []),
        ({"probe cuda": "ok", "probe triton": "ok"}, "right", None, []),
        ({"probe cuda": "ok", "probe triton": "exit status 1"}, "right", None, ["triton"]),
        ({"probe cuda": "exit status 1", "probe cuda sm80": "ok"}, "right", "sm80", []),
        ({"probe cuda": "ok", "probe cuda sm80": "ok"}, "wrong", "sm80", []),
        ({"probe cuda": "stopped after 60 s", "probe cuda sm80": "exit status -6"}, None, "sm80", ["cuda"]),
        ({"probe cuda": "not run: 3 s were left"}, None, None, []),
    ],
)
def test_what_follows_from_the_trials(session, outcomes, hopper, kernels, without):
    session.steps.update({name: {"outcome": outcome} for name, outcome in outcomes.items()})
    session.summary["hopper"] = hopper
    environment = session.environment(Step("network", (), 9, 1))
    assert environment.get("CMSLAP_CUDA_KERNELS") == kernels
    assert environment["CMSLAP_COMMIT"] == "abc"
    assert session.without == without


def test_other_devices_have_no_kernels_of_their_own(session):
    session.summary["capability"] = [8, 0]
    for name in ("hopper", "probe cuda sm80", "tests sm80"):
        session.run(Step(name, ("-c", "1 / 0"), 9, 1), left=100)
        assert session.steps[name]["outcome"].startswith("ok: not needed")
    session.steps["probe cuda"] = {"outcome": "exit status 1"}
    assert session.without == ["cuda"]


@pytest.mark.parametrize(
    ("rows", "right"),
    [
        ([{"descriptor": {}}, {"kernel": "conv", "error": 1e-3}], True),
        ([{"kernel": "conv", "error": 0.5}], False),
        ([{"kernel": "conv", "error": float("nan")}], False),
        ([{"kernel": "conv", "error": None}], False),
        ([{"kernel": "conv", "error": 1e-3}, {"failed": -11}], False),
        ([], False),
    ],
)
def test_a_variant_is_right_if_all_its_rows_are(rows, right):
    assert driver._right(rows) == right


@pytest.mark.parametrize(
    ("statement", "outcome"),
    [
        ("print(7)", "ok"),
        ("1 / 0", "exit status 1"),
        ("import os; os.abort()", "exit status -6"),
        ("import time; time.sleep(60)", "stopped after 2 s"),
    ],
)
def test_steps(statement, outcome, session):
    start = time.monotonic()
    session.run(Step("step", ("-c", statement), 2, 0), left=60)
    assert session.steps["step"]["outcome"] == outcome
    assert time.monotonic() - start < 30
    assert json.loads((session.out / "summary.json").read_text())["steps"]["step"]["outcome"] == outcome
    assert sorted(path.name for path in session.out.iterdir()) == ["logs.tar.gz", "summary.json"]


def test_a_step_that_is_stopped_ends_with_all_that_it_started(session, tmp_path):
    child = "import os, time; open({!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    child = child.format(str(tmp_path / "pid"))
    statement = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    session.run(Step("step", ("-c", statement), 3, 0), left=60)
    deadline = time.monotonic() + 10
    while (Path("/proc") / (tmp_path / "pid").read_text() / "exe").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.fixture
def machine(monkeypatch):
    """Seems to have a Hopper GPU; runs one step, the statement it is given."""
    monkeypatch.setattr(driver, "facts", lambda: {"torch": "0", "device": "x", "capability": [9, 0]})

    def run(statement, *options):
        monkeypatch.setattr(driver, "steps", lambda *_: [Step("probe triton", ("-c", statement), 60, 0)])
        return driver.main([*map(str, options), "--commit", "abc"])

    return run


def test_tritons_compiled_kernels_are_brought_home_and_along(machine, monkeypatch, tmp_path):
    compiled = "import os, pathlib; file = pathlib.Path(os.environ['TRITON_CACHE_DIR'], 'key', 'conv.cubin'); "
    write, read = compiled + "file.parent.mkdir(parents=True); file.write_text('code')", compiled + "file.read_text()"
    monkeypatch.setattr(driver, "CACHE", tmp_path / "cmslap-triton")
    assert machine(read, "--out", tmp_path / "none") == 1
    assert machine(write, "--out", tmp_path / "first") == 0
    shutil.rmtree(driver.CACHE)  # another machine
    again = "--resume", tmp_path / "first" / "summary.json", "--steps", "probe triton"
    assert machine(read, "--out", tmp_path / "second", *again) == 0
    monkeypatch.setattr(driver, "LARGEST", 10)  # bytes
    assert machine(read, "--out", tmp_path / "second", *again) == 0
    assert sorted(path.name for path in (tmp_path / "second").iterdir()) == ["logs.tar.gz", "summary.json"]


def test_an_installation_is_not_needed(monkeypatch, tmp_path):
    """In a checkout alone the kernels are where an installation puts them."""
    for package in ("cmslap", "kernels"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("*.so", "kernels", "weights"))
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" -S "$@"\n')  # which sees no installation
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    monkeypatch.setattr(driver, "ROOT", tmp_path)
    driver.link_kernels()
    driver.link_kernels()
    ask = [python, "-c", "import cmslap.kernels; print(cmslap.kernels.__file__)"]
    found = subprocess.run(ask, cwd=tmp_path, capture_output=True, text=True).stdout
    assert found.strip() == str(tmp_path / "cmslap" / "kernels" / "__init__.py")


def test_unknown_steps(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(driver, "facts", lambda: {"torch": "0", "device": "x", "capability": [9, 0]})
    assert driver.main(["--out", str(tmp_path), "--commit", "abc", "--steps", "probe cuda,x"]) == 1
    assert "not 'x'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("median", "verdict"),
    [(0.001, "0% of the matrix product (bar 60%, goal 80%): short of the bar"), (1e-7, "goal reached")],
)
def test_bars(record, median, verdict):
    result = record["results"][0] | {"case": "conv2d_lrelu", "gflop": 1e-3}
    result["timings"] = {"cmslap cuda": {"median": 2 * median}, "cmslap triton": {"median": median}}
    first, *others = bars.answered({"operations": record | {"results": [result]}})
    assert verdict in first.text
    assert all("not measured" in bar.text for bar in others)


def test_less_memory_is_better(record):
    timings = {"cmslap cuda": {"median": 1.0, "peak_bytes": 30}, "eager": {"median": 2.5, "peak_bytes": 100}}
    result = record["results"][0] | {"case": "recompute-training", "timings": timings}
    *_, last = bars.answered({"network": record | {"results": [result]}})
    assert last.text.endswith("0.30x of eager's memory (bar 0.55x, goal 0.20x): bar reached")


def test_rehearsal_of_what_can_go_wrong(tmp_path):
    rehearsal.all_wrong(tmp_path)


def test_rehearsal_of_training(tmp_path):
    rehearsal.training(tmp_path)


@pytest.mark.skipif(extension.MISSING is not None, reason=str(extension.MISSING))
def test_trial_finds_the_cpu_kernels_right():
    outcomes = probe.probe("cpu", Setting(side=10, channels=8, recursions=2))
    assert len(outcomes) == 7
    assert all(outcome.error < 1e-4 for outcome in outcomes)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA GPU")
def test_trial_of_what_is_not_there():
    trial = subprocess.run(
        [sys.executable, "-m", "bench.gpu.probe", "cuda", "--cpu"], cwd=ROOT, capture_output=True, text=True
    )
    assert trial.returncode == 1
    assert trial.stdout.count("backend cuda can't run this") == 6


def test_the_commit_is_given_where_there_is_no_checkout(monkeypatch, tmp_path):
    from cmslap import provenance

    monkeypatch.setattr(provenance.cmslap, "__file__", str(tmp_path / "cmslap" / "__init__.py"))
    assert provenance.provenance()["commit"] == os.environ.get("CMSLAP_COMMIT")
    monkeypatch.setenv("CMSLAP_COMMIT", "abc")
    assert provenance.provenance()["commit"] == "abc"


def test_the_rivals_of_the_rehearsal_run():
    """In a process of its own, as the rehearsal replaces those of the suites."""
    script = """
from bench.gpu import rehearsal
from bench.speed import baselines
from bench.speed.work import Setting, operation

rehearsal.tiny(faulty=False)
work = operation("conv2d_lrelu", False, Setting(side=4, channels=4))
for baseline in (*baselines.ours(None), baselines.compiled(), baselines.EAGER_NCHW):
    baseline.prepare(work)()
"""
    subprocess.run([sys.executable, "-c", script], check=True, cwd=ROOT)
