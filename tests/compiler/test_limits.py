"""Sharing, aliases, state and side effects: what a network compiled by us must do as the network itself does."""

import collections
import copy
import types

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from test_fusing import assert_close, conv, flat, needs_kernels, run
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

    def twice(self, number):
        return 2 * number


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


def recurs_twice_at_once(self, x):
    u, v = x * 1, x * 2
    a, b = torch.relu(u), torch.relu(v)
    for _ in range(2):
        b = torch.relu(self.a(b) + v)
    for _ in range(2):
        a = torch.relu(self.a(a) + u)
    return a, b


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
        (recurs_twice_at_once, None),
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


def unties(net):
    net.b.weight = nn.Parameter(2 * net.b.weight.detach())


def loads(net):
    state = {name: torch.full_like(tensor, i / 100) for i, (name, tensor) in enumerate(net.state_dict().items(), 1)}
    net.load_state_dict(state, assign=True)


def reads_both(self, x):
    return torch.relu(self.a(x)) + F.conv2d(x, self.b.weight, padding=1)


def recurs_and_upsamples(self, x):
    h = x
    for _ in range(2):
        h = self.a(torch.relu(h)) + x
    return F.conv_transpose2d(torch.relu(h), self.b.weight, stride=2)[..., :-1, :-1]


@pytest.mark.parametrize("code", [reads_both, recurs_and_upsamples])
@pytest.mark.parametrize("change", [unties, loads])
def test_sharing_may_end(code, change):
    net = Snippet(code)
    net.b.weight = net.a.weight
    net, plain = pair(net)
    assert_same(net, plain)
    change(net)
    change(plain)
    assert_same(net, plain)


class Subclass(nn.Conv2d):
    """A convolution of the user's own, whose forward is traced."""

    def forward(self, x):
        y = F.conv2d(x, self.weight, padding=1)
        return y if self.bias is None else y + self.bias[:, None, None]


class WithConstant(Snippet):
    factor = 2.0


def put(name, value):
    return lambda net: setattr(net, name, value)


STATE = {
    "function": (put("act", torch.relu), lambda self, x: self.act(self.a(x)), put("act", torch.tanh)),
    "namespace": (
        put("opt", types.SimpleNamespace(k=1.0)),
        lambda self, x: self.a(x) * self.opt.k,
        lambda net: setattr(net.opt, "k", 2.0),
    ),
    "nested dict": (
        put("opt", {"net": {"k": 1.0}}),
        lambda self, x: self.a(x) * self.opt["net"]["k"],
        lambda net: net.opt["net"].update(k=2.0),
    ),
    "modules in a list": (
        lambda net: setattr(net, "order", [net.a, net.b]),
        lambda self, x: torch.relu(self.order[0](x)),
        lambda net: net.order.reverse(),
    ),
    "buffer": (
        lambda net: net.register_buffer("mask", None),
        lambda self, x: self.a(x) if self.mask is None else self.a(x) * self.mask,
        lambda net: net.register_buffer("mask", torch.tensor(2.0).double()),
    ),
    "missing attribute": (
        None,
        lambda self, x: self.a(x) * getattr(self, "k", 1.0),
        put("k", 2.0),
    ),
    "method": (
        None,
        lambda self, x: self.a(x) * self.twice(1.0),
        put("twice", lambda number: 3 * number),
    ),
    "bias": (
        lambda net: setattr(net, "c", Subclass(16, 16, 3, bias=False)),
        lambda self, x: torch.relu(self.c(x)),
        lambda net: setattr(net.c, "bias", nn.Parameter(torch.ones(16).double())),
    ),
}


@pytest.mark.parametrize("name", STATE)
def test_later_changes_of_state_count(name):
    prepare, code, change = STATE[name]
    net, plain = pair(Snippet(code, prepare))
    assert_same(net, plain)
    change(net)
    change(plain)
    assert_same(net, plain)


def test_later_changes_of_class_attributes_count(monkeypatch):
    net, plain = pair(WithConstant(lambda self, x: self.a(x) * self.factor))
    assert_same(net, plain)
    monkeypatch.setattr(WithConstant, "factor", 3.0)
    assert_same(net, plain)
    net.factor = plain.factor = 4.0
    assert_same(net, plain)


def autocasts_not(self, x):
    with torch.autocast("cpu", enabled=False):
        return self.a(x.float())


def test_a_forward_may_turn_autocast_off():
    net, plain = pair(Snippet(autocasts_not))
    with torch.autocast("cpu", torch.bfloat16):
        assert net(torch.rand(1, 16, 6, 5)).dtype == plain(torch.rand(1, 16, 6, 5)).dtype == torch.float32


