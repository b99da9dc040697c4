"""What this machine can do at most, measured: the rate of arithmetic and that of memory."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from bench.speed.timing import Pace, clock_of, take_turns

WIDE = 256  # channels of the convolution


def measure_ceilings(
    device: torch.device, dtype: torch.dtype, matrix: int = 0, copied: int = 0
) -> dict[str, float | str]:
    """GFLOP/s of a large matrix product and, on a CPU, of a wide convolution; GB/s of a copy and of a triad.

    ``matrix`` rows and columns and ``copied`` bytes: 0 is what fits the device. A CPU's matrix library does not always
    reach what its convolutions do. Memory rates count bytes read and written.
    """
    on_gpu = device.type == "cuda"
    matrix, copied = matrix or (8192 if on_gpu else 2048), copied or (2**30 if on_gpu else 2**28)
    a, b = (torch.randn(2, matrix, matrix, device=device) / matrix**0.5).to(dtype)
    product = torch.empty_like(a)
    source, addend = torch.rand(2, copied // 4, device=device)
    target = torch.empty_like(source)
    calls = {
        "matmul": lambda: torch.mm(a, b, out=product),
        "copy": lambda: target.copy_(source),
        "triad": lambda: torch.add(source, addend, alpha=3.0, out=target),
    }
    if not on_gpu:
        side = max(matrix // 16, 1)
        image = torch.randn(1, WIDE, side, side, dtype=dtype).contiguous(memory_format=torch.channels_last)
        kernel = torch.randn(WIDE, WIDE, 3, 3, dtype=dtype).contiguous(memory_format=torch.channels_last)
        calls["convolution"] = lambda: F.conv2d(image, kernel, padding=1)
    pace = Pace(9, stretch=0.03, warm_ups=2, clock=clock_of(device))
    with torch.no_grad():
        seconds = {name: timing.median for name, timing in take_turns(calls, "ceilings", pace).items()}
    rates = {
        "dtype": str(dtype).removeprefix("torch."),
        "matmul_gflops": 2e-9 * matrix**3 / seconds["matmul"],
        "copy_gbs": 2e-9 * copied / seconds["copy"],
        "triad_gbs": 3e-9 * copied / seconds["triad"],
    }
    if not on_gpu:
        rates["convolution_gflops"] = 2e-9 * 9 * WIDE**2 * side**2 / seconds["convolution"]
    return rates


def arithmetic(ceilings: dict[str, float]) -> float:
    """GFLOP/s."""
    return max(ceilings["matmul_gflops"], ceilings.get("convolution_gflops", 0.0))


def memory(ceilings: dict[str, float]) -> float:
    """GB/s."""
    return max(ceilings["copy_gbs"], ceilings["triad_gbs"])


def floor(gflop: float, gbyte: float, ceilings: dict[str, float]) -> float:
    """The roofline's floor, in seconds: no implementation with these many operations and bytes runs below it."""
    return max(gflop / arithmetic(ceilings), gbyte / memory(ceilings))
