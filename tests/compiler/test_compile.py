"""``torch.compile(net, backend="cmslap")`` as a user meets it: registration, sizes, the rest of a graph, processes."""

import copy
import os
import subprocess
import sys
import textwrap

import pytest
import torch
from networks import Gated
from test_fusing import Snippet, assert_close, build, conv, needs_kernels, run, runs_fused
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend

import cmslap
from cmslap import ops


def python(code, **environment):
    """Run a script in a new process; what it printed, and what went to stderr."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout, done.stderr


@needs_kernels
def test_nothing_needs_importing(tmp_path):
    """The entry point finds the backend; the log says what was fused."""
    out, log = python(
        """
        import copy, torch
        net = torch.nn.Sequential(torch.nn.Conv2d(16, 16, 3, padding=1), torch.nn.PReLU(), torch.nn.Sigmoid())
        x, exact = torch.rand(1, 16, 160, 160), copy.deepcopy(net).double()
        y = torch.compile(net, backend="cmslap")(x)
        y.sum().backward()
        truth = exact(x.double())
        truth.sum().backward()
        error = max((p.grad - q.grad).norm() / q.grad.norm() for p, q in zip(net.parameters(), exact.parameters()))
        print(torch.allclose(y.double(), truth, atol=1e-5), float(error) < 1e-4)
        """,
        TORCH_LOGS="cmslap",
        TORCHINDUCTOR_CACHE_DIR=str(tmp_path),
    )
    assert out.split() == ["True", "True"]
    assert "1 convolution fused, 0 modules left alone" in log


@pytest.mark.parametrize("fused", [False, pytest.param(True, marks=needs_kernels)])
def test_inductor_compiles_what_has_nothing_fused(inductor, fused):
    net, x = nn.Sequential(conv(), nn.PReLU(), nn.Sigmoid()), torch.randn(1, 16, 6, 10)
    exact = copy.deepcopy(net).double()
    with ops.use_backend("cpu" if fused else None), torch.no_grad():
        compiled = torch.compile(net, backend="cmslap", fullgraph=True)
        assert_close([compiled(x)], [exact(x.double())], 1e-5)
        with torch.profiler.profile() as profile:
            compiled(x)
    names = {event.key for event in profile.key_averages()}
    assert ("cmslap::conv2d_lrelu" in names) == ("aten::sigmoid" in names) == fused


def compilations(net, sizes, **options):
    """How often calls with images of these sizes compile, each compared with the network itself."""
    counter, plain = CompileCounterWithBackend("cmslap"), copy.deepcopy(net)
    compiled = torch.compile(net, backend=counter, **options)
    for height, width in sizes:
        x = torch.rand(1, 16, height, width)
        torch.testing.assert_close(compiled(x), plain(x), rtol=1e-4, atol=1e-5)
    return counter.frame_count


SIZES = [(160, 168), (164, 170), (200, 161), (171, 333)]


@needs_kernels
def test_sizes_that_vary_compile_once():
    net = nn.Sequential(conv(), nn.ReLU(), conv(), nn.ReLU())
    assert compilations(net, SIZES, dynamic=True) == 1
    torch._dynamo.reset()
    assert compilations(net, SIZES) == 2  # PyTorch's own way: the second size is the first to vary


@needs_kernels
def test_the_choice_by_size_is_a_guard():
    """Smaller images than pay run on PyTorch, in a graph of their own."""
    net = nn.Sequential(conv(), nn.ReLU())
    assert compilations(net, [*SIZES, (20, 26), (24, 30), (161, 180)], dynamic=True) == 2
    report = cmslap.accelerate(net)
    for size, fused in ((20, False), (24, False), (160, True), (170, True), (20, False)):
        assert runs_fused(net, torch.rand(1, 16, size, size)) is fused
    assert len(report.fused) == len(report.left) == 1


@needs_kernels
@pytest.mark.parametrize("name", ["ms-lapsrn", "cms-lapsrn"])
def test_levels_of_any_size(name):
    net, _ = build(name)
    exact = copy.deepcopy(net).double()
    report = cmslap.accelerate(net, dynamic=True)
    for size in ((6, 10), (7, 13)):
        x = torch.rand(1, 1, *size)
        with ops.use_backend("cpu"):
            outputs, gradients = run(net, x)
        expected, expected_gradients = run(exact, x.double())
        assert_close(outputs, expected, 1e-5)
        assert_close(gradients, expected_gradients, 1e-2)
    operations = [("conv2d_lrelu", 1), ("lapsrn_level", 2), ("conv2d_lrelu", 2)]
    assert [(row.operation, row.calls) for row in report.fused] == operations


class Pair(nn.Module):
    """A 3×3 convolution as two, with what may come between and after."""

    def __init__(self, first=(3, 1), bias=False, between=None, middle=16, kind=nn.Conv2d):
        super().__init__()
        second = first[::-1]
        self.first = nn.Conv2d(16, middle, first, padding=(first[0] // 2, first[1] // 2), bias=bias)
        self.second = kind(middle, 24, second, padding=(second[0] // 2, second[1] // 2))
        self.between = between or nn.Identity()

    def forward(self, x):
        return torch.relu(self.second(self.between(self.first(x))))


@pytest.mark.parametrize("first", [(3, 1), (1, 3)])
def test_asymmetric_pairs_become_one_convolution(first):
    """Exact at the border, too."""
    net = Pair(first).double()
    plain, x = copy.deepcopy(net), torch.randn(2, 16, 5, 6).double()
    report = cmslap.accelerate(net)
    with ops.use_backend("reference"):
        outputs, gradients = run(net, x)
    expected, expected_gradients = run(plain, x)
    assert_close(outputs, expected, 1e-12)
    assert_close(gradients, expected_gradients, 1e-11)
    assert [row.text for row in report.fused] == ["conv 3×3 16→24 + ReLU"]


@pytest.mark.parametrize(
    "options", [{"bias": True}, {"between": nn.ReLU()}, {"middle": 8}, {"kind": nn.ConvTranspose2d}]
)
def test_other_pairs_stay_two(options):
    """A bias between them stops at the image's border, a narrow middle multiplies less, a transposed one is another."""
    net = Pair(**options)
    plain, x = copy.deepcopy(net), torch.randn(1, 16, 5, 6)
    report = cmslap.accelerate(net)
    with ops.use_backend("reference"):
        torch.testing.assert_close(net(x), plain(x))
    assert not report.fused