def catches(self, x):
    try:
        if x.shape[2] > 5:
            return self.b(x)
    except Exception:
        pass
    return self.a(x)


def catches_a_number(self, x):
    try:
        factor = float(x.sum())
    except TypeError:
        factor = 2.0
    return self.a(x) * factor


def remembers_sizes(self, x):
    return self.a(x) if x.shape[2] in self.sizes else self.b(x)


def counts_on_an_object(self, x):
    self.meter.n += 1
    return self.a(x)


FEATURES = []


def collects_in_a_global(self, x):
    FEATURES.append(self.a(x))
    return self.b(x)


def collects_in_a_deque(self, x):
    self.features.append(self.a(x))
    return self.b(x)


def collects_in_a_nested_dict(self, x):
    self.features["a"]["b"] = self.a(x)
    return self.b(x)


def decides_by_values(self, x):
    return self.a(x) if x.sum() > 20 else self.b(x)


def decides_by_size(self, x):
    return self.a(x) if x.shape[2] > 5 else self.b(x)


def counts_calls(self, x):
    self.steps += 1
    return self.a(x) * self.steps


def keeps_its_features(self, x):
    self.features = self.a(x)
    return self.features


def draws_random_numbers(self, x):
    return self.a(x) + torch.randn(1).item()


def makes_a_tensor(self, x):
    return self.a(x) * torch.tensor([2.0])


def stops_gradients(self, x):
    with torch.no_grad():
        y = self.a(x)
    return torch.relu(self.b(y))


def asks_for_gradients(self, x):
    return self.a(x) if torch.is_grad_enabled() else self.b(x)


SURPRISES = {
    "values": (decides_by_values, None),
    "size": (decides_by_size, None),
    "calls": (counts_calls, put("steps", 0)),
    "features": (keeps_its_features, None),
    "random number": (draws_random_numbers, None),
    "constant": (makes_a_tensor, None),
    "no_grad": (stops_gradients, None),
    "grad mode": (asks_for_gradients, None),
    "caught": (catches, None),
    "number": (catches_a_number, None),
    "sizes": (remembers_sizes, put("sizes", {6: "six"})),
    "type": (lambda self, x: self.a(x) if type(x) is torch.Tensor else self.b(x), None),
    "text": (lambda self, x: self.a(x) if len(f"{x.shape}") > 5 else x, None),
    "object": (counts_on_an_object, put("meter", types.SimpleNamespace(n=0))),
    "numpy": (lambda self, x: self.a(x) * self.rng.random(), put("rng", np.random.default_rng(0))),
    "global": (collects_in_a_global, None),
    "deque": (collects_in_a_deque, put("features", collections.deque())),
    "nested": (collects_in_a_nested_dict, put("features", {"a": {}})),
    "ordered": (lambda self, x: collections.OrderedDict(y=self.a(x)), None),
}


@pytest.mark.parametrize("name", SURPRISES)
def test_side_effects_and_surprises_are_kept(name):
    """What the forward returns, and what it leaves behind."""
    code, prepare = SURPRISES[name]
    net, plain = pair(Snippet(code, prepare))
    for height in (6, 5):
        x = torch.rand(1, 16, height, 5)
        for _ in range(2):
            results = []
            for network in (net, plain):
                torch.manual_seed(0)
                with ops.use_backend("reference"):
                    results.append((network(x), len(FEATURES), state(network)))
            (result, *after), (expected, *expected_after) = results
            assert type(result) is type(expected)
            torch.testing.assert_close(result, expected)
            torch.testing.assert_close(after[1], expected_after[1])
    assert len(FEATURES) in (0, 8)
    FEATURES.clear()


def state(network):
    """The attributes of a network that its forward may change."""
    names = ("steps", "features", "meter")
    return {
        name: vars(value) if hasattr(value := vars(network)[name], "n") else value
        for name in names
        if name in vars(network)
    }


def scales_a_view_of_an_activated_result(self, x):
    y = torch.relu(self.a(x))
    y[:, :8].mul_(2)
    return y


def changes_its_skip_later(self, x):
    skip = x * 1
    y = self.a(x) + skip
    skip.mul_(2)
    return y + skip


def scales_a_view_of_another_function(self, x):
    y = torch.sigmoid(self.a(x))
    y[:, :8].mul_(2)
    return y


def clamps_behind_autograd(self, x):
    y = F.leaky_relu(self.a(x), 0.2)
    y.data.clamp_(-0.5, 0.5)
    return y


