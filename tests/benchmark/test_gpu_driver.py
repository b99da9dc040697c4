"""``make gpu`` without a GPU: what it says, how its steps end, what it leaves behind."""

import json
import time

import pytest
import torch

from bench import gpu as driver
from cmslap.benchmark import gpu

TIMING = {"median": 1e-3, "low": 1e-3, "high": 1e-3, "best": 1e-3, "speedup": 1.0, "share_of_floor": 0.8}


def record(case):
    result = {
        "name": case, "size": "1", "gflop": 1.0, "gbyte": 1.0, "absent": {}, "failed": {},
        "timings": {"cmslap triton": TIMING | {"peak_bytes": 2**30}},
        "ceilings": {"matmul_tflops": 700.0, "copy_gbs": 4000.0},
    }  # fmt: skip
    return json.dumps({"results": [result]})


@pytest.fixture
def fake(monkeypatch, tmp_path):
    """Steps that end as ``outcomes`` says, "ok" if it says nothing; the cases leave their files if they do."""
    outcomes = {}

    def execute(name, module, log, limit):
        outcome = outcomes.get(name, "ok")
        log.write_text("===== 3 passed =====\n")
        if name in driver.CASES and outcome == "ok":
            (tmp_path / f"{name}.json").write_text(record(name))
        return driver.Step(name, outcome, 1.0)

    monkeypatch.setattr(driver, "missing", lambda: None)
    monkeypatch.setattr(driver, "execute", execute)
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


def test_knows_the_cases_of_the_suite():
    assert list(driver.CASES) == list(gpu.CASES)


def test_everything_fine(fake, tmp_path, capsys):
    status, outcomes = run(tmp_path)
    assert status == 0
    assert list(outcomes) == ["build", "tests", *driver.CASES]
    out = capsys.readouterr().out
    assert "80% of the floor  1.00 GiB" in out
    assert "ceilings: 700 TFLOP/s matmul, 4000 GB/s copy" in out
    assert "tests: 3 passed" in out


def test_failed_tests_do_not_stop_the_measuring(fake, tmp_path, capsys):
    fake.update({"tests": "exit status 1, see tests.log", "training": "stopped after 90 s, see training.log"})
    (tmp_path / "training.json").write_text(record("an earlier run"))
    status, outcomes = run(tmp_path)
    assert status == 1
    assert outcomes["inference"] == "ok"
    out = capsys.readouterr().out
    assert "stopped after 90 s, see training.log" in out
    assert "an earlier run" not in out


def test_nothing_follows_a_failed_build(fake, tmp_path):
    fake["build"] = "exit status 1, see build.log"
    assert run(tmp_path) == (1, {"build": "exit status 1, see build.log"})


def test_out_of_time(fake, tmp_path):
    status, outcomes = run(tmp_path, "--minutes", "0.1")
    assert status == 1
    assert {outcomes[case] for case in driver.CASES} == {"not run: out of time"}


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
