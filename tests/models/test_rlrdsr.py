"""RLRD-SR: parameter count, the block's formula, the bicubic skip, the receptive field, arguments, tiles."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import cmslap
from cmslap import ops
from cmslap.imaging import imresize
from cmslap.models.bicubic import bicubic_phases
from cmslap.ops import extension


def random_network(**arguments):
    network = cmslap.RLRDSR(**arguments)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.3)
    return network


@pytest.mark.parametrize("recursions", [1, 4])
def test_parameters_are_shared_by_the_replicas(recursions):
    network = cmslap.RLRDSR(recursions=recursions)
    assert sum(parameter.numel() for parameter in network.parameters()) == 8_580
    assert sum(parameter.numel() for parameter in network.block.parameters()) == 7_104


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_it_is_the_formula(scale):
    network, y = (
        random_network(scale=scale, recursions=2, channels=3, growth=2).double(),
        torch.rand(2, 1, 6, 5).double(),
    )
    block = network.block

    def separable(x, depthwise, pointwise):
        x = F.conv2d(x, depthwise.weight, padding=1, groups=x.shape[1])
        return torch.relu(torch.einsum("oi,nihw->nohw", pointwise.weight[..., 0, 0], x) + pointwise.bias[:, None, None])

    x = F.conv2d(y, network.head.weight, network.head.bias, padding=1)
    for _ in range(2):
        a = separable(x, block.depthwise1, block.pointwise1)
        b = separable(torch.cat([x, a], 1), block.depthwise2, block.pointwise2)
        x = x + F.conv2d(torch.cat([x, a, b], 1), block.pointwise3.weight, block.pointwise3.bias)
    residual = F.pixel_shuffle(F.conv2d(x, network.tail.weight, network.tail.bias, padding=1), scale)
    (image,) = network(y)
    torch.testing.assert_close(image, imresize(y, scale) + residual)


@pytest.mark.parametrize("scale", [2, 3, 4])
@pytest.mark.parametrize("size", [(1, 1), (1, 5), (2, 2), (3, 9), (12, 7)])
def test_the_skip_is_matlabs_bicubic(scale, size):
    y = torch.rand(2, 1, *size, dtype=torch.float64)
    enlarged = F.pixel_shuffle(bicubic_phases(y, scale), scale)
    torch.testing.assert_close(enlarged, imresize(y, scale), rtol=0, atol=1e-12)


def test_it_starts_near_bicubic():
    y = torch.rand(1, 1, 40, 30)
    residual = cmslap.RLRDSR()(y)[0] - imresize(y, 2)
    assert 0 < residual.square().mean().sqrt() < 0.2


@pytest.mark.parametrize("recursions", [1, 3])
def test_radius_is_exactly_the_support_of_the_gradient(recursions):
    network = cmslap.RLRDSR(recursions=recursions, channels=2, growth=1).double()
    for parameter in network.parameters():
        nn.init.constant_(parameter, 0.1)
    radius = network.receptive_field_radius(2)
    y = torch.rand(1, 1, 2 * radius + 7, 5, dtype=torch.float64, requires_grad=True)
    middle = radius + 3
    pixel = network(y)[0][..., 2 * middle : 2 * middle + 2, :]
    (gradient,) = torch.autograd.grad(pixel.sum(), y)
    rows = gradient.abs().amax(dim=-1).flatten().nonzero().flatten()
    assert max(middle - rows.min(), rows.max() - middle) == radius


def test_inference_is_what_training_sees():
    network, y = random_network(), torch.rand(1, 1, 21, 130)
    trained = network(y)[0]
    with torch.no_grad():
        torch.testing.assert_close(network(y)[0], trained, rtol=1e-4, atol=1e-4 * trained.abs().max().item())


@pytest.mark.skipif(extension.MISSING is not None, reason=str(extension.MISSING))
def test_it_asks_for_memory_only_where_feature_maps_exist():
    network = cmslap.RLRDSR()
    assert network.bytes_per_pixel(2) == 6 * 4 * 4
    with ops.use_backend("reference"):
        assert network.bytes_per_pixel(2) == 6 * 4 * 96


def test_tiles_change_nothing():
    network = random_network(recursions=2, channels=3, growth=2).eval()
    grey = np.random.rand(40, 33).astype(np.float32)
    whole = cmslap.upscale(grey, 2, network, tile=0)
    np.testing.assert_allclose(cmslap.upscale(grey, 2, network, tile=9), whole, atol=1e-5)


@pytest.mark.parametrize("change", [{"scale": 5}, {"scale": True}, {"recursions": 0}, {"channels": 2.0}, {"growth": 0}])
def test_bad_arguments(change):
    (name,) = change
    with pytest.raises(ValueError, match=f"{name} must be"):
        cmslap.RLRDSR(**change)


def test_it_serves_its_own_scale_only():
    with pytest.raises(ValueError, match="scale must be one of 3, got 2"):
        cmslap.RLRDSR(scale=3)(torch.rand(1, 1, 4, 4), 2)


def test_its_files_say_what_it_is(tmp_path):
    network = random_network(scale=3, recursions=2, channels=5, growth=3)
    cmslap.save_model(network, tmp_path / "network.safetensors")
    assert cmslap.load_model(tmp_path / "network.safetensors").config() == network.config()
    tensors = network.state_dict()
    assert cmslap.RLRDSR.config_of(tensors) == {"scale": 3, "channels": 5, "growth": 3}
