import json
import subprocess

import pytest
import torch
from small_suites import CEILINGS

from bench.speed import baselines, command, cpu, load, plots, table
from bench.speed.baselines import Baseline
from bench.speed.suite import Case
from bench.speed.work import Setting, Work


def sums(setting):
    return Work("sums", "1000", lambda n: sum(range(n)), [(1000,)], lambda f: lambda: f(1000), 1e-6, 1e-6)


def broken(work):
    raise RuntimeError("raised:\nillegal address")


def missing(work):
    raise ImportError("No module named 'x'")


@pytest.fixture
def case(monkeypatch):
    """A suite of one case whose baselines can be set; the ceilings are not measured."""
    everyone = [Baseline("cmslap", lambda work: work.drive(work.function)), baselines.EAGER, Baseline("x", missing)]
    monkeypatch.setattr(cpu, "cases", lambda effort: {"sums": Case(sums, Setting(), everyone)})
    monkeypatch.setattr(command, "measure_ceilings", lambda device, dtype: CEILINGS)
    monkeypatch.setattr(load, "others", lambda: 0.0)
    return everyone


def test_writes_figures_and_their_origin(case, tmp_path, capsys):
    assert command.main(["--rounds", "2", "--json", str(tmp_path / "bench.json")]) == 0
    record = json.loads((tmp_path / "bench.json").read_text())
    assert (record["suite"], record["effort"], record["on"]) == ("cpu", "usual", "cpu")
    assert record["device"]
    assert record["ceilings"]["matmul_gflops"] > 0
    (result,) = record["results"]
    assert list(result["timings"]) == ["cmslap", "eager"]
    assert result["absent"] == {"x": "No module named 'x'"}
    out = capsys.readouterr().out
    assert "absent: No module named 'x'" in out
    for explained in ("time ", "cmslap is ", "of limit", "memory ", "Ceilings measured", '"eager" is plain PyTorch'):
        assert explained in out


def test_draws(case, tmp_path):
    pytest.importorskip("matplotlib")
    assert command.main(["--rounds", "1", "--plot", str(tmp_path / "bars.png")]) == 0
    assert (tmp_path / "bars.png").read_bytes().startswith(b"\x89PNG")


def test_a_plot_without_matplotlib_fails_before_the_work(case, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(plots.importlib.util, "find_spec", lambda name: None)
    assert command.main(["--plot", str(tmp_path / "bars.png")]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert "pip install cmslap[plot]" in err


def test_failures_stand_in_the_record(case, tmp_path, capsys):
    case[0] = Baseline("cmslap", broken)
    assert command.main(["--case", "sums", "--rounds", "1", "--json", str(tmp_path / "bench.json")]) == 1
    (result,) = json.loads((tmp_path / "bench.json").read_text())["results"]
    assert result["failed"] == {"cmslap": "RuntimeError: raised: illegal address"}
    assert list(result["timings"]) == ["eager"]
    assert "failed: RuntimeError: raised: illegal address" in capsys.readouterr().out


def test_a_failing_peer_is_no_failure_of_ours(case):
    case[1] = Baseline("eager", broken)
    assert command.main(["--rounds", "1"]) == 0


def test_unknown_case(capsys):
    assert command.main(["--case", "conv2d_lrelu", "--case", "x"]) == 1
    assert "--case must be one of forward, " in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA GPU")
def test_without_a_gpu(capsys):
    assert command.main(["--suite", "gpu"]) == 1
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("rounds", ["0", "x"])
def test_wrong_rounds(rounds, capsys):
    with pytest.raises(SystemExit) as error:
        command.main(["--rounds", rounds])
    assert error.value.code == 2
    assert "--rounds" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(12.345, "12.3 s"), (0.9996, "1000 ms"), (0.00999, "9.99 ms"), (0.0999, "99.9 ms"), (3e-6, "3.00 µs")],
)
def test_times_have_three_digits(seconds, text):
    assert table.seconds_text(seconds) == text


@pytest.mark.parametrize(("others", "noisy"), [(0.5, True), (0.01, False), (None, False)])
def test_a_busy_machine_is_said_to_be_one(record, others, noisy):
    assert ("50% of the processors busy" in table.table(record["results"][0] | {"others": others})) == noisy


def test_others_are_those_that_run_while_this_process_waits():
    share = load.others(0.1)
    assert share is None or 0 <= share <= 1


def test_a_machine_is_kept_busy_until_the_end(monkeypatch):
    started, popen = [], subprocess.Popen
    monkeypatch.setattr(load.subprocess, "Popen", lambda *args: started.append(popen(*args)) or started[-1])
    with load.busy(2):
        assert [process.poll() for process in started] == [None, None]
    assert all(process.poll() is not None for process in started)


def test_one_line_a_case(record):
    conv, folder = map(table.brief, record["results"])
    assert conv == "conv forward, 1×1×8×8: cmslap 10.0 ms (50% of limit), which is 2.00x eager"
    assert folder.endswith("which is 0.50x eager; torch.compile failed: out of memory")