@needs_kernels
@pytest.mark.parametrize(
    "code", [scales_a_view_of_an_activated_result, scales_a_view_of_another_function, clamps_behind_autograd]
)
def test_views_are_not_views_of_a_copy(code):
    net, plain = pair(Snippet(code))
    x = torch.randn(1, 16, 6, 5)
    with torch.no_grad(), ops.use_backend("cpu"):
        torch.testing.assert_close(net(x), plain(x), rtol=1e-4, atol=1e-5)


@needs_kernels
@pytest.mark.parametrize("code", [lambda self, x: self.b(F.leaky_relu(self.a(x), 0.2)), changes_its_skip_later])
def test_backward_keeps_only_what_pytorchs_own_does(code):
    """So what PyTorch lets the user change in place, he may change."""
    assert_changeable(Snippet(code))


@needs_kernels
@pytest.mark.parametrize(
    "activation", [[], [nn.LeakyReLU(0.2)], [nn.LeakyReLU(0.2), conv()], [nn.LeakyReLU(0.2), nn.Flatten(0, 1)]]
)
def test_the_caller_may_change_the_result(activation):
    assert_changeable(nn.Sequential(conv(), *activation))


def assert_changeable(net):
    net, plain = pair(net.to(memory_format=torch.channels_last))
    x = torch.randn(1, 16, 6, 5).contiguous(memory_format=torch.channels_last)

    def gradients(network):
        result = network(x)
        result += 1
        result.square().sum().backward()
        return [parameter.grad for parameter in network.parameters()]

    with ops.use_backend("cpu"):
        assert_close(gradients(net), gradients(plain), 1e-4)


class Own(nn.Module):
    """A network whose first image comes from itself."""

    def __init__(self):
        super().__init__()
        self.z, self.body = nn.Parameter(torch.randn(1, 16, 6, 5)), nn.Sequential(conv(), nn.ReLU())

    def forward(self):
        return self.body(self.z)


def test_a_forward_without_arguments():
    net, plain = pair(Own())
    with ops.use_backend("reference"):
        torch.testing.assert_close(net(), plain())


@needs_kernels
def test_layout_is_that_of_the_image_among_the_arguments():
    class Conditioned(Snippet):
        def forward(self, t, x):
            return torch.relu(self.a(x)) * t

    net, plain = pair(Conditioned(None))
    t, x = torch.rand(1, 1, 1, 1), torch.randn(2, 16, 6, 5)
    with ops.use_backend("cpu"):
        for image in (x, x.contiguous(memory_format=torch.channels_last)):
            assert net(t, image).stride() == plain(t, image).stride()


@pytest.mark.parametrize("wrong", [5, None, nn.Conv2d])
def test_only_modules_are_taken(wrong):
    with pytest.raises(TypeError, match=r"module must be an nn\.Module, got "):
        cmslap.accelerate(wrong)


FACTOR = 2.0


def test_later_changes_of_global_constants_count(monkeypatch):
    net, plain = pair(Snippet(lambda self, x: self.a(x) * FACTOR))
    for factor in (2.0, 3.0):
        monkeypatch.setitem(globals(), "FACTOR", factor)
        assert_same(net, plain)


def changes_the_source_at_the_end(self, x):
    u = x * 1
    h = u
    for _ in range(2):
        h = self.a(torch.relu(h)) + u
    h = torch.relu(h)
    u.mul_(2)
    return h + u


@needs_kernels
def test_backward_does_not_read_a_source_that_changed():
    assert_changeable(Snippet(changes_the_source_at_the_end))


@needs_kernels
@pytest.mark.parametrize("part", [(slice(None), slice(0, 16)), (..., slice(1, None), slice(1, None))])
def test_parts_of_channels_last_images_keep_the_layout(part):
    net = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1))
    x = torch.randn(2, 16, 9, 8) if part[0] is ... else torch.randn(2, 32, 9, 8)
    x = x.to(memory_format=torch.channels_last)[part]
    expected = net(x)
    cmslap.accelerate(net)
    with ops.use_backend("cpu"):
        result = net(x)
    assert result.stride() == expected.stride()
    torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-5)


def test_a_weight_changed_without_gradients_inside_a_forward():
    class Halves(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = conv(), conv()

        def forward(self, x):
            x = torch.relu(self.a(x))
            with torch.no_grad():
                self.b.weight.mul_(0.5)
            return self.b(x)

    net, plain = pair(Halves())
    x = torch.rand(1, 16, 40, 40)
    for _ in range(2):
        assert_same(net, plain, x)
