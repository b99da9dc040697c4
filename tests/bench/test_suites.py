"""Both suites on the CPU, in sizes without meaning: every case runs, and what comes out can be read."""

import json
import sys
from dataclasses import replace

import pytest
import torch
from small_suites import CEILINGS, CPU_SIZES, GPU_SIZES, ONCE, uncompiled

from bench.speed import baselines, cpu, end_to_end, gpu, scaling, table
from bench.speed.baselines import Baseline
from bench.speed.ceilings import floor, measure_ceilings
from bench.speed.suite import Case, measure_all
from bench.speed.work import Setting, conv_gradient, operation
from cmslap.ops import dispatch, extension

CPU_CASES = cpu.cases("full", CPU_SIZES)
GPU_CASES = gpu.cases("usual", GPU_SIZES, torch.device("cpu"))
SLOW = ("first-result", "avx2-forward")  # start processes: see below

needs_kernels = pytest.mark.skipif(extension.MISSING is not None, reason=str(extension.MISSING))


def measured(case, **changes):
    (result,) = measure_all({"case": replace(case, **changes)}, ONCE, CEILINGS)
    return result


@needs_kernels
@pytest.mark.parametrize("name", [name for name in CPU_CASES if name not in SLOW])
def test_cpu_cases(name, small):
    case = CPU_CASES[name]
    result = measured(case, baselines=uncompiled(case), memory=False)
    assert result["failed"] == {}
    assert result["baseline"].startswith("cmslap")
    assert set(result["timings"]) | set(result["absent"]) == {baseline.name for baseline in uncompiled(case)}
    json.dumps(result)


@pytest.mark.parametrize("name", [name for name in GPU_CASES if name not in SLOW])
def test_gpu_cases(name, small):
    """Here only plain PyTorch can: what fails is named with its reason, and the rest goes on."""
    case = GPU_CASES[name]
    broken = Baseline("cmslap cuda", baselines.backend("cuda").prepare)
    result = measured(case, baselines=[broken, baselines.EAGER], memory=False, apart=False)
    if result["name"] not in ("cmslap upscale FOLDER, 4x",):
        assert "backend cuda can't run this" in result["failed"]["cmslap cuda"]
    assert set(result["timings"]) == {"eager"}
    assert result["baseline"] == "eager"
    assert "cmslap has no time" in table.table(result)


@needs_kernels
def test_rows_say_which_backend_ran_what(small, monkeypatch):
    """A preferred backend that can't run one operation of a network leaves that one to another."""
    without = {name: kernel for name, kernel in dispatch.CPU.forward.items() if name != "conv2d_lrelu"}
    partly = replace(dispatch.CPU, name="partly", forward=without)
    monkeypatch.setattr(dispatch, "BACKENDS", (*dispatch.BACKENDS, partly))
    case = CPU_CASES["training"]
    result = measured(case, baselines=[baselines.backend("partly"), baselines.EAGER], memory=False)
    assert result["failed"] == {}
    ran = dict(result["timings"]["cmslap partly"]["backends"])
    assert ran.pop("conv2d_lrelu") == ["cpu"]
    assert set(map(tuple, ran.values())) == {("partly",)}
    assert "[conv2d_lrelu by cpu]" in table.table(result)
    assert "[conv2d_lrelu by cpu]" in table.brief(result)


@pytest.mark.parametrize("which", ["data", "weight"])
def test_one_gradient_of_a_convolution_asks_for_no_other(which, small):
    setting = replace(GPU_CASES["conv2d_lrelu"].setting, dtype=torch.float32)
    work = conv_gradient(which, setting)
    arguments = work.inputs[0]
    wanted = [tensor for tensor in arguments if tensor.requires_grad]
    assert len(wanted) == {"data": 1, "weight": 2}[which]
    assert (arguments[0] is wanted[0]) == (which == "data")


