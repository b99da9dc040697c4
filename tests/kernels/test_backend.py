"""The Triton backend behind the public operations: what it serves, and its gradients through autograd."""

import pytest
import torch

import cmslap
from cmslap import ops
from cmslap.ops.operation import OPERATIONS
from cmslap.ops.triton_backend import TRITON


def conv_call(device, dtype=torch.float32, cin=16, cout=16):
    weight = torch.randn(cout, cin, 3, 3, dtype=dtype, device=device)
    return {
        "x": torch.randn(1, cin, 3, 4, dtype=dtype, device=device),
        "weight": weight,
        "bias": None,
        "skip": None,
        "negative_slope": 0.2,
    }


def objection(**call):
    return TRITON.objection(OPERATIONS["conv2d_lrelu"], call)


def test_what_it_serves(device):
    assert objection(**conv_call(device)) is None
    assert objection(**conv_call(device, torch.bfloat16, cin=1, cout=256)) is None
    assert "not float64" in objection(**conv_call(device, torch.float64))
    assert "got 20" in objection(**conv_call(device, cin=20))
    assert "got 272" in objection(**conv_call(device, cout=272))
    assert "not on meta" in objection(**conv_call("meta"))


def step(model, y, backend):
    """Output and gradients of one backward pass."""
    model.zero_grad()
    with ops.use_backend(backend):
        images = model(y)
        sum(image.square().mean() for image in images).backward()
    return [*images, *(parameter.grad for parameter in model.parameters())]


@pytest.mark.parametrize("recompute", [False, True])
def test_a_network_through_autograd(device, recompute):
    model = cmslap.CMSLapSRN(scale=2, depth=2, recursions=1, channels=16, shared_conv=2).to(device)
    model.recompute = recompute
    y = torch.rand(1, 1, 3, 4, device=device)
    with torch.backends.cudnn.flags(allow_tf32=False):
        values = step(model, y, "triton")
        expected = step(model, y, "reference")
    for value, target in zip(values, expected, strict=True):
        assert (value - target).norm() < 1e-5 * target.norm()


def test_a_network_at_inference(device):
    """The last level has no kernel of its own here: it runs as a level and a head."""
    model = cmslap.CMSLapSRN(scale=2, depth=1, recursions=1, channels=16, shared_conv=1).to(device)
    y = torch.rand(1, 1, 2, 3, device=device)
    with torch.no_grad(), torch.backends.cudnn.flags(allow_tf32=False):
        with ops.use_backend("triton"):
            (image,) = model(y)
        with ops.use_backend("reference"):
            (expected,) = model(y)
    assert (image - expected).norm() < 1e-5 * expected.norm()


@pytest.mark.parametrize("recompute", [False, True])
def test_opcheck(device, recompute):
    """Fake tensors, and so torch.compile and export, know the shapes of what the kernels return and save."""
    shapes = ((1, 16, 2, 3), (1, 16, 16, 3, 3), (1, 16))
    u, weights, biases = (torch.randn(*shape, device=device, requires_grad=True) for shape in shapes)
    with ops.use_backend("triton"):
        inputs = (u, weights, biases, 1, 0.2, recompute, True, "")
        torch.library.opcheck(torch.ops.cmslap.recursive_embedding.default, inputs)
