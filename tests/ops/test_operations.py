"""The public operations against the float64 reference, whatever backend the default is."""

import pytest
import torch
from calls import NAMES, assert_gradients_close, convert, random_call, relative_error, tensors

from cmslap import ops
from cmslap.ops import extension
from cmslap.ops.operation import OPERATIONS

TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("optional", [True, False])
@pytest.mark.usefixtures("poisoned")
def test_float32_matches_float64(name, optional):
    for _ in range(5):
        arguments = random_call(name, optional=optional)
        expected = OPERATIONS[name].reference(**convert(arguments, dtype=torch.float64))
        assert relative_error(getattr(ops, name)(**arguments), expected) < TOLERANCE[torch.float32]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_matches_float64(name, dtype):
    arguments = random_call(name, dtype, C=8, Cin=8, Cout=8, D=1, R=1, N=2, H=9, W=7)
    expected = OPERATIONS[name].reference(**convert(arguments, dtype=torch.float64))
    result = getattr(ops, name)(**arguments)
    assert result.dtype == dtype
    assert relative_error(result, expected) < TOLERANCE[dtype]


@pytest.mark.parametrize("name", NAMES)
def test_gradients_match_float64(name, smallest):
    arguments = random_call(name, requires_grad=True)
    exact = convert(arguments, dtype=torch.float64)
    OPERATIONS[name].reference(**exact)
    if smallest and min(smallest) < 1e-5:  # its sign, and so a gradient, is up to rounding
        arguments["negative_slope"] = exact["negative_slope"] = 1.0
    result = getattr(ops, name)(**arguments)
    grad = torch.randn_like(result)
    gradients = torch.autograd.grad(result, tensors(arguments), grad)
    expected = torch.autograd.grad(OPERATIONS[name].reference(**exact), tensors(exact), grad.double())
    assert_gradients_close(gradients, expected, grad)


@pytest.mark.parametrize("name", NAMES)
def test_first_and_second_derivatives(name):
    arguments = random_call(name, torch.float64, requires_grad=True, N=1, C=2, Cin=2, Cout=2, D=2, R=2, H=3, W=2)
    names = [argument for argument, value in arguments.items() if isinstance(value, torch.Tensor)]

    def function(*values):
        return getattr(ops, name)(**{**arguments, **dict(zip(names, values, strict=True))})

    assert torch.autograd.gradcheck(function, tensors(arguments))
    assert torch.autograd.gradgradcheck(function, tensors(arguments))


@pytest.mark.parametrize("name", ["recursive_embedding", "lapsrn_level"])
def test_recompute_changes_nothing(name):
    arguments = random_call(name, torch.float64, requires_grad=True)
    runs = []
    for recompute in (False, True):
        result = getattr(ops, name)(**{**arguments, "recompute": recompute})
        runs.append([result, *torch.autograd.grad(result.square().sum(), tensors(arguments))])
    for plain, recomputed in zip(*runs, strict=True):
        torch.testing.assert_close(recomputed, plain, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["recursive_embedding", "lapsrn_level"])
def test_weights_may_come_one_by_one(name):
    arguments = random_call(name, torch.float64, requires_grad=True)
    lists = {n: [t.detach().clone().requires_grad_() for t in arguments[n]] for n in ("weights", "biases")}
    together, apart = getattr(ops, name)(**arguments), getattr(ops, name)(**{**arguments, **lists})
    torch.testing.assert_close(apart, together, rtol=0, atol=0)
    expected = torch.autograd.grad(together.sum(), arguments["weights"])[0]
    torch.testing.assert_close(torch.stack(torch.autograd.grad(apart.sum(), lists["weights"])), expected)


def test_shared_weight_gathers_both_gradients():
    """The gradient of the shared weight is that of the convolution plus that of the upsampling."""
    arguments = random_call("lapsrn_level", torch.float64, requires_grad=True, optional=False, C=4, D=3)
    shared = arguments["shared_conv"]
    tied = torch.autograd.grad(ops.lapsrn_level(**arguments).square().sum(), arguments["weights"])[0]
    copied = arguments["weights"][shared - 1].detach().clone().requires_grad_()
    untied_level = ops.lapsrn_level(**{**arguments, "shared_conv": None, "upsample_weight": copied})
    block, upsampling = torch.autograd.grad(untied_level.square().sum(), [arguments["weights"], copied])
    block[shared - 1] += upsampling
    torch.testing.assert_close(tied, block)


@pytest.mark.parametrize("name", NAMES)
def test_autocast_computes_in_its_dtype(name):
    arguments = random_call(name, requires_grad=True, C=8, Cin=8, Cout=8, D=1, R=1, H=9, W=7)
    with torch.autocast("cpu", torch.bfloat16):
        result = getattr(ops, name)(**arguments)
    assert result.dtype == (torch.float32 if OPERATIONS[name].images else torch.bfloat16)
    expected = OPERATIONS[name].reference(**convert(arguments, dtype=torch.float64))
    assert relative_error(result, expected) < 2 * TOLERANCE[torch.bfloat16]  # the inputs are rounded too
    result.sum().backward()
    assert all(tensor.grad.dtype == torch.float32 for tensor in tensors(arguments))


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("name", ["residual_head", "lapsrn_last_level"])
def test_autocast_does_not_round_the_image(name, backend):
    """With features of zero, the result is the upsampled image to float32's precision."""
    arguments = random_call(name, C=4, D=1, R=1, H=9, W=7)
    residual = [arguments["residual_weight"], arguments["residual_bias"]]
    for tensor in residual:
        tensor.zero_()
    if backend == "cpu" and extension.MISSING:
        pytest.skip(extension.MISSING)
    with ops.use_backend(backend), torch.autocast("cpu", torch.bfloat16):
        result = getattr(ops, name)(**arguments)
    expected = OPERATIONS[name].reference(**convert(arguments, dtype=torch.float64))
    assert relative_error(result, expected) < TOLERANCE[torch.float32]


def test_zero_scale_sizes_and_strides_of_any_kind():
    """A cropped, a transposed and an expanded view are as good as a dense tensor."""
    whole = torch.randn(2, 6, 9, 8)
    weight = torch.randn(6, 5, 3, 3)
    for a in (whole[:, :, 1:-2, ::2], whole.transpose(2, 3), whole[:1].expand(3, -1, -1, -1), whole[..., :1, :1]):
        expected = OPERATIONS["tied_conv_transpose2d"].reference(a.double(), weight.double())
        assert relative_error(ops.tied_conv_transpose2d(a, weight), expected) < 1e-5
        strided = weight.permute(2, 3, 1, 0).contiguous().permute(3, 2, 0, 1)
        assert relative_error(ops.tied_conv_transpose2d(a, strided), expected) < 1e-5


@pytest.mark.parametrize(("module", "names"), [(ops, NAMES)])
def test_public_names(module, names):
    assert set(names) <= set(module.__all__)


def test_gradients_do_not_take_the_default_dtype():
    arguments = random_call("conv2d_lrelu", requires_grad=True)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        gradients = torch.autograd.grad(ops.conv2d_lrelu(**arguments).sum(), tensors(arguments))
    finally:
        torch.set_default_dtype(before)
    assert {gradient.dtype for gradient in gradients} == {torch.float32}
