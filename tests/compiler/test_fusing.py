"""Compiled networks against themselves: nothing but the speed may differ."""

import copy
import io
import operator
import pickle

import pytest
import torch
from networks import NETWORKS
from torch import nn
from torch.overrides import TorchFunctionMode

import cmslap
from cmslap import ops
from cmslap.compiler.functional import functionalize
from cmslap.compiler.fusing import fuse
from cmslap.ops.extension import MISSING

RELEASE = tuple(map(int, torch.__version__.split(".")[:2]))

needs_kernels = pytest.mark.skipif(MISSING is not None, reason=str(MISSING))


def build(name):
    make, channels = NETWORKS[name]
    return make(), torch.randn(1, channels, 6, 10)


def flat(result):
    return [result] if isinstance(result, torch.Tensor) else list(result)


def run(net, x, part=None):
    """Outputs and the gradients of a random weighting of them, or a part of it, input first.

    Deterministic for equal shapes.
    """
    for parameter in net.parameters():
        parameter.grad = None
    x = x.detach().clone().requires_grad_()
    outputs = flat(net(x))
    generator = torch.Generator().manual_seed(0)
    products = [out * torch.randn(out.shape, generator=generator).to(out.dtype) for out in outputs]
    terms = torch.cat([product.flatten() for product in products])
    (terms if part is None else terms[part::PARTS]).sum().backward()
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
    report = cmslap.accelerate(net)
    with ops.use_backend("reference"):
        outputs, gradients = run(net, x.double())
    assert report.fused
    expected, expected_gradients = run(plain, x.double())
    assert_close(outputs, expected, 1e-12)
    assert_close(gradients, expected_gradients, 1e-11)
    assert_close(net.state_dict().values(), plain.state_dict().values(), 1e-12)  # running statistics too
    assert [out.is_contiguous() for out in outputs] == [out.is_contiguous() for out in expected]


PARTS = 8


def term_norms(net, x):
    """Of the gradients, parameters' and input's: what the parts they are the sums of, over the outputs, come to.

    A gradient that is nearly zero because its terms cancel can't be nearer to the truth than they are.
    """
    total = None
    for part in range(PARTS):
        gradients = run(net, x, part)[1]
        norms = [None if gradient is None else gradient.norm() for gradient in gradients]
        total = norms if total is None else [a if a is None else a + b for a, b in zip(total, norms, strict=True)]
    return total


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
    for gradient, truth, terms in zip(gradients, expected_gradients, term_norms(exact, x.double()), strict=True):
        assert gradient is None if truth is None else (gradient - truth).norm() <= 1e-5 * terms


def conv(channels=16):
    return nn.Conv2d(channels, channels, 3, padding=1)


class Snippet(nn.Module):
    """A forward of a few lines, with two convolutions at hand."""

    def __init__(self, code):
        super().__init__()
        self.a, self.b = conv(), conv()
        self.relu_ = nn.ReLU(inplace=True)
        self.steps, self.factor = 2, 0.5
        self.register_buffer("count", torch.zeros(()))
        self.code = code

    def forward(self, x):
        return self.code(self, x)


def activates_its_skip(self, x):
    x = x * 1
    return self.a(self.relu_(x)) + x


def reads_the_sum_before_it_is_activated(self, x):
    y = self.a(x)
    return y + torch.relu(y)


def activates_in_place_and_drops_the_result(self, x):
    y = self.a(x)
    self.relu_(y)
    return y + self.b(y)


def adds_into_the_skip(self, x):
    skip = self.a(x) * 1
    y = self.b(skip)
    before = skip
    skip += y
    return skip * before


def scales_a_view(self, x):
    y = self.a(x)
    y[:, :8].mul_(2)
    return y


def scales_then_adds_in_place(self, x):
    y = self.a(x)
    y *= self.factor
    y += x
    return y.relu_()


def changes_the_input_before_activating(self, x):
    x = x * 1
    y = self.a(x)
    x.mul_(2)
    return torch.relu(y) + x


def changes_the_skip_before_activating(self, x):
    skip = x * 1
    y = self.a(x) + skip
    skip.mul_(2)
    return torch.relu(y) + skip


def adds_itself(self, x):
    y = self.a(x)
    return y + y


def adds_a_number(self, x):
    return torch.relu(self.a(x) + 1)


def broadcasts_the_skip(self, x):
    return torch.relu(self.a(x) + x.mean((2, 3), keepdim=True))


def adds_with_a_factor(self, x):
    return torch.add(self.a(x), x, alpha=2).relu()


def takes_a_view_that_needs_contiguous_memory(self, x):
    return self.a(x).view(x.shape[0], -1)


def calls_with_keywords(self, x):
    return torch.nn.functional.leaky_relu(self.a(input=x), negative_slope=0.3, inplace=True)


