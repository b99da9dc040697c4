"""Suites in sizes without meaning."""

from bench.speed import cpu, gpu
from bench.speed.timing import Pace

CPU_SIZES = cpu.Sizes(
    operation=8,
    block=4,
    image=4,
    enlarged=8,
    step=(1, 4),
    reference_step=(1, 2),
    photograph=(8, 6),
    frame=6,
    crops=(1, 4),
    folder=2,
    recursions=1,
)
GPU_SIZES = gpu.Sizes(batch=1, side=4, low=2, reference_step=(1, 2), image=4, photograph=(8, 6), folder=2, recursions=1)
CEILINGS = {
    "dtype": "float32",
    "matmul_gflops": 200.0,
    "convolution_gflops": 100.0,
    "copy_gbs": 30.0,
    "triad_gbs": 40.0,
}
ONCE = Pace(1)


def uncompiled(case):
    """Without the baselines that compile, which takes long."""
    return [baseline for baseline in case.baselines if "compile" not in baseline.name and baseline.name != "TensorRT"]
