"""Microbenchmarks: every operation, direction, precision, device and implementation, and how cost grows.

    pytest bench --benchmark-only                                    # all that this machine can run
    pytest bench --benchmark-only -k "tied and float32" --benchmark-json out.json

The pieces of work are those of ``python -m bench``, whose implementations take turns and so make fairer ratios. What a
machine has not, or a backend can't do, is skipped with the reason.
"""

from dataclasses import replace

import pytest
import torch

from bench.speed import baselines, cpu, gpu
from bench.speed.timing import clock_of
from bench.speed.work import OPERATIONS, operation
from cmslap.ops import BackendError
from cmslap.ops.dispatch import BACKENDS, REFERENCE

SUITES = {"cpu": cpu, "cuda": gpu}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
OURS = [baselines.backend(backend.name) for backend in BACKENDS if backend is not REFERENCE]
BASELINES = {
    baseline.name: baseline for baseline in (*OURS, baselines.EAGER, baselines.EAGER_NCHW, baselines.compiled())
}
SWEPT = {"side": (32, 64, 128, 256, 512), "batch": (1, 2, 4, 8, 16), "channels": (16, 32, 64, 128, 256)}

pytestmark = pytest.mark.benchmark(min_rounds=5, max_time=0.5, warmup=False)  # the first call comes before


def setting(device, name, dtype):
    """That of the device's suite."""
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("PyTorch finds no CUDA GPU")
    if device == "cpu" and dtype == "float16":
        pytest.skip("float16 is for GPUs")
    return replace(SUITES[device].cases("usual")[name].setting, dtype=DTYPES[dtype])


def run(benchmark, name, backward, setting, baseline):
    """Time one implementation of one piece of work."""
    torch.compiler.reset()
    work = operation(name, backward, replace(setting, layout=baseline.layout))
    call, clock = baseline.prepare(work), clock_of(setting.device)

    def waited():
        call()
        clock()

    try:
        waited()  # compiles and tunes
    except BackendError as error:
        pytest.skip(str(error))
    benchmark.group = f"{work.name}, {setting.dtype}, {work.size} on {setting.device}"
    benchmark.extra_info |= {"implementation": baseline.name, "gflop": work.gflop, "gbyte": work.gbyte}
    benchmark(waited)


@pytest.mark.parametrize("baseline", BASELINES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("device", SUITES)
def test_operation(benchmark, device, name, direction, dtype, baseline):
    run(benchmark, name, direction == "backward", setting(device, name, dtype), BASELINES[baseline])


@pytest.mark.parametrize("baseline", [baseline.name for baseline in (*OURS, baselines.EAGER)])
@pytest.mark.parametrize(("size", "value"), [(size, value) for size, values in SWEPT.items() for value in values])
@pytest.mark.parametrize("name", ["conv2d_lrelu", "tied_conv_transpose2d"])
@pytest.mark.parametrize("device", SUITES)
def test_growth(benchmark, device, name, size, value, baseline):
    """Forward and backward, one size varied at a time."""
    dtype = str(SUITES[device].DTYPE).removeprefix("torch.")
    varied = replace(setting(device, name, dtype), **{size: value})
    run(benchmark, name, True, varied, BASELINES[baseline])