@needs_kernels
@pytest.mark.parametrize("slopes", [1, 16])
def test_learned_slopes(slopes):
    """Their gradients are not by PyTorch's kernel, which has no vector instructions."""
    net = nn.Sequential(conv(), nn.PReLU(slopes))
    nn.init.normal_(net[1].weight)  # below zero, too
    exact, x = copy.deepcopy(net).double(), torch.randn(1, 16, 6, 5)
    report = cmslap.accelerate(net)
    with ops.use_backend("cpu"), torch.profiler.profile() as profile:
        outputs, gradients = run(net, x)
    assert "aten::_prelu_kernel_backward" not in {event.key for event in profile.key_averages()}
    expected, expected_gradients = run(exact, x.double())
    assert_close(outputs, expected, 1e-5)
    assert_close(gradients, expected_gradients, 1e-4)
    assert [row.text for row in report.fused] == ["conv 3×3 16→16"]


def checkpoints(self, x):
    return torch.utils.checkpoint.checkpoint(lambda x: torch.relu(self.a(x)), x, use_reentrant=False)


class Flipped(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return -grad


def has_a_gradient_of_its_own(self, x):
    return Flipped.apply(self.a(x))


def autocasts(self, x):
    with torch.autocast("cpu", torch.bfloat16):
        y = self.a(x)
    return self.b(y.float())


def returns_a_view_of_what_it_changes(self, x):
    self.count += 1
    return self.a(x) * self.count, self.count.view(1)


def prints(self, x):
    y = self.a(x)
    torch.ops.aten._print("as it runs")
    return torch.relu(y)


UNFIT = {
    checkpoints: "it holds tag_activation_checkpoint",
    has_a_gradient_of_its_own: "it holds autograd_function_apply",
    autocasts: "it turns autocast on",
    prints: "it holds operators whose effects have an order",
    returns_a_view_of_what_it_changes: "it returns a view of an input that it changes",
}


@pytest.mark.parametrize("code", UNFIT, ids=lambda code: code.__name__)
def test_what_has_no_functional_form_runs_as_it_is(code):
    net, x = Snippet(code), torch.randn(1, 16, 6, 5)
    plain = copy.deepcopy(net)
    report = cmslap.accelerate(net)
    with ops.use_backend("reference"):
        outputs, gradients = run(net, x)
    expected, expected_gradients = run(plain, x)
    assert_close(outputs, expected, 1e-6)
    assert_close(gradients, expected_gradients, 1e-5)
    assert [row.reason for row in report.left] == [UNFIT[code]]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda value: value.double(), "float64; only float32 is"),
        (lambda value: value.bfloat16(), "bfloat16; only float32 is"),
        (lambda value: value.to("meta"), "no kernel on meta"),
    ],
)
def test_what_no_kernel_serves_runs_on_pytorch_and_the_report_says_so(change, reason):
    net, x = change(conv()), change(torch.rand(1, 16, 160, 160))
    expected = net(x)
    report = cmslap.accelerate(net)
    result = net(x)
    assert (result.dtype, result.device, result.shape) == (expected.dtype, expected.device, expected.shape)
    assert not report.fused
    assert [row.reason for row in report.left] == [reason]


def test_autocast_is_pytorchs():
    net, x = conv(), torch.rand(1, 16, 160, 160)
    report = cmslap.accelerate(net)
    with torch.autocast("cpu", torch.bfloat16):
        assert net(x).dtype == torch.bfloat16
    assert "autocast is on" in report.left[0].reason


