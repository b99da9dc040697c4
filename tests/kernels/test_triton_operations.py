"""Each operation over the Triton kernels, forward and backward, against the reference in float64."""

import pytest
import torch

from cmslap.kernels import operations
from cmslap.ops import reference

TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}
DTYPES = pytest.mark.parametrize("dtype", TOLERANCE, ids=lambda dtype: str(dtype).removeprefix("torch."))


@pytest.fixture(autouse=True)
def exact_float32():
    with torch.backends.cudnn.flags(allow_tf32=False):
        yield


def draw(*shape, dtype, device, scale=1.0):
    return (torch.randn(*shape, device=device) * scale).to(dtype)


def kernel_of(cout, cin, dtype, device):
    """Random weights that keep the size of activations."""
    return draw(cout, cin, 3, 3, dtype=dtype, device=device, scale=(2 / (9 * cin)) ** 0.5)


def relative_error(value, expected):
    return ((value.double() - expected).norm() / expected.norm()).item()


def compare(name, arguments, tolerance, save=None, keeps_output=False):
    """Run the operation and its gradients for every tensor argument; compare both with float64."""
    exact = {
        key: value.double().requires_grad_() if isinstance(value, torch.Tensor) else value
        for key, value in arguments.items()
    }
    expected = getattr(reference, name)(**exact)
    forward = getattr(operations, name)
    output, saved = (forward(**arguments), None) if save is None else forward(**arguments, save=save)
    assert output.shape == expected.shape
    assert output.dtype == arguments[next(iter(arguments))].dtype
    assert relative_error(output, expected.detach()) < tolerance

    grad = torch.randn_like(expected).to(output.dtype)
    wanted = tuple(key for key, value in exact.items() if isinstance(value, torch.Tensor))
    gradients = torch.autograd.grad(expected, [exact[key] for key in wanted], grad.double())
    kept = output if keeps_output else None
    results = getattr(operations, f"{name}_backward")(grad, kept, saved, wanted, **arguments)
    for key, gradient in zip(wanted, gradients, strict=True):
        assert results[key].shape == gradient.shape, key
        assert relative_error(results[key], gradient) < tolerance, key


@DTYPES
@pytest.mark.parametrize(
    ("shape", "cout", "plain"),
    [
        ((2, 16, 3, 5), 16, False),
        ((1, 32, 5, 9), 48, False),
        ((1, 1, 2, 9), 16, False),
        ((1, 80, 3, 3), 1, True),
        ((1, 16, 1, 1), 80, True),
    ],
)
def test_conv2d_lrelu(device, dtype, shape, cout, plain):
    images, cin, height, width = shape
    arguments = {
        "x": draw(*shape, dtype=dtype, device=device),
        "weight": kernel_of(cout, cin, dtype, device),
        "bias": draw(cout, dtype=dtype, device=device) if not plain else None,
        "skip": draw(images, cout, height, width, dtype=dtype, device=device) if not plain else None,
        "negative_slope": 0.2,
    }
    compare("conv2d_lrelu", arguments, TOLERANCE[dtype], keeps_output=True)


@pytest.mark.parametrize("slope", [0.0, 1.0])
def test_relu_and_no_activation(device, slope):
    arguments = {
        "x": draw(1, 16, 3, 9, dtype=torch.float32, device=device).to(memory_format=torch.channels_last),
        "weight": kernel_of(16, 16, torch.float32, device),
        "bias": None,
        "skip": None,
        "negative_slope": slope,
    }
    compare("conv2d_lrelu", arguments, TOLERANCE[torch.float32], keeps_output=True)


@DTYPES
@pytest.mark.parametrize(
    ("shape", "cin", "has_bias"), [((2, 16, 1, 1), 16, False), ((1, 48, 5, 3), 32, True), ((1, 16, 2, 9), 16, True)]
)
def test_tied_conv_transpose2d(device, dtype, shape, cin, has_bias):
    cout = shape[1]
    arguments = {
        "a": draw(*shape, dtype=dtype, device=device),
        "weight": kernel_of(cout, cin, dtype, device),
        "bias": draw(cin, dtype=dtype, device=device) if has_bias else None,
    }
    compare("tied_conv_transpose2d", arguments, TOLERANCE[dtype])


@DTYPES
@pytest.mark.parametrize("float32_picture", [False, True])
def test_residual_head(device, dtype, float32_picture):
    picture = torch.float32 if float32_picture else dtype
    arguments = {
        "image": draw(1, 1, 2, 5, dtype=picture, device=device),
        "f": draw(1, 16, 4, 10, dtype=dtype, device=device),
        "residual_weight": kernel_of(1, 16, dtype, device),
        "residual_bias": draw(1, dtype=dtype, device=device),
        "image_weight": draw(1, 1, 4, 4, dtype=picture, device=device),
    }
    compare("residual_head", arguments, TOLERANCE[dtype])


def block(depth, dtype, device):
    return {
        "u": draw(1, 16, 2, 5, dtype=dtype, device=device),
        "weights": torch.stack([kernel_of(16, 16, dtype, device) for _ in range(depth)]),
        "biases": draw(depth, 16, dtype=dtype, device=device, scale=0.1),
    }


LAYERS = 5  # whose roundings add up


def slope_for(dtype):
    """No activation in half precision, where a rounded layer may flip signs that the next φ' would see."""
    return 0.2 if dtype == torch.float32 else 1.0


@pytest.mark.parametrize(
    ("dtype", "depth", "recompute"),
    [(torch.float32, 2, False), (torch.float32, 1, True), (torch.bfloat16, 2, True), (torch.float16, 1, False)],
)
def test_recursive_embedding(device, dtype, depth, recompute):
    settings = {"recursions": 2, "negative_slope": slope_for(dtype), "recompute": recompute}
    arguments = block(depth, dtype, device) | settings
    compare("recursive_embedding", arguments, LAYERS * TOLERANCE[dtype], save=True, keeps_output=True)


@pytest.mark.parametrize(
    ("dtype", "depth", "shared_conv", "recompute"),
    [(torch.float32, 2, 2, False), (torch.float32, 2, None, True), (torch.bfloat16, 2, 1, False)],
)
def test_lapsrn_level(device, dtype, depth, shared_conv, recompute):
    tensors = block(depth, dtype, device)
    arguments = {
        **tensors,
        "shared_conv": shared_conv,
        "upsample_bias": draw(16, dtype=dtype, device=device),
        "recursions": 2,
        "negative_slope": slope_for(dtype),
        "recompute": recompute,
        "upsample_weight": None if shared_conv else kernel_of(16, 16, dtype, device),
    }
    compare("lapsrn_level", arguments, LAYERS * TOLERANCE[dtype], save=True)


def test_saving_and_recomputing_change_no_bit(device):
    """The same convolutions run whatever is kept for backward, and sums run in a fixed order."""
    arguments = block(2, torch.float16, device) | {"recursions": 1, "negative_slope": 0.2}
    grad = draw(1, 16, 2, 5, dtype=torch.float16, device=device)
    plain, nothing = operations.recursive_embedding(**arguments, recompute=False, save=False)
    assert nothing is None
    results = []
    for recompute in (False, True):
        output, saved = operations.recursive_embedding(**arguments, recompute=recompute, save=True)
        assert torch.equal(output, plain)
        kept = {"output": output, "saved": saved, "wanted": ("u", "weights", "biases")}
        results.append(operations.recursive_embedding_backward(grad, **kept, **arguments, recompute=recompute))
    for name, gradient in results[0].items():
        assert torch.equal(gradient, results[1][name]), name
