"""The GPU backends behind the public operations: what they serve, gradients through autograd, what tracing sees."""

import dataclasses

import pytest
import torch

import cmslap
from cmslap import ops
from cmslap.inference.tiling import pixels_at_once
from cmslap.ops import cuda, dispatch
from cmslap.ops.operation import OPERATIONS


def conv_call(device, dtype=torch.bfloat16, cin=16, cout=16):
    weight = torch.randn(cout, cin, 3, 3, dtype=dtype, device=device)
    return {
        "x": torch.randn(1, cin, 3, 4, dtype=dtype, device=device),
        "weight": weight,
        "bias": None,
        "skip": None,
        "negative_slope": 0.2,
    }


def objection(backend, call):
    return dispatch.objection(backend, OPERATIONS["conv2d_lrelu"], call)


def test_what_it_serves(place):
    for dtype in place.dtypes:
        assert objection(place.backend, conv_call(place.device, dtype)) is None
    assert objection(place.backend, conv_call(place.device, cin=1, cout=256)) is None
    assert "not float64" in objection(place.backend, conv_call(place.device, torch.float64))
    assert "got 20" in objection(place.backend, conv_call(place.device, cin=20))
    assert "got 272" in objection(place.backend, conv_call(place.device, cout=272))


def test_what_only_cuda_leaves_to_others():
    """Single precision, and a skip into what an image becomes: the two the kernels of csrc/cuda don't have."""
    backend = dataclasses.replace(cuda.CUDA, missing=None, unsupported=cuda._unsupported_sizes)
    assert "not float32" in objection(backend, conv_call("cpu", torch.float32))
    assert objection(backend, conv_call("cpu", torch.float32, cin=1)) is None
    call = conv_call("cpu", cin=1) | {"skip": torch.zeros(1, 16, 3, 4, dtype=torch.bfloat16)}
    assert "no skip" in objection(backend, call)


def test_other_devices(place):
    if place.name == "model":
        pytest.skip("takes the tensors of any device")
    assert "not on meta" in objection(place.backend, conv_call("meta"))


def step(model, y, backend):
    """Output and gradients of one backward pass."""
    model.zero_grad()
    with ops.use_backend(backend):
        images = model(y)
        sum(image.square().mean() for image in images).backward()
    with torch.no_grad():  # one number, a sum over pixels that may cancel: it is as exact as what it adds up
        model.conv_res.bias.grad += sum(4 * image.abs().mean() for image in images)
    return [*images, *(parameter.grad for parameter in model.parameters())]


@pytest.mark.parametrize("recompute", [False, True])
def test_a_network_through_autograd(place, recompute):
    """In the most exact type; without activation in 16 bits, where a sign is up to rounding and with it a gradient."""
    triton = place.backend.name == "triton"
    dtype, slope, tolerance = (torch.float32, 0.2, 1e-5) if triton else (torch.float16, 1.0, 1e-2)
    size = {"scale": 2, "recursions": 1} if place.name == "interpreter" else {"scale": 4, "recursions": 2}
    model = cmslap.CMSLapSRN(**size, depth=2, channels=16, shared_conv=2).to(place.device)
    torch.nn.init.normal_(model.conv_in.weight)
    model.recompute, model.negative_slope = recompute, slope
    model, y = model.to(dtype), torch.rand(1, 1, 3, 4, device=place.device, dtype=dtype)
    with torch.backends.cudnn.flags(allow_tf32=False):
        values = step(model, y, place.backend.name)
        expected = step(model.double(), y.double(), "reference")
    for value, target in zip(values, expected, strict=True):
        assert (value.double() - target).norm() < tolerance * target.norm()


@pytest.mark.parametrize(
    ("dtype", "tolerance", "recompute"), [(torch.float16, 1e-2, True), (torch.bfloat16, 8e-2, False)], ids=str
)
def test_a_network_of_float32_weights_under_autocast(place, dtype, tolerance, recompute):
    """As it is trained: the image and what becomes of it in float32, the features in 16 bits, gradients in float32.

    Without activation, as above; and weights are what 16 bits can hold, so that only activations are rounded.
    """
    size = {"scale": 2, "recursions": 1} if place.name == "interpreter" else {"scale": 4, "recursions": 2}
    model = cmslap.CMSLapSRN(**size, depth=2, channels=16, shared_conv=2).to(place.device)
    torch.nn.init.normal_(model.conv_in.weight)
    model.recompute, model.negative_slope = recompute, 1.0
    model = model.to(dtype).float()
    y = torch.rand(1, 1, 3, 4, device=place.device)
    with torch.autocast(place.device.type, dtype):
        values = step(model, y, place.backend.name)
    assert all(value.dtype == torch.float32 for value in values)
    expected = step(model.double(), y.double(), "reference")
    for value, target in zip(values, expected, strict=True):
        assert (value.double() - target).norm() < tolerance * target.norm()


def test_what_memory_asks_outside_the_autocast(place):
    """Tiling asks which way the last level runs before autocast makes its features short: no error, an answer."""
    model = cmslap.CMSLapSRN(scale=2, depth=1, recursions=1, channels=16, shared_conv=1).to(place.device)
    with ops.use_backend(place.backend.name):
        assert not model._folds_last_level()
        assert pixels_at_once(model, 2, halo=4) > 0


def test_a_network_at_inference(place):
    """Where the last level has no kernel of its own, it runs as a level and a head."""
    dtype, tolerance = (torch.float32, 1e-5) if place.backend.name == "triton" else (torch.float16, 4e-3)
    model = cmslap.CMSLapSRN(scale=2, depth=1, recursions=1, channels=16, shared_conv=1).to(place.device, dtype)
    y = torch.rand(1, 1, 2, 3, device=place.device, dtype=dtype)
    with torch.no_grad(), torch.backends.cudnn.flags(allow_tf32=False):
        with ops.use_backend(place.backend.name):
            (image,) = model(y)
        with ops.use_backend("reference"):
            (expected,) = model.double()(y.double())
    assert (image.double() - expected).norm() < tolerance * expected.norm()


@pytest.mark.parametrize("recompute", [False, True])
def test_opcheck(place, recompute):
    """Fake tensors, and so torch.compile and export, know the shapes of what the kernels return and save."""
    shapes = ((1, 16, 2, 3), (1, 16, 16, 3, 3), (1, 16))
    dtype = place.dtypes[0]
    u, weights, biases = (torch.randn(*s, device=place.device, dtype=dtype, requires_grad=True) for s in shapes)
    with ops.use_backend(place.backend.name):
        inputs = (u, weights, biases, 1, 0.2, recompute, True, "")
        torch.library.opcheck(torch.ops.cmslap.recursive_embedding.default, inputs)


def test_memory_of_every_kind(place):
    """Strided and misaligned arguments give what tidy ones do."""
    call = conv_call(place.device)
    tidy = {name: call[name].clone(memory_format=torch.channels_last) for name in ("x", "weight")}
    strided = {name: tensor.mT.contiguous().mT for name, tensor in tidy.items()}
    misaligned = {}
    for name, tensor in tidy.items():
        storage = tensor.new_empty(tensor.numel() + 1)
        misaligned[name] = storage[1:].as_strided(tensor.shape, tensor.stride(), 1).copy_(tensor)
    with ops.use_backend(place.backend.name):
        results = [ops.conv2d_lrelu(**kind) for kind in (tidy, strided, misaligned)]
    assert torch.equal(results[1], results[0])
    assert torch.equal(results[2], results[0])
