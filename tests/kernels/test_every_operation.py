"""Each operation of the GPU backends, forward and backward, against the reference in float64."""

import random

import pytest
import torch

from cmslap.ops import reference
from cmslap.ops.backend import Call
from cmslap.ops.operation import OPERATIONS

TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}


@pytest.fixture(autouse=True)
def exact_float32():
    with torch.backends.cudnn.flags(allow_tf32=False):
        yield


@pytest.fixture(params=TOLERANCE, ids=lambda dtype: str(dtype).removeprefix("torch."))
def dtype(request):
    """Each type in turn; conftest.py leaves out those a place has no kernels of."""
    return request.param


@pytest.fixture
def rounding(monkeypatch, dtype):
    """The reference rounds activations where kernels store them, so that no sign is up to rounding; gradients pass."""
    leaky_relu = reference.leaky_relu

    def rounded(x, negative_slope):
        y = leaky_relu(x, negative_slope)
        return y + (y.to(dtype).double() - y).detach()

    monkeypatch.setattr(reference, "leaky_relu", rounded)


def draw(*shape, dtype, device, scale=1.0):
    return (torch.randn(*shape, device=device) * scale).to(dtype)


def weight_of(cout, cin, dtype, device):
    """Random weights that keep the size of activations."""
    return draw(cout, cin, 3, 3, dtype=dtype, device=device, scale=(2 / (9 * cin)) ** 0.5)


def relative_error(value, expected):
    return ((value.double() - expected).norm() / expected.norm()).item()


def forward(place, name, arguments, save):
    """Output and saved activations, of an operation that has these."""
    operator, options = getattr(torch.ops.cmslap, name), (place.backend.name,)
    if OPERATIONS[name].saves:
        return operator(*arguments.values(), save, *options)
    return operator(*arguments.values(), *options), None


def backward(place, name, arguments, grad, output, saved, wanted):
    """The gradients by name."""
    operation, operator = OPERATIONS[name], getattr(torch.ops.cmslap, f"{name}_backward")
    kept = output if operation.keeps_output else None
    mask = [argument in wanted for argument in operation.shapes]
    gradients = operator(grad, kept, saved, *arguments.values(), mask, place.backend.name)
    return dict(zip([argument for argument in operation.shapes if argument in wanted], gradients, strict=True))


def compare(place, name, arguments, tolerance):
    """Run the operation and all its gradients; compare both with float64, and to the bit with a second run.

    Triton's interpreter, which has one order for everything, runs once.
    """
    operation = OPERATIONS[name]
    exact = {
        key: value.double().requires_grad_() if isinstance(value, torch.Tensor) else value
        for key, value in arguments.items()
    }
    assert place.backend.unsupported(operation, arguments) is None
    expected = operation.reference(**exact)
    grad = torch.randn_like(expected).to(operation.result_dtype(arguments))
    wanted = tuple(key for key, value in exact.items() if isinstance(value, torch.Tensor))
    gradients = torch.autograd.grad(expected, [exact[key] for key in wanted], grad.double())

    def run():
        output, saved = forward(place, name, arguments, save=True)
        return output, backward(place, name, arguments, grad, output, saved, wanted)

    output, results = run()
    assert output.shape == expected.shape
    assert output.dtype == grad.dtype
    assert relative_error(output, expected.detach()) < tolerance
    for key, gradient in zip(wanted, gradients, strict=True):
        assert results[key].shape == gradient.shape, key
        assert relative_error(results[key], gradient) < tolerance, key

    if place.name == "interpreter":
        return
    again, repeated = run()
    assert torch.equal(again, output)
    assert all(torch.equal(repeated[key], results[key]) for key in wanted)


@pytest.mark.parametrize(
    ("shape", "cout", "plain"),
    [
        ((2, 16, 3, 5), 16, False),
        ((1, 32, 5, 9), 48, False),
        ((1, 16, 1, 1), 80, True),
    ],
)
def test_conv2d_lrelu(place, dtype, shape, cout, plain):
    images, cin, height, width = shape
    arguments = {
        "x": draw(*shape, dtype=dtype, device=place.device),
        "weight": weight_of(cout, cin, dtype, place.device),
        "bias": draw(cout, dtype=dtype, device=place.device) if not plain else None,
        "skip": draw(images, cout, height, width, dtype=dtype, device=place.device) if not plain else None,
        "negative_slope": 0.2,
    }
    compare(place, "conv2d_lrelu", arguments, TOLERANCE[dtype])


@pytest.mark.parametrize("kind", TOLERANCE, ids=lambda dtype: str(dtype).removeprefix("torch."))
@pytest.mark.parametrize(("has_bias", "slope"), [(False, 0.2), (True, 1.0)])
def test_an_image_becomes_features(place, kind, has_bias, slope):
    """Of every type, in all places."""
    arguments = {
        "x": draw(2, 1, 2, 9, dtype=kind, device=place.device),
        "weight": weight_of(32, 1, kind, place.device),
        "bias": draw(32, dtype=kind, device=place.device) if has_bias else None,
        "skip": None,
        "negative_slope": slope,
    }
    compare(place, "conv2d_lrelu", arguments, TOLERANCE[kind])