@needs_kernels
def test_compiled_peers_run_whole(small):
    """``fullgraph``: a compiler that stumbled over our wrappers would be an unfair baseline."""
    case = CPU_CASES["tied_conv_transpose2d"]
    result = measured(case, baselines=[*baselines.ours(cpu.DEVICE), baselines.compiled()])
    assert result["failed"] == {}
    assert list(result["timings"]) == ["cmslap", "torch.compile"]


@needs_kernels
def test_restricted_peers_run_in_processes_of_their_own(small):
    result = measured(CPU_CASES["avx2-forward"])
    assert result["failed"] == {}
    assert set(result["timings"]) == {"cmslap", "eager"}
    assert result["name"].endswith("AVX2 only")


@needs_kernels
def test_first_result(small):
    work = end_to_end.first_result(Setting())
    ours, *_ = end_to_end.starters(cpu.DEVICE, compiled=False)
    ours.prepare(work)()


@needs_kernels
def test_scaling(small):
    """Peak memory on a CPU: of a process that does nothing else."""
    (case,) = scaling.cases("usual", sides=(64,)).values()
    result = measured(case)
    assert result["failed"] == {}
    assert result["pixels"] == 64 * 64
    output = 4 * 64 * 128 * 128  # bytes of the largest map that plain PyTorch makes
    assert result["timings"]["eager"]["peak_bytes"] > output


def test_a_case_that_cannot_be_built_does_not_end_the_run():
    def build(setting):
        raise torch.OutOfMemoryError("no room for the inputs")

    cases = {"large": Case(build, Setting(), [baselines.EAGER]), "none": Case(CPU_CASES["folder"].build, Setting(), [])}
    first, second = measure_all(cases, ONCE, CEILINGS)
    assert first["failed"] == {"all": "out of memory"}
    assert "failed: out of memory" in table.table(first)
    assert second["timings"] == second["failed"] == {}


def test_peers_can_be_left_out(small):
    case = CPU_CASES["conv2d_lrelu"]
    (result,) = measure_all(
        {"conv": case}, ONCE, CEILINGS, without=[p.name for p in case.baselines if p != baselines.EAGER]
    )
    assert list(result["timings"]) == ["eager"]
    assert result["absent"]["cmslap"] == "left out"


def test_a_share_is_the_floor_over_the_time(small):
    result = measured(CPU_CASES["conv2d_lrelu"], baselines=[baselines.EAGER])
    row = result["timings"]["eager"]
    assert row["share_of_floor"] == pytest.approx(result["floor_seconds"] / row["median"])


@pytest.mark.parametrize(("gflop", "gbyte", "seconds"), [(1600.0, 4.0, 8.0), (800.0, 400.0, 10.0)])
def test_floor_is_the_larger_of_arithmetic_and_memory(gflop, gbyte, seconds):
    assert floor(gflop, gbyte, CEILINGS) == pytest.approx(seconds)


def test_ceilings():
    top = measure_ceilings(torch.device("cpu"), torch.float32, matrix=64, copied=4096)
    assert top.pop("dtype") == "float32"
    assert all(rate > 0 for rate in top.values())


def test_network_peers_name_what_is_not_installed(small, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    monkeypatch.setitem(sys.modules, "openvino", None)
    result = measured(
        CPU_CASES["forward"], baselines=[baselines.EAGER, baselines.ONNXRUNTIME, baselines.OPENVINO], memory=False
    )
    assert set(result["absent"]) == {"ONNX Runtime", "OpenVINO"}


def test_a_gradient_alone_repeats_on_one_forward_pass(small):
    passes = []
    setting = replace(GPU_CASES["conv2d_lrelu"].setting, dtype=torch.float32)
    work = conv_gradient("data", setting)
    call = work.drive(lambda *arguments: passes.append(0) or work.function(*arguments))
    for _ in range(5):
        call()
    assert len(passes) == len(work.inputs)
    assert work.gflop == operation("conv2d_lrelu", False, setting).gflop
