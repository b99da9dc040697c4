"""The CPU kernels against the float64 reference: random shapes, memory of every kind, every instruction set."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from calls import assert_gradients_close, convert, random_call, relative_error, tensors
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from cmslap import ops
from cmslap.ops import extension
from cmslap.ops.operation import OPERATIONS

pytestmark = pytest.mark.skipif(extension.MISSING is not None, reason=str(extension.MISSING))

NAMES = tuple(OPERATIONS)
CHANNELS = st.sampled_from([1, 2, 3, 5, 8, 13, 16, 17, 31, 32, 33, 48, 64, 65, 80])
HEIGHTS = st.one_of(st.integers(1, 9), st.integers(1, 30))
WIDTHS = st.one_of(st.integers(1, 9), st.integers(1, 70))
quick = settings(
    max_examples=8,
    deadline=None,
    phases=[Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def contiguous(tensor):
    return tensor.contiguous()


def channels_last(tensor):
    return tensor.contiguous(memory_format=torch.channels_last) if tensor.ndim == 4 else tensor


def strided(tensor):
    """Every second element of a larger tensor, dimensions reversed."""
    wide = torch.full([2 * size for size in reversed(tensor.shape)], float("nan"), dtype=tensor.dtype)
    view = wide[tuple(slice(1, None, 2) for _ in tensor.shape)].permute(*reversed(range(tensor.ndim)))
    return view.copy_(tensor)


def misaligned(tensor):
    """Dense, but one number past any boundary a vector load could like."""
    lying = channels_last(tensor)
    storage = torch.full([tensor.numel() + 1], float("nan"), dtype=tensor.dtype)
    return storage[1:].as_strided(lying.shape, lying.stride(), 1).copy_(tensor)


LAYOUTS = (contiguous, channels_last, strided, misaligned)


def draw_call(draw, name):
    sizes = {"N": draw(st.integers(1, 3)), "H": draw(HEIGHTS), "W": draw(WIDTHS), "D": draw(st.integers(1, 3))}
    sizes |= {channels: draw(CHANNELS) for channels in ("C", "Cin", "Cout", "G")} | {
        "S": draw(st.sampled_from([1, 3, 4, 9, 16]))
    }
    torch.manual_seed(draw(st.integers(0, 2**31)))
    arguments = random_call(name, optional=draw(st.booleans()), **sizes)
    if "recompute" in arguments:
        arguments["recompute"] = draw(st.booleans())
    return arguments


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("name", NAMES)
@quick
@given(data=st.data())
def test_values_and_gradients(name, data, smallest):
    arguments, layout = draw_call(data.draw, name), data.draw(st.sampled_from(LAYOUTS))
    smallest.clear()
    exact = convert(arguments, dtype=torch.float64)
    OPERATIONS[name].reference(**exact)
    if smallest and min(smallest) < 1e-5:  # its sign, and so a gradient, is up to rounding
        arguments["negative_slope"] = exact["negative_slope"] = 1.0
    given_as = {n: layout(v) if isinstance(v, torch.Tensor) else v for n, v in arguments.items()}

    with ops.use_backend("cpu"):
        value = getattr(ops, name)(**given_as)  # without gradients nothing is saved
        for tensor in tensors(given_as):
            tensor.requires_grad_()
        result = getattr(ops, name)(**given_as)
        grad = torch.randn_like(result)
        gradients = torch.autograd.grad(result, tensors(given_as), grad)

    for tensor in tensors(exact):
        tensor.requires_grad_()
    expected = OPERATIONS[name].reference(**exact)
    assert relative_error(value, expected) < 1e-5
    assert relative_error(result, expected) < 1e-5
    expected_gradients = torch.autograd.grad(expected, tensors(exact), grad.double())
    assert_gradients_close(gradients, expected_gradients, grad)


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("name", NAMES)
@quick
@given(data=st.data())
def test_bfloat16_values(name, data, bfloat16):
    """Features in bfloat16, the image in either precision."""
    arguments, layout = draw_call(data.draw, name), data.draw(st.sampled_from(LAYOUTS))
    if "recursions" in arguments and arguments["negative_slope"] == 1.0:
        arguments["negative_slope"] = 0.2  # without activation nine convolutions pile up any format's errors
    image = data.draw(st.sampled_from([torch.float32, torch.bfloat16]))
    images = OPERATIONS[name].images
    rounded = {n: convert({n: v}, dtype=image if n in images else torch.bfloat16)[n] for n, v in arguments.items()}
    given_as = {n: layout(v) if isinstance(v, torch.Tensor) else v for n, v in rounded.items()}
    with ops.use_backend("cpu"):
        result = getattr(ops, name)(**given_as)
    assert result.dtype == (image if images else torch.bfloat16)
    expected = OPERATIONS[name].reference(**convert(rounded, dtype=torch.float64))
    # Summands are of size one; of a few pixels they may cancel, and their rounding errors do not.
    assert (result - expected).norm() < 1e-2 * max(expected.norm(), 0.5 * expected.numel() ** 0.5)


@pytest.mark.usefixtures("poisoned")
def test_gradients_of_large_images():
    """Of more than 1,024 tiles the weight gradient sums slices."""
    sides = {side: int(torch.randint(66, 73, ())) for side in "HW"}
    channels = {side: int(torch.randint(17, 71, ())) for side in ("Cin", "Cout")}
    arguments = random_call("conv2d_lrelu", requires_grad=True, N=4, **sides, **channels) | {"negative_slope": 1.0}
    exact = convert(arguments, dtype=torch.float64)
    expected = OPERATIONS["conv2d_lrelu"].reference(**exact)
    grad = torch.randn(expected.shape)
    with ops.use_backend("cpu"):
        gradients = torch.autograd.grad(ops.conv2d_lrelu(**arguments), tensors(arguments), grad)
    assert_gradients_close(gradients, torch.autograd.grad(expected, tensors(exact), grad.double()), grad)


@pytest.mark.parametrize(("name", "factor"), [("conv2d_lrelu", 1), ("tied_conv_transpose2d", 2)])
@pytest.mark.usefixtures("poisoned")
def test_streamed_images(name, factor):
    """Results of 8 MiB and more go past the caches where a vector is a cache line."""
    channels = 16 * int(torch.randint(1, 4, ()))
    height = int(torch.randint(150, 250, ())) // factor
    width = -(-(2**21) // (channels * height * factor**2)) + int(torch.randint(0, 5, ()))
    arguments = random_call(name, N=1, H=height, W=width, Cin=channels, Cout=channels)
    with ops.use_backend("cpu"):
        result = getattr(ops, name)(**arguments)
    assert result.nbytes >= 2**23
    assert relative_error(result, OPERATIONS[name].reference(**convert(arguments, dtype=torch.float64))) < 1e-5


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_thread_counts_and_runs_give_the_same_bits(name, dtype):
    arguments = random_call(name, dtype, requires_grad=True, N=2, C=20, Cin=20, Cout=17, D=2, H=30, W=33)
    before = torch.get_num_threads()
    runs = []
    try:
        for threads in (1, 2, 3, 3, 9):
            torch.set_num_threads(threads)
            with ops.use_backend("cpu"):
                with torch.no_grad():
                    value = getattr(ops, name)(**arguments)
                result = getattr(ops, name)(**arguments)
                runs.append([value, result])
                if name != "dense_network":  # whose gradients are PyTorch's
                    runs[-1] += torch.autograd.grad(result.square().sum(), tensors(arguments))
    finally:
        torch.set_num_threads(before)
    for run in runs[1:]:
        assert all(torch.equal(*pair) for pair in zip(run, runs[0], strict=True))


def test_calls_from_several_threads_share_the_workers():
    arguments = random_call("conv2d_lrelu", N=2, Cin=20, Cout=17, H=30, W=33)
    expected = ops.conv2d_lrelu(**arguments)
    with ThreadPoolExecutor(4) as callers:
        results = list(callers.map(lambda _: ops.conv2d_lrelu(**arguments), range(40)))
    assert all(torch.equal(result, expected) for result in results)


@pytest.mark.parametrize("frozen", ["x", "weight"])
def test_gradients_nobody_wants_are_not_needed(frozen):
    arguments = random_call("conv2d_lrelu", requires_grad=True, N=1, Cin=8, Cout=8, H=20, W=20)
    arguments[frozen].requires_grad_(False)
    wanted = [tensor for tensor in tensors(arguments) if tensor.requires_grad]
    gradients = torch.autograd.grad(ops.conv2d_lrelu(**arguments).sum(), wanted)
    expected = torch.autograd.grad(OPERATIONS["conv2d_lrelu"].reference(**arguments).sum(), wanted)
    for gradient, wanted_gradient in zip(gradients, expected, strict=True):
        torch.testing.assert_close(gradient, wanted_gradient, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("isa", ["avx2", "portable"])
def test_every_instruction_set(isa):
    """The same tests with what this processor would not choose, in a process of its own, as the choice is made once."""
    if "CMSLAP_ISA" in os.environ:
        pytest.skip("runs under one instruction set already")
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-k", "test_values_and_gradients", __file__]
    result = subprocess.run(command, env={**os.environ, "CMSLAP_ISA": isa}, capture_output=True, text=True)
    if "on this processor, got" in result.stdout:
        pytest.skip(f"this processor has no {isa}")
    assert result.returncode == 0, result.stdout


def test_bfloat16_needs_its_instruction_set():
    """Others convert it to float32: the same values to bfloat16's precision."""
    code = (
        "import torch; from cmslap import ops; from cmslap.ops import cpu; assert not cpu.multiplies_bfloat16();"
        "x, w = torch.randn(1, 8, 9, 9).bfloat16(), torch.randn(8, 8, 3, 3).bfloat16();"
        "y = ops.conv2d_lrelu(x, w); z = ops.conv2d_lrelu(x.float(), w.float()); assert torch.equal(y, z.bfloat16())"
    )
    for isa in ("avx2", "portable"):
        command = [sys.executable, "-c", code]
        result = subprocess.run(command, env={**os.environ, "CMSLAP_ISA": isa}, capture_output=True, text=True)
        assert result.returncode == 0 or "on this processor, got" in result.stderr, result.stderr


def test_unknown_instruction_set():
    code = "import torch; from cmslap import ops; ops.conv2d_lrelu(torch.ones(1, 1, 4, 4), torch.ones(1, 1, 3, 3))"
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, env={**os.environ, "CMSLAP_ISA": "sse9"}, capture_output=True, text=True)
    assert "CMSLAP_ISA must be one of" in result.stderr
    assert "got sse9" in result.stderr
