"""The GPU suite on the CPU, in sizes without meaning: cases, their arithmetic and their errors."""

import json

import pytest
import torch

from cmslap import cli
from cmslap.benchmark import gpu
from cmslap.benchmark.timing import Case, TimeLimitError, ready

TINY = gpu.Sizes(torch.device("cpu"), 16, 1024, batch=1, side=4, low=2, recursions=1, picture=4)


@pytest.fixture
def no_gpu_kernels(monkeypatch):
    monkeypatch.setattr(gpu, "gpu_backends", lambda: ["cuda"])
    monkeypatch.setattr(gpu, "MODES", ())


@pytest.mark.parametrize("name", gpu.CASES)
def test_every_case_runs(name, no_gpu_kernels):
    """On the CPU only eager PyTorch can: what fails is named with its reason, and the rest goes on."""
    (result,) = gpu.results(1, None, name, quick=False, sizes=TINY)
    json.dumps(result)
    assert "eager" in result["timings"]
    assert all(row["share_of_floor"] > 0 and row["peak_bytes"] is None for row in result["timings"].values())
    assert "BackendError: backend cuda can't run this" in result["failed"]["cmslap cuda"]
    assert all(name.startswith("cmslap") for name in result["failed"])
    assert result["gflop"] > 0 < result["gbyte"]


def test_paper_setting():
    """A step over three levels of 40 convolutions and one upsampling, three passes: 12.5 TFLOP."""
    sizes = gpu.Sizes(torch.device("cpu"))
    gflop, gbyte = gpu._network_work(sizes.recursions, sizes.batch * sizes.low**2, 3)
    pixels = 16 * (64**2 + 128**2 + 256**2)
    assert gflop * 3e9 == pytest.approx(3 * 41 * 2 * 9 * 64 * 64 * pixels)
    assert gbyte * 1e9 == pytest.approx((80 + 5) * 128 * pixels)


@pytest.mark.parametrize(("gflop", "gbyte", "floor"), [(1600.0, 4.0, 2e-3), (800.0, 20.0, 5e-3)])
def test_floor_is_the_larger_of_arithmetic_and_memory(gflop, gbyte, floor):
    case = gpu.GpuCase("case", "1", gflop, {}, gbyte=gbyte)
    assert case.floor({"matmul_tflops": 800.0, "copy_gbs": 4000.0}) == pytest.approx(floor)


def test_what_does_not_return_in_time_is_left_out():
    def endless():
        try:
            while True:
                pass
        except Exception:  # what a compiler does about a failed attempt
            endless()

    working, failed = ready({"quick": lambda: None, "endless": endless, "late": lambda: None}, limit=0.2)
    assert "quick" in working
    assert failed["endless"] == "not ready within the 0 s of this case"
    assert not issubclass(TimeLimitError, Exception)


def test_failures_stand_in_the_record(monkeypatch, tmp_path, capsys):
    def broken():
        raise RuntimeError("raised:\nillegal address")

    case = Case("sums", "3", 1.0, {"cmslap": broken, "eager": lambda: sum(range(3))})
    monkeypatch.setattr("cmslap.benchmark.cpu.CASES", {"sums": lambda: case})
    assert cli.main(["bench", "--case", "sums", "--json", str(tmp_path / "bench.json")]) == 1
    (result,) = json.loads((tmp_path / "bench.json").read_text())["results"]
    assert result["failed"] == {"cmslap": "RuntimeError: raised: illegal address"}
    assert list(result["timings"]) == ["eager"]
    assert "failed: RuntimeError: raised: illegal address" in capsys.readouterr().out


def test_unknown_case(capsys):
    assert cli.main(["bench", "--suite", "gpu", "--case", "x"]) == 1
    assert "--case must be one of conv-forward, " in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA GPU")
def test_without_a_gpu(capsys):
    assert cli.main(["bench", "--suite", "gpu"]) == 1
    assert capsys.readouterr().err.count("\n") == 1
