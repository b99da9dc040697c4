"""The CPU suite: CMS-LapSRN D5R8 on this machine's processor, and the operations it is made of."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from cmslap import ops
from cmslap.benchmark import peers
from cmslap.benchmark.timing import Case, Implementation
from cmslap.models import CMSLapSRN
from cmslap.precision import inference_autocast

CONV_GFLOP = 2 * 9 * 64 * 64 * 1e-9  # of one 64→64 convolution, a pixel
CONVOLUTIONS = 40  # a level of D5R8


def results(rounds: int, limit: float | None, case: str | None, quick: bool) -> Iterator[dict[str, Any]]:
    """Measure every case, or the one called ``case``; only one is in memory at a time. None is slow to compile."""
    for name in [case] if case else CASES:
        yield CASES[name]().measure(rounds, limit)


def _network() -> CMSLapSRN:
    return CMSLapSRN(scale=4).requires_grad_(False)


def _image(batch: int, side: int) -> Tensor:
    """Its strides say channels_last, so that plain PyTorch runs in its faster layout too."""
    return torch.rand(batch, 1, side, side).to(memory_format=torch.channels_last)


def _network_gflop(pixels: int) -> float:
    """Convolutions and upsampling of two levels, the second four times as large."""
    return (CONVOLUTIONS + 1) * CONV_GFLOP * pixels * (1 + 4)


def _forward() -> Case:
    model, y = _network(), _image(1, 128)
    ready, absent = peers.build(peers.FLOAT32, model, y)
    return Case(
        "4x forward, float32", "1×128×128", _network_gflop(128**2), {"cmslap": lambda: model(y), **ready}, absent
    )


def _bfloat16_forward() -> Case:
    model, y = _network(), _image(1, 128)
    ready, absent = peers.build({"OpenVINO bf16": peers.openvino("bf16")}, model, y)

    def bfloat16() -> None:
        with inference_autocast("bf16", y.device):
            model(y)

    implementations = {"cmslap": bfloat16, "cmslap float32": lambda: model(y), **ready}
    return Case("4x forward, bfloat16", "1×128×128", _network_gflop(128**2), implementations, absent)


def _training_step() -> Case:
    model, y = CMSLapSRN(scale=4), _image(4, 32)
    targets = [torch.rand(4, 1, 64, 64), torch.rand(4, 1, 128, 128)]

    def step() -> None:
        model.zero_grad()
        loss = sum(((x - t).square() + 1e-6).sqrt().sum() for x, t in zip(model(y), targets, strict=True))
        loss.backward()

    implementations = {"cmslap": step, "eager": _on_reference(step)}
    return Case("4x training step, float32", "4×32×32", 3 * _network_gflop(4 * 32**2), implementations)


def _operation(name: str, gflop: float) -> Case:
    a = torch.randn(1, 64, 128, 128).contiguous(memory_format=torch.channels_last).requires_grad_()
    weight = (torch.randn(64, 64, 3, 3) / 24).requires_grad_()
    bias = torch.randn(64, requires_grad=True)
    grad: Tensor | None = None

    def both() -> None:
        nonlocal grad
        result = getattr(ops, name)(a, weight, bias)
        grad = torch.ones_like(result) if grad is None else grad
        torch.autograd.grad(result, (a, weight, bias), grad)

    implementations = {"cmslap": both, "eager": _on_reference(both)}
    return Case(f"{name}, forward and backward", "1×64×128×128", 3 * gflop, implementations)


def _on_reference(call: Implementation) -> Implementation:
    def run() -> None:
        with ops.use_backend("reference"):
            call()

    return run


CASES: dict[str, Callable[[], Case]] = {
    "forward": _forward,
    "bfloat16-forward": _bfloat16_forward,
    "training": _training_step,
    "tied": lambda: _operation("tied_conv_transpose2d", CONV_GFLOP * 128**2),
    "conv": lambda: _operation("conv2d_lrelu", CONV_GFLOP * 128**2),
}
