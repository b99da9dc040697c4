"""Gradients of whole networks by the CPU kernels, beside those of the reference in float64.

Where an activation is zero but for rounding, float32 and float64 may take different branches of φ. A handful of them
among millions moves a gradient by up to 1e-3, in plain PyTorch as here (3 of 7.6 million: 1e-3; none: 3e-6), whatever
the order of sums. So float64 is held to the branches that the float32 forward pass took: there kernels must agree.
"""

import copy

import pytest
import torch

from cmslap import CMSLapSRN, MSLapSRN, ops
from cmslap.ops import extension, reference
from cmslap.ops.cpu import CPU

pytestmark = pytest.mark.skipif(extension.MISSING is not None, reason=str(extension.MISSING))


@pytest.fixture
def branches(monkeypatch):
    """Where activations of the CPU kernels are positive, in their order; the reference takes these branches."""
    positive = []
    level = CPU.forward["lapsrn_level"]

    def recording(call):
        output = level(call)
        positive.extend((call.saved > 0).permute(0, 1, 4, 2, 3))
        return output

    def branching(x, negative_slope):
        return x if negative_slope == 1 else torch.where(positive.pop(0), x, negative_slope * x)

    monkeypatch.setitem(CPU.forward, "lapsrn_level", recording)
    monkeypatch.setattr(reference, "leaky_relu", branching)
    return positive


@pytest.mark.parametrize("network", [CMSLapSRN, MSLapSRN])
def test_gradients_of_the_whole_network(network, branches):
    model = network(scale=4, depth=5, recursions=8, channels=64)
    y, grads = torch.rand(1, 1, 13, 18), [torch.randn(1, 1, 26, 36), torch.randn(1, 1, 52, 72)]
    with ops.use_backend("cpu"):
        levels = model(y)
        gradients = torch.autograd.grad(levels, list(model.parameters()), grads)
    exact_model = copy.deepcopy(model).double()
    with ops.use_backend("reference"):
        exact_levels = exact_model(y.double())
        expected = torch.autograd.grad(exact_levels, list(exact_model.parameters()), [g.double() for g in grads])
    assert not branches  # all of them taken
    for level, exact_level in zip(levels, exact_levels, strict=True):
        assert (level - exact_level).norm() <= 1e-5 * exact_level.norm()
    summed = torch.cat([grad.flatten() for grad in grads]).norm()
    for (name, _), gradient, exact in zip(model.named_parameters(), gradients, expected, strict=True):
        scale = summed if gradient.numel() == 1 else exact.norm()  # a single number may nearly cancel
        assert (gradient - exact).norm() <= 5e-5 * scale, name