@pytest.mark.parametrize("slope", [0.0, 1.0])
def test_relu_and_no_activation(place, dtype, slope):
    x = draw(1, 16, 3, 9, dtype=dtype, device=place.device).to(memory_format=torch.channels_last)
    weight = weight_of(16, 16, dtype, place.device)
    arguments = {"x": x, "weight": weight, "bias": None, "skip": None, "negative_slope": slope}
    compare(place, "conv2d_lrelu", arguments, TOLERANCE[dtype])


@pytest.mark.parametrize(
    ("shape", "cin", "has_bias"), [((2, 16, 1, 1), 16, False), ((1, 48, 5, 3), 32, True), ((1, 16, 2, 9), 16, True)]
)
def test_tied_conv_transpose2d(place, dtype, shape, cin, has_bias):
    cout = shape[1]
    arguments = {
        "a": draw(*shape, dtype=dtype, device=place.device),
        "weight": weight_of(cout, cin, dtype, place.device),
        "bias": draw(cin, dtype=dtype, device=place.device) if has_bias else None,
    }
    compare(place, "tied_conv_transpose2d", arguments, TOLERANCE[dtype])


@pytest.mark.parametrize("float32_image", [False, True])
@pytest.mark.parametrize(("images", "height", "width"), [(1, 2, 5), (2, 3, 1)])
def test_residual_head(place, dtype, images, height, width, float32_image):
    if dtype == torch.float32 and float32_image:
        pytest.skip("the same as without")
    device, image = place.device, torch.float32 if float32_image else dtype
    arguments = {
        "f": draw(images, 16, 2 * height, 2 * width, dtype=dtype, device=device),
        "image": draw(images, 1, height, width, dtype=image, device=device),
        "residual_weight": weight_of(1, 16, dtype, device),
        "residual_bias": draw(1, dtype=dtype, device=device),
        "image_weight": draw(1, 1, 4, 4, dtype=image, device=device),
    }
    compare(place, "residual_head", arguments, TOLERANCE[dtype])


def block(depth, dtype, device, images=1):
    return {
        "u": draw(images, 16, 2, 5, dtype=dtype, device=device),
        "weights": torch.stack([weight_of(16, 16, dtype, device) for _ in range(depth)]),
        "biases": draw(depth, 16, dtype=dtype, device=device, scale=0.1),
    }


LAYERS = 5  # whose roundings add up


def slope_for(place, dtype, depth):
    """A value near zero may round to the other sign after some layers, which matters the less the nearer to 1 this is.

    Triton's interpreter is slow for deep blocks, and rounds to 16 bits as no GPU does, so that signs flip often.
    """
    if place.name != "interpreter":
        return 0.2 if dtype == torch.float32 or depth == 1 else 0.8
    if depth > (2 if dtype == torch.float32 else 1):
        pytest.skip("too slow in Triton's interpreter")
    return 0.2 if dtype == torch.float32 else 1.0


@pytest.mark.usefixtures("rounding")
@pytest.mark.parametrize(
    ("depth", "recursions", "recompute"), [(1, 1, False), (1, 3, True), (2, 2, False), (3, 1, True), (3, 2, True)]
)
def test_recursive_embedding(place, dtype, depth, recursions, recompute):
    slope = slope_for(place, dtype, depth)
    settings = {"recursions": recursions, "negative_slope": slope, "recompute": recompute}
    arguments = block(depth, dtype, place.device) | settings
    compare(place, "recursive_embedding", arguments, LAYERS * TOLERANCE[dtype])


@pytest.mark.usefixtures("rounding")
@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize(("depth", "shared_conv"), [(1, 1), (2, None), (3, 3), (5, 3)])
def test_lapsrn_level(place, dtype, depth, shared_conv, recompute):
    device, slope, images = place.device, slope_for(place, dtype, depth), random.choice([1, 2])
    arguments = {
        **block(depth, dtype, device, images),
        "shared_conv": shared_conv,
        "upsample_bias": draw(16, dtype=dtype, device=device),
        "recursions": 2,
        "negative_slope": slope,
        "recompute": recompute,
        "upsample_weight": None if shared_conv else weight_of(16, 16, dtype, device),
    }
    compare(place, "lapsrn_level", arguments, LAYERS * TOLERANCE[dtype])


@pytest.mark.usefixtures("rounding")
@pytest.mark.parametrize(("depth", "recursions"), [(1, 2), (2, 1)])
def test_a_level_of_64_channels(place, dtype, depth, recursions):
    """The width with kernels of its own on Hopper, on maps that are cut into several tiles."""
    if place.name == "interpreter":
        pytest.skip("Triton's kernels are the same for every width")
    images, height, width = random.randint(1, 2), random.randint(17, 20), random.randint(33, 40)
    arguments = {
        "u": draw(images, 64, height, width, dtype=dtype, device=place.device),
        "weights": torch.stack([weight_of(64, 64, dtype, place.device) for _ in range(depth)]),
        "biases": draw(depth, 64, dtype=dtype, device=place.device, scale=0.1),
        "shared_conv": 1,
        "upsample_bias": draw(64, dtype=dtype, device=place.device),
        "recursions": recursions,
        "negative_slope": 0.2,
        "recompute": False,
        "upsample_weight": None,
    }
    compare(place, "lapsrn_level", arguments, LAYERS * TOLERANCE[dtype])


