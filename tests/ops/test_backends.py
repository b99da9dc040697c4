"""Which backend runs: the default, a forced one, the reasons; and that compiled code follows the choice."""

import dataclasses
import os
import subprocess
import sys
import warnings

import pytest
import torch
from calls import NAMES, convert, random_call, relative_error, tensors

from cmslap import ops
from cmslap.ops import dispatch, extension
from cmslap.ops.backend import Backend
from cmslap.ops.cpu import CPU
from cmslap.ops.operation import OPERATIONS

needs_extension = pytest.mark.skipif(extension.MISSING is not None, reason=str(extension.MISSING))


def upsampling_call(**changes):
    return random_call("tied_conv_transpose2d", N=2, Cin=5, Cout=3, H=4, W=7, **changes)


@needs_extension
def test_cpu_serves_float32_inference():
    explanation = ops.explain("tied_conv_transpose2d", **upsampling_call())
    assert explanation.backend == "cpu"
    assert explanation.others["reference"] == "cpu is preferred"
    assert "tied_conv_transpose2d runs on cpu" in str(explanation)


@pytest.fixture
def without_backward(monkeypatch):
    """A CPU backend that has forward kernels only."""
    forward_only = dataclasses.replace(dispatch.CPU, backward={})
    monkeypatch.setattr(dispatch, "BACKENDS", [forward_only if b is dispatch.CPU else b for b in dispatch.BACKENDS])


@needs_extension
@pytest.mark.usefixtures("without_backward")
def test_a_kernel_without_backward_is_not_chosen_for_training():
    explanation = ops.explain(ops.tied_conv_transpose2d, **upsampling_call(requires_grad=True))
    assert (explanation.backend, explanation.gradients) == ("reference", "reference")


@needs_extension
@pytest.mark.usefixtures("without_backward")
def test_forced_backend_takes_its_gradients_from_the_reference():
    arguments = upsampling_call(requires_grad=True)
    with ops.use_backend("cpu"):
        assert ops.explain("tied_conv_transpose2d", **arguments).backend == "cpu"
        result = ops.tied_conv_transpose2d(**arguments)
    grad = torch.randn_like(result)
    gradients = torch.autograd.grad(result, tensors(arguments), grad)
    exact = convert(arguments, dtype=torch.float64)
    expected = torch.autograd.grad(ops.tied_conv_transpose2d(**exact), tensors(exact), grad.double())
    assert all(relative_error(*pair) < 1e-5 for pair in zip(gradients, expected, strict=True))


@needs_extension
def test_forced_backend_compiles():
    torch._dynamo.reset()
    arguments = upsampling_call(requires_grad=True)
    compiled = torch.compile(ops.tied_conv_transpose2d, fullgraph=True, backend="aot_eager")
    for name in ("cpu", "reference", "cpu"):
        with ops.use_backend(name):
            eager, result = ops.tied_conv_transpose2d(**arguments), compiled(**arguments)
        torch.testing.assert_close(result, eager)
        gradients = [torch.autograd.grad(r.square().sum(), tensors(arguments)) for r in (result, eager)]
        torch.testing.assert_close(*gradients)


@needs_extension
def test_forced_backend_that_can_not_serve_says_why():
    arguments = convert(upsampling_call(), dtype=torch.float64)
    with ops.use_backend("cpu"), pytest.raises(ops.BackendError, match="not float64"):
        ops.tied_conv_transpose2d(**arguments)


@needs_extension
@pytest.mark.parametrize("name", ["conv2d_lrelu", "lapsrn_last_level"])
def test_explain_answers_where_the_call_would_fail(name):
    """So that whoever asks outside an autocast what will run inside it gets an answer."""
    arguments = random_call(name, torch.float64)
    with ops.use_backend("cpu"):
        explanation = ops.explain(name, **arguments)
        with pytest.raises(ops.BackendError):
            getattr(ops, name)(**arguments)
    for step in explanation.steps or (explanation,):
        assert (step.backend, step.gradients) == (None, None)
        assert "not float64" in step.others["cpu"]
        assert step.others["reference"] == "cpu is forced"
    assert "can't run\n" in str(explanation)


@pytest.mark.parametrize("backend", [b for b in dispatch.BACKENDS if b.missing], ids=lambda backend: backend.name)
def test_forced_backend_that_is_missing_says_why(backend):
    with ops.use_backend(backend.name), pytest.raises(ops.BackendError) as error:
        ops.tied_conv_transpose2d(**upsampling_call())
    assert backend.name in str(error.value)
    assert backend.missing in str(error.value)


def test_use_backend_restores_and_nests():
    with ops.use_backend("reference"):
        with ops.use_backend("cpu"):
            assert dispatch.forced() == "cpu"
        assert dispatch.forced() == "reference"


def test_unknown_backend():
    with (
        pytest.raises(ops.BackendError, match="must be one of cuda, triton, cpu, reference, got 'gpu'"),
        ops.use_backend("gpu"),
    ):
        pass


@pytest.mark.parametrize(("value", "expected"), [("reference", "reference"), ("gpu", "CMSLAP_BACKEND")])
@needs_extension
def test_environment_variable(value, expected):
    code = (
        "import torch; from cmslap import ops\n"
        "try: print(ops.explain('tied_conv_transpose2d', torch.ones(1, 2, 3, 4), torch.ones(2, 2, 3, 3)).backend)\n"
        "except ops.BackendError as error: print(error)"
    )
    environment = {**os.environ, "CMSLAP_BACKEND": value}
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert expected in result.stdout


@pytest.mark.parametrize("name", NAMES)
def test_explain_takes_every_operation(name):
    explanation = ops.explain(getattr(ops, name), **random_call(name))
    assert {explanation.backend, *explanation.others} == {backend.name for backend in dispatch.BACKENDS}


