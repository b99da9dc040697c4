"""Microbenchmarks: every operation, direction, precision, device and implementation, and how cost grows.

    pytest bench --benchmark-only                                    # all that this machine can run
    pytest bench --benchmark-only -k "tied and float32" --benchmark-json out.json

The pieces of work are those of ``cmslap bench``, whose implementations take turns and so make the fairer ratios. What a
machine has not, or a backend can't do, is skipped with the reason.
"""

from dataclasses import replace

import pytest
import torch

from cmslap.benchmark import cpu, gpu, peers
from cmslap.benchmark.timing import clock_of
from cmslap.benchmark.work import OPERATIONS, operation
from cmslap.ops import BackendError
from cmslap.ops.choice import BACKENDS, REFERENCE

SUITES = {"cpu": cpu, "cuda": gpu}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
OURS = [peers.backend(backend.name) for backend in BACKENDS if backend is not REFERENCE]
PEERS = {peer.name: peer for peer in (*OURS, peers.EAGER, peers.EAGER_NCHW, peers.compiled())}
SWEPT = {"side": (32, 64, 128, 256, 512), "batch": (1, 2, 4, 8, 16), "channels": (16, 32, 64, 128, 256)}

pytestmark = pytest.mark.benchmark(min_rounds=5, max_time=0.5, warmup=False)  # the first call comes before


def setting(device, name, dtype):
    """That of the device's suite."""
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("PyTorch finds no CUDA GPU")
    if device == "cpu" and dtype == "float16":
        pytest.skip("float16 is for GPUs")
    return replace(SUITES[device].cases("usual")[name].setting, dtype=DTYPES[dtype])


def run(benchmark, name, backward, setting, peer):
    """Time one implementation of one piece of work."""
    torch.compiler.reset()
    work = operation(name, backward, replace(setting, layout=peer.layout))
    call, clock = peer.prepare(work), clock_of(setting.device)

    def waited():
        call()
        clock()

    try:
        waited()  # compiles and tunes
    except BackendError as error:
        pytest.skip(str(error))
    benchmark.group = f"{work.name}, {setting.dtype}, {work.size} on {setting.device}"
    benchmark.extra_info |= {"implementation": peer.name, "gflop": work.gflop, "gbyte": work.gbyte}
    benchmark(waited)


@pytest.mark.parametrize("peer", PEERS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("device", SUITES)
def test_operation(benchmark, device, name, direction, dtype, peer):
    run(benchmark, name, direction == "backward", setting(device, name, dtype), PEERS[peer])


@pytest.mark.parametrize("peer", [peer.name for peer in (*OURS, peers.EAGER)])
@pytest.mark.parametrize(("size", "value"), [(size, value) for size, values in SWEPT.items() for value in values])
@pytest.mark.parametrize("name", ["conv2d_lrelu", "tied_conv_transpose2d"])
@pytest.mark.parametrize("device", SUITES)
def test_growth(benchmark, device, name, size, value, peer):
    """Forward and backward, one size varied at a time."""
    dtype = str(SUITES[device].DTYPE).removeprefix("torch.")
    varied = replace(setting(device, name, dtype), **{size: value})
    run(benchmark, name, True, varied, PEERS[peer])