@pytest.mark.parametrize("name", ["recursive_embedding", "lapsrn_level"])
def test_saving_and_recomputing_change_no_bit(place, name):
    """The same convolutions run whatever is kept for backward, and sums run in a fixed order."""
    dtype, operation, backend = torch.float16, OPERATIONS[name], place.backend
    recursions = 1 if place.name == "interpreter" else 2
    arguments = block(2, dtype, place.device) | {"recursions": recursions, "negative_slope": 0.2}
    if name == "lapsrn_level":
        bias = draw(16, dtype=dtype, device=place.device)
        arguments |= {"shared_conv": 2, "upsample_bias": bias, "upsample_weight": None}
    arguments = operation.of({**dict.fromkeys(operation.arguments), **arguments})
    plain, nothing = forward(place, name, arguments | {"recompute": False}, save=False)
    assert nothing.numel() == 0
    grad = torch.randn_like(plain)
    results = []
    for recompute in (False, True):
        options = arguments | {"recompute": recompute}
        output, saved = forward(place, name, options, save=True)
        assert saved.shape == backend.saved_shape(Call(operation, options))
        assert torch.equal(output, plain)
        results.append(backward(place, name, options, grad, output, saved, ("u", "weights", "biases")))
    for key, gradient in results[0].items():
        assert torch.equal(gradient, results[1][key]), key


def dense_block(channels, growth, dtype, device):
    """Parameters of a block by name; each sum as large as what it is of."""

    def weight(count, cin, side=1):
        return draw(count, cin, side, side, dtype=dtype, device=device, scale=(cin * side * side) ** -0.5)

    dense = channels + growth
    return {
        "depthwise1": weight(channels, 1, 3),
        "pointwise1": weight(growth, channels),
        "bias1": draw(growth, dtype=dtype, device=device, scale=0.1),
        "depthwise2": weight(dense, 1, 3),
        "pointwise2": weight(growth, dense),
        "bias2": draw(growth, dtype=dtype, device=device, scale=0.1),
        "pointwise3": weight(channels, dense + growth),
        "bias3": draw(channels, dtype=dtype, device=device, scale=0.1),
    }


@pytest.fixture
def dense_place(place):
    if place.backend.name == "cuda":
        pytest.skip("csrc/cuda has no such kernel")
    return place


@pytest.mark.usefixtures("rounding")
@pytest.mark.parametrize(
    ("shape", "growth", "recursions"), [((2, 16, 3, 9), 16, 2), ((1, 32, 1, 5), 16, 1), ((1, 16, 5, 1), 32, 1)]
)
def test_dense_recursion(dense_place, dtype, shape, growth, recursions):
    """Maps of one row, of one column, and of several tiles; growth as wide as the map, narrower, wider."""
    arguments = {
        "u": draw(*shape, dtype=dtype, device=dense_place.device),
        **dense_block(shape[1], growth, dtype, dense_place.device),
        "recursions": recursions,
        "negative_slope": slope_for(dense_place, dtype, recursions),
    }
    compare(dense_place, "dense_recursion", arguments, LAYERS * TOLERANCE[dtype])


def test_dense_recursion_keeps_what_backward_needs_and_changes_no_bit(dense_place):
    arguments = {
        "u": draw(1, 16, 3, 4, dtype=torch.float32, device=dense_place.device),
        **dense_block(16, 16, torch.float32, dense_place.device),
        "recursions": 3,
        "negative_slope": 0.0,
    }
    plain, nothing = forward(dense_place, "dense_recursion", arguments, save=False)
    output, saved = forward(dense_place, "dense_recursion", arguments, save=True)
    assert nothing.numel() == 0
    assert saved.shape == dense_place.backend.saved_shape(Call(OPERATIONS["dense_recursion"], arguments))
    assert torch.equal(output, plain)
    assert not saved.isnan().any()


@pytest.mark.parametrize("float32_image", [False, True])
def test_dense_network(dense_place, dtype, float32_image):
    device, image = dense_place.device, torch.float32 if float32_image else dtype
    arguments = {
        "image": draw(2, 1, 3, 5, dtype=image, device=device),
        "head_weight": draw(16, 1, 3, 3, dtype=image, device=device, scale=1 / 3),
        "head_bias": draw(16, dtype=image, device=device),
        **dense_block(16, 16, dtype, device),
        "tail_weight": draw(4, 16, 3, 3, dtype=dtype, device=device, scale=1 / 12),
        "tail_bias": draw(4, dtype=dtype, device=device),
        "recursions": 2,
        "negative_slope": 0.0,
    }
    expected = OPERATIONS["dense_network"].reference(
        **{key: value.double() if isinstance(value, torch.Tensor) else value for key, value in arguments.items()}
    )
    output, _ = forward(dense_place, "dense_network", arguments, save=False)
    assert output.dtype == image
    assert relative_error(output, expected) < LAYERS * TOLERANCE[dtype]
