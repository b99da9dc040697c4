"""The dispatcher operators ``torch.ops.cmslap.*``: opcheck, derivatives, memory format, autocast, export, compile."""

import pytest
import torch
from calls import NAMES, convert, random_call, tensors
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.utils.flop_counter import FlopCounterMode

import cmslap
from cmslap.ops import dispatch
from cmslap.ops.backend import Backend, Call
from cmslap.ops.operation import OPERATIONS, memory_format

SMALL = {"N": 2, "C": 3, "Cin": 3, "Cout": 2, "D": 2, "R": 2, "H": 4, "W": 3}


def operator(name):
    return getattr(torch.ops.cmslap, name)


def inputs(name, arguments):
    return (*arguments.values(), True, "") if OPERATIONS[name].saves else (*arguments.values(), "")


def output(name, result):
    return result[0] if OPERATIONS[name].saves else result


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("dtype", "layout"), [(torch.float32, torch.channels_last), (torch.float64, torch.contiguous_format)], ids=str
)
def test_opcheck(name, dtype, layout):
    arguments = random_call(name, dtype, requires_grad=True, **SMALL)
    first = next(iter(OPERATIONS[name].shapes))
    arguments[first] = arguments[first].detach().contiguous(memory_format=layout).requires_grad_()
    torch.library.opcheck(operator(name).default, inputs(name, arguments))


@pytest.mark.parametrize("name", [name for name in NAMES if OPERATIONS[name].saves])
@pytest.mark.parametrize("recompute", [False, True])
def test_the_shape_of_what_is_saved_may_be_dynamic(name, recompute):
    """Sizes that are no plain integers: symbols while something is traced."""
    environment = ShapeEnv()
    with FakeTensorMode(shape_env=environment) as mode:
        arguments = {
            n: mode.from_tensor(v, static_shapes=False) if isinstance(v, torch.Tensor) else v
            for n, v in random_call(name, optional=False, **SMALL).items()
        }
        call = Call(OPERATIONS[name], arguments | {"recompute": recompute}, save=True)
        shape = dispatch.CPU.saved_shape(call)
        assert all(type(size) in (int, torch.SymInt) for size in shape)
        assert call.new_saved(torch.float32).shape == torch.Size(shape)


@pytest.mark.parametrize("name", NAMES)
def test_opcheck_backward(name, monkeypatch):
    """With a kernel whose gradients have an unusual dtype and layout."""

    def kernel(call):
        tensors = {name: call.arguments[name].double() for name in call.wanted}
        return {name: tensor.transpose(0, -1).contiguous().transpose(0, -1) for name, tensor in tensors.items()}

    backend = Backend("plugged", backward={name: kernel})
    monkeypatch.setattr(dispatch, "BACKENDS", (backend,))
    arguments = random_call(name, **SMALL)
    result = OPERATIONS[name].empty_output(arguments)
    wanted = [arguments[argument] is not None for argument in OPERATIONS[name].shapes]
    torch.library.opcheck(
        operator(f"{name}_backward").default, (result, result, None, *arguments.values(), wanted, backend.name)
    )


@pytest.mark.parametrize("name", NAMES)
def test_first_and_second_derivatives(name):
    arguments = random_call(name, torch.float64, requires_grad=True, N=1, C=2, Cin=2, Cout=2, D=2, R=2, H=3, W=2)
    names = [argument for argument, value in arguments.items() if isinstance(value, torch.Tensor)]

    def function(*values):
        given = {**arguments, **dict(zip(names, values, strict=True))}
        return output(name, operator(name)(*inputs(name, given)))

    assert torch.autograd.gradcheck(function, tensors(arguments))
    assert torch.autograd.gradgradcheck(function, tensors(arguments))