def repeats_by_an_attribute(self, x):
    for _ in range(self.steps):
        x = self.b(torch.relu(self.a(torch.relu(x)))) + x
    return x


def recurs_without_activation_at_the_end(self, x):
    h = x
    for _ in range(3):
        h = self.b(torch.relu(self.a(torch.relu(h)))) + x
    return h


SNIPPETS = [
    *(activates_its_skip, reads_the_sum_before_it_is_activated, activates_in_place_and_drops_the_result),
    *(scales_a_view, scales_then_adds_in_place, adds_itself, adds_a_number, broadcasts_the_skip, adds_with_a_factor),
    *(takes_a_view_that_needs_contiguous_memory, calls_with_keywords, repeats_by_an_attribute),
    *(changes_the_skip_before_activating, recurs_without_activation_at_the_end),
]
WITHOUT_GRADIENTS = [adds_into_the_skip, changes_the_input_before_activating]  # PyTorch can't differentiate them


@pytest.mark.parametrize("code", SNIPPETS + WITHOUT_GRADIENTS, ids=operator.attrgetter("__name__"))
def test_order_and_aliases_are_kept(code):
    net, x = Snippet(code).double(), torch.randn(1, 16, 6, 5).double()
    plain = copy.deepcopy(net)
    cmslap.accelerate(net)
    with torch.no_grad(), ops.use_backend("reference"):
        assert_close(flat(net(x)), flat(plain(x)), 1e-12)


@pytest.mark.parametrize("code", SNIPPETS, ids=operator.attrgetter("__name__"))
@pytest.mark.parametrize("backend", ["reference", pytest.param("cpu", marks=needs_kernels)])
def test_backward_finds_what_it_needs(code, backend):
    """No result that an operation keeps is changed in place."""
    net = Snippet(code)
    plain, x = copy.deepcopy(net), clear_input(net, torch.randn(1, 16, 6, 5))
    cmslap.accelerate(net)
    with ops.use_backend(backend):
        outputs, gradients = run(net, x)
    expected, expected_gradients = run(plain.double(), x.double())
    assert_close(outputs, expected, 1e-5)
    assert_close(gradients, expected_gradients, 1e-4)


@pytest.fixture(params=["vdsr", "ms-lapsrn", "unet"])
def pair(request):
    """A plain network, the same accelerated, and an input."""
    plain, x = build(request.param)
    net = copy.deepcopy(plain)
    cmslap.accelerate(net)
    with ops.use_backend("reference"):
        yield plain, net, x


def runs_fused(net, x):
    """Whether calling ``net`` reaches an operator of ours."""
    with torch.profiler.profile() as profile:
        net(x)
    return any(event.key.startswith("cmslap::") for event in profile.key_averages())


def test_parameters_and_names_stay(pair):
    plain, _, _ = pair
    before = dict(plain.named_parameters()), list(plain.state_dict()), [name for name, _ in plain.named_modules()]
    cmslap.accelerate(plain)
    after = dict(plain.named_parameters()), list(plain.state_dict()), [name for name, _ in plain.named_modules()]
    assert before[1:] == after[1:]
    assert all(before[0][name] is after[0][name] for name in before[0])


def test_restore_undoes_everything(pair):
    plain, _, x = pair
    before = {module: dict(vars(module)) for module in plain.modules()}
    cmslap.accelerate(plain)
    cmslap.accelerate(plain)
    assert runs_fused(plain, x)
    cmslap.restore(plain)
    cmslap.restore(plain)
    assert not runs_fused(plain, x)
    assert {module: dict(vars(module)) for module in plain.modules()} == before


def test_restore_leaves_other_compilations_alone():
    net = nn.Sequential(conv())
    net[0].compile(backend="eager")
    before = net[0]._compiled_call_impl
    cmslap.accelerate(net)
    cmslap.restore(net)
    assert net[0]._compiled_call_impl is before


def test_copies_are_their_own_and_not_compiled(pair):
    """As PyTorch's own copies of compiled modules."""
    plain, net, x = pair
    net(x)
    file = io.BytesIO()
    torch.save(net, file)
    file.seek(0)
    copies = copy.deepcopy(net), torch.load(file, weights_only=False), pickle.loads(pickle.dumps(net))
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.zero_()
    for other in copies:
        assert not runs_fused(other, x)
        assert_close(flat(other(x)), flat(plain(x)), 1e-6)


def test_state_dict_loads_both_ways(pair):
    plain, net, x = pair
    fresh = {name: torch.rand_like(tensor) for name, tensor in plain.state_dict().items() if tensor.is_floating_point()}
    for assign in (False, True):
        plain.load_state_dict(copy.deepcopy(fresh), strict=False, assign=assign)
        net.load_state_dict(copy.deepcopy(fresh), strict=False, assign=assign)
        assert_close(flat(net(x)), flat(plain(x)), 1e-5)
        fresh = {name: tensor / 2 for name, tensor in fresh.items()}