@needs_extension
def test_explain_says_when_the_last_level_is_two_operations():
    folded = ops.explain("lapsrn_last_level", **random_call("lapsrn_last_level"))
    assert (folded.backend, folded.steps) == ("cpu", ())
    trained = ops.explain("lapsrn_last_level", **random_call("lapsrn_last_level", requires_grad=True))
    assert (trained.operation, trained.backend, trained.gradients) == ("lapsrn_last_level", "cpu", "cpu")
    assert [(step.operation, step.gradients) for step in trained.steps] == [
        ("lapsrn_level", "cpu"),
        ("residual_head", "cpu"),
    ]
    assert "lapsrn_last_level runs as lapsrn_level and residual_head\nlapsrn_level runs on cpu" in str(trained)
    with ops.use_backend("reference"):
        assert len(ops.explain("lapsrn_last_level", **random_call("lapsrn_last_level")).steps) == 2


@needs_extension
@pytest.mark.parametrize("name", ["lapsrn_last_level", "dense_network"])
def test_fused_is_what_one_kernel_runs(name):
    def fused(**options):
        return ops.is_fused(getattr(ops, name), *random_call(name, **options).values())

    assert fused()
    assert not fused(requires_grad=True)
    with ops.use_backend("reference"):
        assert not fused()


@needs_extension
def test_the_last_level_saves_nothing_for_a_head_that_trains_alone():
    arguments = random_call("lapsrn_last_level", N=1, C=4, D=2, H=5, W=6)
    arguments["residual_weight"].requires_grad_()
    explanation = ops.explain("lapsrn_last_level", **arguments)
    assert [step.gradients for step in explanation.steps] == [None, "cpu"]
    gradient = torch.autograd.grad(ops.lapsrn_last_level(**arguments).sum(), arguments["residual_weight"])[0]
    exact = convert(arguments, dtype=torch.float64)
    result = OPERATIONS["lapsrn_last_level"].reference(**exact)
    assert relative_error(gradient, torch.autograd.grad(result.sum(), exact["residual_weight"])[0]) < 1e-4


def test_explain_refuses_what_is_no_operation():
    with pytest.raises(ops.ArgumentError, match="operation must be one of conv2d_lrelu"):
        ops.explain("conv3d")


def test_broken_extension_is_a_reason_not_a_traceback(tmp_path):
    library = tmp_path / "_CUDA.so"
    assert extension._load(library, "the CUDA extension") == "the CUDA extension is not built"
    (tmp_path / "_CUDA.txt").write_text("nvcc was not found\n")
    assert extension._load(library, "the CUDA extension") == "the CUDA extension is not built: nvcc was not found"
    library.write_bytes(b"not a library")
    reason = extension._load(library, "the CUDA extension")
    assert reason.startswith("the CUDA extension does not load: ")
    assert "Could not load this library" not in reason  # PyTorch's words; the loader's say why


@pytest.fixture
def plugged(monkeypatch):
    """A backend with forward and backward kernels of lapsrn_level, made of the reference, that counts its calls."""
    calls = []

    def maps(call):
        return (call.weights.shape[0] * call.recursions + 1, *call.u.shape)

    def forward(call):
        calls.append("forward")
        call.saved = torch.full(maps(call), 7.0, dtype=call.u.dtype) if call.save else None
        return OPERATIONS["lapsrn_level"].reference(**call.arguments)

    def backward(call):
        calls.append("backward")
        assert call.output is None
        assert (call.saved == 7).all()
        with torch.enable_grad():
            inputs = {name: call.arguments[name].detach().requires_grad_() for name in call.wanted}
            result = OPERATIONS["lapsrn_level"].reference(**{**call.arguments, **inputs})
        return dict(zip(call.wanted, torch.autograd.grad(result, list(inputs.values()), call.grad), strict=True))

    backend = Backend(
        "plugged", forward={"lapsrn_level": forward}, backward={"lapsrn_level": backward}, saved_shape=maps
    )
    monkeypatch.setattr(dispatch, "BACKENDS", (backend, *dispatch.BACKENDS))
    return calls


def test_kernels_plug_in(plugged):
    """Forward's saved activations reach the same backend's backward, in eager and in compiled code."""
    torch._dynamo.reset()
    arguments = random_call("lapsrn_level", requires_grad=True, optional=False, C=3, D=2, R=2)
    with ops.use_backend("reference"):
        expected = torch.autograd.grad(ops.lapsrn_level(**arguments).square().sum(), tensors(arguments))
    for function in (ops.lapsrn_level, torch.compile(ops.lapsrn_level, fullgraph=True)):
        plugged.clear()
        result = function(**arguments)
        torch.testing.assert_close(torch.autograd.grad(result.square().sum(), tensors(arguments)), expected)
        assert plugged[-2:] == ["forward", "backward"]
    with torch.no_grad():
        plugged.clear()
        ops.lapsrn_level(**arguments)
        assert plugged == ["forward"]


def test_the_first_slow_call_says_so(monkeypatch):
    """Where the CPU kernels were not built: once, and with the reason."""
    missing = dataclasses.replace(CPU, missing="the C++ extension is not built: no compiler")
    monkeypatch.setattr(dispatch, "CPU", missing)
    monkeypatch.setattr(dispatch, "BACKENDS", [missing if backend is CPU else backend for backend in dispatch.BACKENDS])
    x, weight = torch.rand(1, 2, 4, 4), torch.rand(2, 2, 3, 3)
    with pytest.warns(UserWarning, match=r"not built: no compiler; PyTorch's own.*slower"):
        ops.conv2d_lrelu(x, weight)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ops.conv2d_lrelu(x, weight)
