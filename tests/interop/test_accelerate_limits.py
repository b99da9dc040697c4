"""What accelerate must notice: sharing, aliases, state and side effects that a graph does not show."""

import copy

import pytest
import torch
import torch.nn.functional as F
from test_accelerate import assert_close, conv, flat, needs_kernels, run
from torch import nn

import cmslap
from cmslap import ops


class Snippet(nn.Module):
    """A forward of a few lines, with two convolutions at hand and whatever ``prepare`` adds."""

    def __init__(self, code, prepare=None):
        super().__init__()
        self.a, self.b, self.code = conv(), conv(), code
        if prepare is not None:
            prepare(self)

    def forward(self, x):
        return self.code(self, x)


def pair(net):
    """The network accelerated, and a plain copy."""
    plain = copy.deepcopy(net)
    cmslap.accelerate(net)
    return net, plain


def assert_same(net, plain, x=None):
    """Outputs and gradients, in float64."""
    x = torch.randn(1, 16, 6, 5) if x is None else x
    with ops.use_backend("reference"):
        outputs, gradients = run(net.double(), x.double())
    expected, expected_gradients = run(plain.double(), x.double())
    assert_close(outputs, expected, 1e-12)
    assert_close(gradients, expected_gradients, 1e-11)


def has_own_biases_each_time(self, x):
    h = x
    for bias in self.biases:
        for _ in range(2):
            h = F.conv2d(torch.relu(h), self.a.weight, bias, padding=1) + x
        x = h = torch.relu(h)
    return h


def changes_the_source(self, x):
    u = x * 1
    a = torch.relu(u)
    u.mul_(2)
    t = torch.relu(self.a(a) + u)
    return torch.relu(self.a(t) + u)


def changes_the_source_before_upsampling(self, x):
    u = self.b(x)
    a = torch.relu(u)
    for _ in range(2):
        a = torch.relu(self.a(a) + u)
    v = u.mul_(2)
    return F.conv_transpose2d(a, self.b.weight, stride=2)[..., :-1, :-1], v


def changes_the_kernel(self, x):
    y = self.a(x)
    self.a.weight.data.mul_(0.5)
    return torch.relu(y)


def changes_kernels_together(self, x):
    y = self.a(x)
    torch._foreach_mul_([self.a.weight.data, self.b.weight.data], 0.5)
    return torch.relu(y)


def add_biases(net):
    net.biases = nn.ParameterList(nn.Parameter(torch.randn(16)) for _ in range(2))


@pytest.mark.parametrize(
    ("code", "prepare"),
    [
        (has_own_biases_each_time, add_biases),
        (changes_the_source, None),
        (changes_the_source_before_upsampling, None),
        (changes_the_kernel, None),
        (changes_kernels_together, None),
    ],
)
def test_nothing_moves_past_what_changes_it(code, prepare):
    net, plain = pair(Snippet(code, prepare))
    with torch.no_grad(), ops.use_backend("reference"):
        x = torch.randn(1, 16, 6, 5).double()
        assert_close(flat(net.double()(x)), flat(plain.double()(x)), 1e-12)


def test_blocks_with_the_same_kernels_and_other_biases():
    assert_same(*pair(Snippet(has_own_biases_each_time, add_biases)))


@needs_kernels
def test_pruned_blocks():
    """A bottleneck in a recursive block, made later."""

    def recurs(self, x):
        h = x
        for _ in range(2):
            h = self.b(torch.relu(self.a(torch.relu(h)))) + x
        return torch.relu(h)

    net, plain = pair(Snippet(recurs))
    for network in (net, plain):
        torch.manual_seed(0)
        network.a, network.b = network.a, network.b
        network.a.weight, network.a.bias = nn.Parameter(torch.randn(8, 16, 3, 3)), nn.Parameter(torch.randn(8))
        network.b.weight = nn.Parameter(torch.randn(16, 8, 3, 3))
    x = torch.randn(1, 16, 6, 5)
    with ops.use_backend("cpu"):
        torch.testing.assert_close(net(x), plain(x), rtol=1e-4, atol=1e-3)