def test_dtype_moves(pair):
    plain, net, x = pair
    assert_close(flat(net.double()(x.double())), flat(plain.double()(x.double())), 1e-12)


def test_devices_without_autocast():
    net, x = build("vdsr")
    cmslap.accelerate(net)
    assert net.to("meta")(x.to("meta")).shape == x.shape


def test_optimizer_made_before_trains_it(pair):
    _, net, x = pair
    cmslap.restore(net)
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-3)
    cmslap.accelerate(net)
    before = [parameter.clone() for parameter in net.parameters()]
    run(net, x)
    optimizer.step()
    assert any(not torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))


def record(calls, name):
    return lambda module, args, output=None: calls.append(name)


def test_hooks_fire():
    net, x = Snippet(repeats_by_an_attribute), torch.randn(1, 16, 6, 5)
    calls, expected = [], net(x)
    net.register_forward_hook(record(calls, "net"))
    net.a.register_forward_pre_hook(record(calls, "a"))
    cmslap.accelerate(net)
    torch.testing.assert_close(net(x), expected)
    assert calls == ["a", "a", "net"]


@pytest.mark.parametrize(
    "change",
    [
        lambda net: setattr(net, "steps", 3),
        lambda net: setattr(net, "a", nn.Conv2d(16, 16, 3, padding=1, padding_mode="reflect")),
        lambda net: setattr(net.a, "padding_mode", "circular"),
        lambda net: setattr(net.b, "forward", lambda x: x),
        lambda net: nn.utils.parametrizations.weight_norm(net.a),
        lambda net: nn.utils.parametrizations.spectral_norm(net.b).eval(),
    ],
)
def test_later_changes_count(change):
    net, x = Snippet(repeats_by_an_attribute), torch.randn(1, 16, 6, 5)
    plain = copy.deepcopy(net)
    cmslap.accelerate(net)
    for network in (net, plain):
        torch.manual_seed(0)
        change(network)
    torch.testing.assert_close(net(x), plain(x))


def test_special_convolutions_are_left_alone():
    class Own(nn.Conv2d):
        def forward(self, x):
            return super().forward(x).abs()

    net = nn.Sequential(
        nn.utils.parametrizations.weight_norm(conv()),
        nn.utils.parametrizations.spectral_norm(conv()),
        nn.Conv2d(16, 16, 3, padding=1, padding_mode="reflect"),
        nn.Conv2d(16, 16, 3, padding=1, groups=4),
        nn.Conv2d(16, 16, 3, padding=2, dilation=2),
        Own(16, 16, 3, padding=1),
    ).eval()
    x = torch.randn(1, 16, 6, 5)
    expected = net(x)
    report = cmslap.accelerate(net)
    with ops.use_backend("reference"):
        torch.testing.assert_close(net(x), expected)
    reasons = {row.module: row.reason for row in report.left}
    assert reasons["2"] == "padding 0×0; only 1 is"  # it pads the image before
    assert reasons["3"] == "groups 4; only 1 is"
    assert reasons["4"] == "padding 2×2; only 1 is"
    assert {name for row in report.fused for name in row.modules} == {"0", "1", "5"}


def test_arguments_with_defaults():
    net, x = build("unet")
    net.eval()
    plain = copy.deepcopy(net)
    cmslap.accelerate(net)
    for call in (lambda n: n(x=x), lambda n: n(x, None), lambda n: n(x, scale=2.0), lambda n: n(x, 3)):
        torch.testing.assert_close(call(net), call(plain))
    for wrong in (lambda n: n(), lambda n: n(x, None, 1), lambda n: n(x, size=2)):
        with pytest.raises(TypeError):
            wrong(net)


@pytest.mark.parametrize("layer", [conv, lambda: nn.ConvTranspose2d(16, 16, 3, stride=2)])
def test_unbatched_images(layer):
    net, x = nn.Sequential(layer(), nn.ReLU()), torch.randn(16, 6, 5)
    expected = net(x)
    cmslap.accelerate(net)
    torch.testing.assert_close(net(x), expected)


@pytest.mark.parametrize("name", ["edsr", "ms-lapsrn", "unet"])
def test_autocast_and_bfloat16_give_the_same_dtypes(name):
    net, x = build(name)
    plain = copy.deepcopy(net)
    cmslap.accelerate(net)
    with torch.autocast("cpu", torch.bfloat16):
        outputs, expected = flat(net(x)), flat(plain(x))
    assert [out.dtype for out in outputs] == [out.dtype for out in expected]
    assert_close(outputs, expected, 1e-2)
    assert_close(flat(net.bfloat16()(x.bfloat16())), flat(plain.bfloat16()(x.bfloat16())), 1e-2)