class Statistics(nn.Module):
    """Buffers that a forward changes."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = conv(), nn.BatchNorm2d(16)
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, x):
        self.calls += 1
        return torch.relu(self.norm(self.conv(x))) * self.calls


def test_buffers_stay_the_same_objects():
    net, x = Statistics(), torch.randn(2, 16, 6, 5)
    plain, before = copy.deepcopy(net), dict(net.named_buffers())
    report = cmslap.accelerate(net)
    with ops.use_backend("reference"):
        for _ in range(3):
            outputs, gradients = run(net, x)
            expected, expected_gradients = run(plain, x)
            assert_close(outputs, expected, 1e-6)
            del gradients[2], expected_gradients[2]  # the convolution's bias, which the norm takes out
            assert_close(gradients, expected_gradients, 1e-4)
    assert report.fused
    assert all(before[name] is buffer for name, buffer in net.named_buffers())
    assert_close(before.values(), dict(plain.named_buffers()).values(), 1e-6)
    assert not any(buffer.requires_grad for buffer in net.buffers())


def tie(net):
    net.b.weight, net.b.bias = net.a.weight, net.a.bias


@pytest.mark.parametrize("when", ["before", "after"])
def test_weights_tied_after_construction(when):
    net, x = Snippet(lambda self, x: self.b(torch.relu(self.a(x)))), torch.randn(1, 16, 6, 5)
    plain = copy.deepcopy(net)
    cmslap.accelerate(net)
    with ops.use_backend("reference"):
        if when == "after":
            run(net, x)
        tie(net)
        tie(plain)
        outputs, gradients = run(net, x)
    expected, expected_gradients = run(plain, x)
    assert_close(outputs, expected, 1e-6)
    assert_close(gradients, expected_gradients, 1e-5)


@pytest.mark.parametrize("sign", [1, -1])
def test_a_branch_decided_by_data(sign):
    net, x = Gated().double(), sign * torch.randn(1, 16, 6, 5).abs().double()
    plain = copy.deepcopy(net)
    report = cmslap.accelerate(net)
    with ops.use_backend("reference"):
        outputs, gradients = run(net, x)
    expected, expected_gradients = run(plain, x)
    assert_close(outputs, expected, 1e-12)
    assert_close([g for g in gradients if g is not None], [g for g in expected_gradients if g is not None], 1e-11)
    assert {name for row in report.fused for name in row.modules} >= {"before.0", "after.0"}


RANK = """
import sys, torch, torch.distributed.nn  # before the group stands: imported later, it keeps the group's threads alive
from torch import nn
from torch.nn.parallel import DistributedDataParallel

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(16, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)
    def forward(self, x):
        return torch.relu_(self.b(torch.relu_(self.a(x))))

rank, folder = int(sys.argv[1]), sys.argv[2]
torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/sync", rank=rank, world_size=2)
torch.manual_seed(0)
net = Net()
images = torch.rand(2, 16, 160, 160)
parallel = torch.compile(DistributedDataParallel(net), backend="cmslap")
with torch.profiler.profile() as profile:
    (parallel(images[rank : rank + 1]).square().mean()).backward()
assert any(event.key == "cmslap::conv2d_lrelu" for event in profile.key_averages())
torch.save([parameter.grad for parameter in net.parameters()], f"{folder}/{rank}.pt")
torch.distributed.destroy_process_group()
"""


@needs_kernels
def test_two_processes_average_gradients(tmp_path):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    script = tmp_path / "rank.py"
    script.write_text(RANK)
    commands = [[sys.executable, str(script), str(rank), str(tmp_path)] for rank in range(2)]
    processes = [subprocess.Popen(c, env=environment, stderr=subprocess.PIPE, text=True) for c in commands]
    for process in processes:
        _, error = process.communicate()
        assert process.returncode == 0, error[-3000:]
    torch.manual_seed(0)
    net = nn.Sequential(conv(), nn.ReLU(), conv(), nn.ReLU())
    images = torch.rand(2, 16, 160, 160)
    (net.double()(images.double()).square().mean()).backward()
    for rank in range(2):
        assert_close(torch.load(tmp_path / f"{rank}.pt"), [p.grad for p in net.parameters()], 1e-4)


def test_options_are_inductors(inductor, monkeypatch):
    given = {}

    def compile_fx(gm, inputs, config_patches, **others):
        given.update(config_patches)
        return gm

    monkeypatch.setattr("torch._inductor.compile_fx.compile_fx", compile_fx)
    for each in ({"mode": "max-autotune-no-cudagraphs"}, {"options": {"fallback_random": True}}):
        torch.compile(nn.Sequential(conv()), backend="cmslap", **each)(torch.rand(1, 16, 6, 5))
    assert given["max_autotune"] is given["fallback_random"] is True


def test_networks_of_ours_compile_as_they_are():
    net, x = cmslap.CMSLapSRN(2, depth=2, recursions=2, channels=16, shared_conv=1), torch.rand(1, 1, 8, 9)
    expected = net(x)
    torch.testing.assert_close(torch.compile(net, backend="cmslap")(x), expected)


def test_instances_of_one_class_have_their_own_reports():
    nets = [nn.Sequential(conv(), nn.ReLU()) for _ in range(10)]
    reports = [cmslap.accelerate(net) for net in nets]
    with ops.use_backend("reference"):
        for net in nets:
            net(torch.rand(1, 16, 6, 5))
    assert all(report.fused for report in reports)
