"""What accelerate must notice: sharing, aliases, state and side effects that a graph does not show."""

import collections
import copy
import random
import types

import numpy as np
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


UNTRACEABLE = {
    "caught": (catches, None, "decides by the values"),
    "number": (catches_a_number, None, "decides by the values"),
    "sizes": (remembers_sizes, put("sizes", {6: "six"}), "looks a tensor or its size up"),
    "type": (lambda self, x: self.a(x) if type(x) is torch.Tensor else self.b(x), None, "asks what type"),
    "hasattr": (lambda self, x: self.a(x.tensors if hasattr(x, "tensors") else x), None, "asks a tensor for .tensors"),
    "text": (lambda self, x: self.a(x) if len(f"{x.shape}") > 5 else x, None, "prints"),
    "object": (counts_on_an_object, put("meter", types.SimpleNamespace(n=0)), "whose changes can't be seen"),
    "random": (lambda self, x: self.a(x) * self.rng.random(), put("rng", random.Random(0)), "can't be seen"),
    "numpy": (lambda self, x: self.a(x) * self.rng.random(), put("rng", np.random.default_rng(0)), "can't be seen"),
    "global": (collects_in_a_global, None, "changes globals"),
    "deque": (collects_in_a_deque, put("features", collections.deque()), "sets attributes"),
    "nested": (collects_in_a_nested_dict, put("features", {"a": {}}), "sets attributes"),
    "ordered": (lambda self, x: collections.OrderedDict(y=self.a(x)), None, "makes a OrderedDict"),
}


@pytest.mark.parametrize("name", UNTRACEABLE)
def test_side_effects_and_surprises_are_left_alone(name):
    code, prepare, reason = UNTRACEABLE[name]
    net = Snippet(code, prepare)
    plain = copy.deepcopy(net)
    before = dict(vars(net)), len(FEATURES)
    report = cmslap.accelerate(net)
    assert report.left[0].module == ""
    assert reason in report.left[0].reason
    assert (dict(vars(net)), len(FEATURES)) == before
    for height in (6, 5):
        x = torch.rand(1, 16, height, 5)
        for _ in range(2):
            result, expected = net(x), plain(x)
            assert type(result) is type(expected)
            torch.testing.assert_close(result, expected)
    FEATURES.clear()


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


def test_lazy_convolutions_are_left_alone():
    net = nn.Sequential(nn.LazyConv2d(16, 3, padding=1), nn.ReLU(), conv())
    report = cmslap.accelerate(net)
    assert {row.module for row in report.left} == {"0"}
    assert net(torch.rand(1, 16, 6, 5)).shape == (1, 16, 6, 5)


@pytest.mark.parametrize("wrong", [5, None, nn.Conv2d])
def test_only_modules_are_taken(wrong):
    with pytest.raises(TypeError, match=r"module must be an nn\.Module, got "):
        cmslap.accelerate(wrong)


def test_networks_of_ours_are_named():
    assert cmslap.accelerate(cmslap.CMSLapSRN(2)).left[0].reason == "it runs on cmslap.ops already"


class Scaled(Snippet):
    """Arguments that are no tensors, with and without default."""

    def __init__(self):
        super().__init__(None)
        self.body = nn.Sequential(conv(), nn.ReLU(), nn.Sequential(conv(), nn.ReLU()))

    def forward(self, x, scale, alpha=1.0):
        return F.interpolate(self.body(x) * alpha, scale_factor=scale)


class Calls:
    """Counts the calls of an operation."""

    def __init__(self, monkeypatch):
        self.number, self.run = 0, ops.conv2d_lrelu
        monkeypatch.setattr(ops, "conv2d_lrelu", self)

    def __call__(self, *args):
        self.number += 1
        return self.run(*args)


@pytest.mark.parametrize(
    "call",
    [
        lambda net, x: net(x, 2),
        lambda net, x: net.body(x),
        lambda net, x: net.body[2](net.body[1](net.body[0](x))),
        lambda net, x: copy.deepcopy(net)(x, 2),
    ],
)
def test_calls_that_the_whole_graph_does_not_serve_run_its_parts(call, monkeypatch):
    net, plain = pair(Scaled())
    calls, x = Calls(monkeypatch), torch.rand(1, 16, 6, 5)
    with ops.use_backend("reference"):
        torch.testing.assert_close(call(net, x), call(plain, x))
    assert calls.number == 2


def test_a_default_may_be_given(monkeypatch):
    net, plain = pair(Scaled())
    calls, x = Calls(monkeypatch), torch.rand(1, 16, 6, 5)
    forward = net.forward
    assert forward._tensors((x, x, 1.0), {}) == forward._tensors((x, x), {}) == [x, x]
    assert forward._tensors((x, x, 1), {}) is None
    with ops.use_backend("reference"):
        torch.testing.assert_close(net(x, 2, alpha=2.0), plain(x, 2, alpha=2.0))
    assert calls.number == 2


@needs_kernels
@pytest.mark.parametrize("strict", [False, True])
def test_exports_serve_other_sizes(strict):
    net, plain = pair(nn.Sequential(conv(), nn.ReLU(), conv()))
    sizes = ({2: torch.export.Dim("height", min=2, max=4096), 3: torch.export.Dim("width", min=2, max=4096)},)
    program = torch.export.export(net, (torch.rand(1, 16, 6, 5),), dynamic_shapes=sizes, strict=strict).module()
    for size in (8, 160):
        x = torch.rand(1, 16, size, size)
        torch.testing.assert_close(program(x), plain(x))


@needs_kernels
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_traced_programs_hold_pytorchs_own_functions():
    """Which ONNX and other readers of such programs know."""
    net, _ = pair(nn.Sequential(conv(), nn.ReLU(), conv()))
    with ops.use_backend("cpu"):
        program = torch.jit.trace(net, torch.rand(1, 16, 6, 5))
    kinds = {node.kind() for node in program.inlined_graph.nodes()}  # the printed graph also names source files
    assert "aten::_convolution" in kinds
    assert not any(kind.startswith("cmslap") for kind in kinds)


FACTOR = 2.0


def test_later_changes_of_global_constants_count(monkeypatch):
    net, plain = pair(Snippet(lambda self, x: self.a(x) * FACTOR))
    compiled = torch.compile(net, fullgraph=True, backend="eager")
    for factor in (2.0, 3.0):
        monkeypatch.setitem(globals(), "FACTOR", factor)
        x = torch.rand(1, 16, 6, 5)
        torch.testing.assert_close(compiled(x), plain(x))
        assert_same(copy.deepcopy(net), copy.deepcopy(plain))


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