def test_one_tensor_as_two_arguments():
    """Neither the first nor the second derivative counts a tensor twice that is both input and skip."""
    x = torch.randn(1, 2, 3, 4, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(2, 2, 3, 3, dtype=torch.float64, requires_grad=True)

    def function(x, weight):
        return torch.ops.cmslap.conv2d_lrelu(x, weight, None, x, 0.2, "")

    assert torch.autograd.gradcheck(function, (x, weight))
    assert torch.autograd.gradgradcheck(function, (x, weight))


@pytest.mark.parametrize("name", NAMES)
def test_gradients_under_a_dispatch_mode(name):
    """As the counters and profilers built on one see them."""
    arguments = random_call(name, torch.float64, requires_grad=True, **SMALL)
    with FlopCounterMode(display=False):
        output(name, operator(name)(*inputs(name, arguments))).sum().backward()
    assert all(tensor.grad is not None for tensor in tensors(arguments))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_memory_format_follows_the_input(name, layout):
    arguments = convert(random_call(name, N=2, C=3, Cin=3, Cout=3, H=4, W=5), memory_format=torch.contiguous_format)
    arguments = {
        n: v.contiguous(memory_format=layout) if getattr(v, "ndim", 0) == 4 else v for n, v in arguments.items()
    }
    result = output(name, operator(name)(*inputs(name, arguments)))
    # One channel alone lies in both layouts, and channels_last is chosen.
    assert result.is_contiguous(memory_format=memory_format(OPERATIONS[name].activation(arguments)))


@pytest.mark.parametrize("name", NAMES)
def test_autocast(name):
    arguments = random_call(name, requires_grad=True, **SMALL)
    with torch.autocast("cpu", torch.bfloat16):
        result = output(name, operator(name)(*inputs(name, arguments)))
    assert result.dtype == (torch.float32 if OPERATIONS[name].images else torch.bfloat16)
    result.sum().backward()
    assert all(tensor.grad.dtype == torch.float32 for tensor in tensors(arguments))


def small_models():
    return [
        cmslap.CMSLapSRN(scale=4, depth=2, recursions=2, channels=4, shared_conv=2),
        cmslap.MSLapSRN(scale=4, depth=2, recursions=2, channels=4),
        cmslap.LapSRN(scale=4, depth=2, channels=4),
    ]


@pytest.mark.parametrize("model", small_models(), ids=lambda model: type(model).__name__)
def test_compiled_model_trains(model):
    """One graph, no recompilation for every size, the gradients of the eager model."""
    torch._dynamo.reset()
    frames = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model, fullgraph=True, backend=frames)
    for size in ((1, 1, 6, 5), (2, 1, 7, 8), (3, 1, 9, 4), (5, 1, 5, 11)):
        y = torch.rand(size)
        gradients = []
        for network in (compiled, model):
            model.zero_grad()
            sum(image.square().mean() for image in network(y)).backward()
            gradients.append([parameter.grad.clone() for parameter in model.parameters()])
        torch.testing.assert_close(*gradients)
    assert frames.frame_count <= 2  # static sizes, then dynamic ones


def test_compiled_model_with_inductor():
    torch._dynamo.reset()
    model = small_models()[0]
    y = torch.rand(1, 1, 6, 5)
    compiled, eager = torch.compile(model, fullgraph=True)(y), model(y)
    torch.testing.assert_close(compiled, eager, rtol=1e-4, atol=1e-5)
    expected = torch.autograd.grad(eager[-1].sum(), model.embedding_weight)[0]
    gradient = torch.autograd.grad(compiled[-1].sum(), model.embedding_weight)[0]
    torch.testing.assert_close(gradient, expected, rtol=1e-3, atol=1e-5)


class Registered(nn.Module):
    """Goes through every operator, whatever backend is best."""

    def __init__(self, names):
        super().__init__()
        self.calls = {name: random_call(name, **SMALL) for name in names}

    def forward(self, activations):
        results = []
        for (name, arguments), activation in zip(self.calls.items(), activations, strict=True):
            given = {**arguments, next(iter(OPERATIONS[name].shapes)): activation}
            results.append(output(name, operator(name)(*inputs(name, given))))
        return results


def test_compiled_operators_train():
    torch._dynamo.reset()
    module = Registered(NAMES)
    activations = [OPERATIONS[n].activation(arguments).requires_grad_() for n, arguments in module.calls.items()]
    gradients = []
    for function in (module, torch.compile(module, fullgraph=True, backend="aot_eager")):
        results = function(activations)
        gradients.append(torch.autograd.grad(sum(result.square().sum() for result in results), activations))
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("model", small_models(), ids=lambda model: type(model).__name__)
def test_exported_model_runs_after_reload(model, tmp_path):
    model = model.eval()
    y = torch.rand(2, 1, 6, 5)
    dynamic = {"y": {0: torch.export.Dim("n", max=64), 2: torch.export.Dim("h", max=512)}}
    with torch.no_grad():
        program = torch.export.export(model, (y,), dynamic_shapes=dynamic)
    torch.export.save(program, tmp_path / "model.pt2")
    reloaded = torch.export.load(tmp_path / "model.pt2").module()
    for size in ((2, 1, 6, 5), (3, 1, 9, 5)):
        y = torch.rand(size)
        torch.testing.assert_close(reloaded(y), model(y))


def test_functional_call():
    model = small_models()[0]
    doubled = {name: 2 * parameter for name, parameter in model.named_parameters()}
    y = torch.rand(1, 1, 5, 4)
    result = torch.func.functional_call(model, doubled, (y,))
    model.load_state_dict(doubled)
    torch.testing.assert_close(result, model(y))
