"""Accelerated networks against themselves: nothing but the speed may differ."""

import copy
import io
import operator
import pickle

import networks
import pytest
import torch
from networks import NETWORKS
from torch import nn
from torch.overrides import TorchFunctionMode

import cmslap
from cmslap import ops
from cmslap.ops.extension import MISSING

needs_kernels = pytest.mark.skipif(MISSING is not None, reason=str(MISSING))


def build(name):
    make, channels = NETWORKS[name]
    return make(), torch.randn(1, channels, 6, 10)


def flat(result):
    return [result] if isinstance(result, torch.Tensor) else list(result)


def run(net, x):
    """Outputs and the gradients of a random weighting of them, input first; deterministic for equal shapes."""
    for parameter in net.parameters():
        parameter.grad = None
    x = x.detach().clone().requires_grad_()
    outputs = flat(net(x))
    generator = torch.Generator().manual_seed(0)
    loss = sum((out * torch.randn(out.shape, generator=generator).to(out.dtype)).sum() for out in outputs)
    loss.backward()
    return outputs, [x.grad, *(p.grad for p in net.parameters())]


def assert_close(a, b, tolerance):
    for x, y in zip(a, b, strict=True):
        assert (x is None) == (y is None)
        if x is not None:
            assert (x.double() - y.double()).norm() <= tolerance * max(y.double().norm(), 1e-3)


class Smallest(TorchFunctionMode):
    """The smallest number, in size, that goes into an activation."""

    def __init__(self):
        super().__init__()
        self.value = float("inf")

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if "relu" in getattr(func, "__name__", ""):
            sizes = args[0].detach().abs()
            self.value = min(self.value, sizes[sizes > 0].min().item())
        return func(*args, **(kwargs or {}))


def clear_input(net, x):
    """An input for which no activation's sign is up to rounding."""
    for _ in range(50):
        x = torch.randn_like(x)
        with Smallest() as smallest:
            copy.deepcopy(net).double()(x.double())
        if smallest.value > 2e-6:
            return x
    pytest.skip("no input keeps clear of the activations' kinks")


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("training", [True, False])
def test_rewriting_is_exact(name, training):
    """In float64, where only a wrong rewriting could differ."""
    net, x = build(name)
    net.double().train(training)
    plain = copy.deepcopy(net)
    assert cmslap.accelerate(net).fused
    with ops.use_backend("reference"):
        outputs, gradients = run(net, x.double())
    expected, expected_gradients = run(plain, x.double())
    assert_close(outputs, expected, 1e-12)
    assert_close(gradients, expected_gradients, 1e-11)
    assert_close(net.state_dict().values(), plain.state_dict().values(), 1e-12)  # running statistics too
    assert [out.is_contiguous() for out in outputs] == [out.is_contiguous() for out in expected]


@needs_kernels
@pytest.mark.parametrize("name", NETWORKS)
def test_kernels_match_float64(name):
    net, x = build(name)
    exact = copy.deepcopy(net).double()
    x = clear_input(net, x)
    cmslap.accelerate(net)
    with ops.use_backend("cpu"):
        outputs, gradients = run(net, x)
    expected, expected_gradients = run(exact, x.double())
    assert_close(outputs, expected, 1e-5)
    assert_close(gradients, expected_gradients, 1e-4)
