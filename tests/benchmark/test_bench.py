import itertools
import json
import warnings

import pytest
import torch

from cmslap import cli
from cmslap.benchmark import cpu, peers
from cmslap.benchmark.timing import Case, take_turns
from cmslap.models import CMSLapSRN


def test_implementations_take_turns():
    """A disturbance that doubles a whole round's times changes neither median nor speed-up."""
    calls, now = [], [0.0]
    factors = itertools.chain([1, 1], *([f, f] for f in (1, 1, 2, 1, 1)))  # warm-up, then five rounds

    def implementation(name, seconds):
        def call():
            calls.append(name)
            now[0] += seconds * next(factors)

        return call

    ours, theirs = implementation("ours", 2.0), implementation("theirs", 3.0)
    timings = take_turns({"ours": ours, "theirs": theirs}, 5, "case", clock=lambda: now[0])
    assert calls == ["ours", "theirs"] * 6
    assert (timings["ours"].median, timings["theirs"].median, timings["ours"].best) == (2.0, 3.0, 2.0)
    assert (timings["ours"].speedup, timings["theirs"].speedup) == (1.0, 1.5)


def test_command_writes_figures_and_their_origin(monkeypatch, tmp_path, capsys):
    case = Case(
        "sums", "1000", 1e-6, {"ours": lambda: sum(range(1000)), "theirs": lambda: sum(range(9000))}, {"x": "no x"}
    )
    monkeypatch.setattr(cpu, "CASES", {"sums": lambda: case})
    assert cli.main(["bench", "--rounds", "2", "--json", str(tmp_path / "bench.json")]) == 0
    record = json.loads((tmp_path / "bench.json").read_text())
    assert record["suite"] == "cpu"
    assert record["device"]
    (result,) = record["results"]
    assert set(result["timings"]) == {"ours", "theirs"}
    assert result["absent"] == {"x": "no x"}
    assert "x       absent: no x" in capsys.readouterr().out


def test_a_peer_that_is_not_installed_is_absent():
    def missing(module, x):
        raise ImportError("No module named 'peer'")

    ready, absent = peers.build({"peer": missing, "there": lambda module, x: module}, None, None)
    assert list(ready) == ["there"]
    assert absent == {"peer": "No module named 'peer'"}


@pytest.mark.parametrize(("name", "package"), [("ONNX Runtime", "onnxruntime"), ("OpenVINO", "openvino")])
def test_exports_do_not_warn_of_sizes_that_become_constants(name, package):
    pytest.importorskip(package)
    model, y = CMSLapSRN(scale=2, depth=1, recursions=1, channels=2, shared_conv=1), torch.rand(1, 1, 8, 8)
    with warnings.catch_warnings():
        warnings.simplefilter("error", torch.jit.TracerWarning)
        peer = peers.FLOAT32[name](model.requires_grad_(False), y)
    assert peer()


@pytest.mark.parametrize("rounds", ["0", "x"])
def test_wrong_rounds(rounds, capsys):
    with pytest.raises(SystemExit) as error:
        cli.main(["bench", "--rounds", rounds])
    assert error.value.code == 2
    assert "--rounds" in capsys.readouterr().err