@needs_kernels
@pytest.mark.parametrize(
    "transform",
    [
        lambda net, x: torch.func.vmap(net)(x[None]),
        lambda net, x: torch.func.jvp(net, (x,), (x.flip(3),))[1],
        lambda net, x: torch.func.grad(lambda x: net(x).square().sum())(x),
        lambda net, x: torch.func.functional_call(net, {n: 2 * p for n, p in net.named_parameters()}, (x,)),
        pytest.param(
            lambda net, x: torch.export.export(net, (x,)).module()(x),
            marks=pytest.mark.skipif(RELEASE < (2, 11), reason="Dynamo of PyTorch 2.10 guards on torch.export's mode"),
        ),
        lambda net, x: torch.inference_mode()(net)(x),
        lambda net, x: torch.fx.symbolic_trace(net)(x),
    ],
)
def test_transforms(transform):
    net = nn.Sequential(conv(), nn.LeakyReLU(0.3))
    plain, x = copy.deepcopy(net), torch.randn(2, 16, 6, 5)
    cmslap.accelerate(net)
    with ops.use_backend("cpu"):
        torch.testing.assert_close(transform(net, x), transform(plain, x))


@needs_kernels
def test_layouts_are_kept():
    """channels_last where the user has it, and only there."""
    net = nn.Sequential(conv(), nn.ReLU(), conv())
    cmslap.accelerate(net)
    x = torch.randn(2, 16, 6, 5)
    last = x.contiguous(memory_format=torch.channels_last)
    with ops.use_backend("cpu"):
        assert net(x).is_contiguous()
        assert net(last).is_contiguous(memory_format=torch.channels_last)
        net.to(memory_format=torch.channels_last)
        if RELEASE >= (2, 12):  # Dynamo of 2.10 and 2.11 does not guard on a parameter's memory format
            assert net(x).is_contiguous(memory_format=torch.channels_last)


@needs_kernels
@pytest.mark.parametrize("name", ["ms-lapsrn", "cms-lapsrn"])
def test_a_recursive_block_has_one_gradient_buffer(name):
    """Its kernels' gradients, of all recursions and levels, lie in one piece of memory."""
    net, x = build(name)
    report = cmslap.accelerate(net)
    with ops.use_backend("cpu"):
        run(net, x)
    operations = [("conv2d_lrelu", 1), ("lapsrn_level", 2), ("conv2d_lrelu", 2)]
    assert [(row.operation, row.calls) for row in report.fused] == operations
    kernels = [net.embedding.block[i].weight for i in (1, 3)]
    assert len({kernel.grad.untyped_storage().data_ptr() for kernel in kernels}) == 1


def test_what_lies_around_fused_convolutions():
    """Factors go into kernels; PyTorch's convolutions take channels_last, and what follows them works in place."""
    found = []

    def collect(gm, inputs):
        functional = functionalize(gm, inputs)
        rows, _ = fuse(functional.graph, True, {})
        found.append((rows, functional.graph))
        return gm

    with ops.use_backend("reference"):
        for name in ("edsr-scaled", "msrn"):
            net, x = build(name)
            torch.compile(net, backend=collect)(x)
    (scaled, _), (_, graph) = found
    assert sum(row.calls for row in scaled if "skip" in row.text) == 3
    images = [node.args[0] for node in graph.find_nodes(op="call_function", target=torch.ops.aten.conv2d.default)]
    assert all(image.kwargs == {"memory_format": torch.channels_last} for image in images)
    targets = [node.target for node in graph.nodes]
    assert torch.ops.aten.add_.Tensor in targets
    assert torch.ops.aten.relu_.default in targets
    assert torch.ops.aten.relu.default not in targets


def test_small_convolutions_run_on_pytorch():
    net, x = nn.Sequential(conv(), nn.ReLU(inplace=True)), torch.randn(1, 16, 6, 5)
    report = cmslap.accelerate(net)
    assert not runs_fused(net, x)
    assert [row.reason for row in report.left] == ["too small an image: PyTorch is as fast"]


def test_report_reads_well():
    net, x = build("ms-lapsrn")
    report = cmslap.accelerate(net)
    assert str(report) == "nothing compiled yet: the report fills at the first call"
    with ops.use_backend("reference"):
        net(x)
    text = str(report)
    assert text.splitlines()[0] == "5 convolutions fused, 1 module left alone"
    assert "lapsrn_level" in text
    assert "3 recursions of 2 convolutions" in text
    assert "only 3×3 kernels are" in text


def test_accelerates_what_is_wrapped():
    class Wrapper(nn.Module):
        def __init__(self, module):
            super().__init__()
            self.module = module

        def forward(self, *args, **kwargs):
            return self.module(*args, **kwargs)

    net, x = build("vdsr")
    net = Wrapper(net)
    cmslap.accelerate(net)
    with ops.use_backend("reference"):
        assert runs_fused(net, x)
