"""VDSR and Asym_VDSR beside their definition in plain PyTorch; bicubic enlargement beside ``imresize``."""

import copy
import random

import pytest
import torch
import torch.nn.functional as F
from randomising import randomised

import cmslap
from cmslap.imaging import imresize
from cmslap.models.bicubic import enlarge
from cmslap.ops import extension

NETWORKS = (cmslap.VDSR, cmslap.AsymVDSR)


def definition(model, y, scale):
    """What the papers draw: bicubic, a convolution or a pair at a time, the sum."""
    image = imresize(y, scale)
    x = F.relu(F.conv2d(image, model.conv_in.weight, model.conv_in.bias, padding=1))
    for layer, bias in enumerate(model.middle_bias):
        if isinstance(model, cmslap.VDSR):
            x = F.conv2d(x, model.middle_weight.chunk(model.depth - 2)[layer], bias, padding=1)
        else:
            x = F.conv2d(x, model.vertical_weight.chunk(model.depth - 2)[layer], padding=(1, 0))
            x = F.conv2d(x, model.horizontal_weight.chunk(model.depth - 2)[layer], bias, padding=(0, 1))
        x = F.relu(x)
    return image + F.conv2d(x, model.conv_out.weight, model.conv_out.bias, padding=1)


@pytest.mark.parametrize("size", [(1, 1), (1, 6), (2, 3), (7, 5)])
@pytest.mark.parametrize("scale", [2, 3, 4, 7])
def test_enlargement_is_that_of_imresize(size, scale):
    image = torch.randn(2, 3, *size, dtype=torch.float64)
    torch.testing.assert_close(enlarge(image, scale), imresize(image, scale), rtol=1e-12, atol=1e-12)


def test_parameters():
    counts = {
        network: [sum(p.numel() for p in network().parameters() if (p.ndim == 4) is kernel) for kernel in (True, False)]
        for network in NETWORKS
    }
    assert counts == {cmslap.VDSR: [664_704, 1_217], cmslap.AsymVDSR: [443_520, 1_217]}


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("scale", [2, 3, 4])
def test_values_and_gradients_are_the_definitions(network, scale):
    model = randomised(network, depth=random.randint(3, 6), channels=random.randint(1, 7))
    size = random.randint(1, 9), random.randint(1, 9)
    y = torch.rand(2, 1, *size, dtype=torch.float64, requires_grad=True)
    expected = definition(model, y, scale)
    (image,) = model(y, scale)
    torch.testing.assert_close(image, expected, rtol=1e-10, atol=1e-12)
    toward = torch.randn_like(expected)
    inputs = [y, *model.parameters()]
    gradients = torch.autograd.grad(image, inputs, toward)
    for ours, theirs in zip(gradients, torch.autograd.grad(expected, inputs, toward), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-10)


@pytest.mark.skipif(extension.MISSING is not None, reason=str(extension.MISSING))
@pytest.mark.parametrize("network", NETWORKS)
def test_the_whole_network_in_float32(network):
    exact = randomised(network)
    y = torch.rand(1, 1, random.randint(9, 17), random.randint(9, 17), dtype=torch.float64)
    with torch.no_grad():
        expected = definition(exact, y, 3)
        (image,) = copy.deepcopy(exact).float()(y.float(), 3)
    assert (image - expected).norm() <= 1e-5 * expected.norm()


def test_a_pair_starts_with_the_power_of_the_kernel_it_stands_for():
    power = [network(depth=12).middle_kernels().square().mean().item() for network in NETWORKS]
    assert power[1] == pytest.approx(power[0], rel=0.05)


@pytest.mark.parametrize("network", NETWORKS)
def test_bicubic_is_what_training_starts_from(network):
    y = torch.rand(1, 1, 12, 12)
    with torch.no_grad():
        assert (network()(y, 2)[0] - imresize(y, 2)).square().mean().sqrt() < 0.1


@pytest.mark.parametrize("network", NETWORKS)
def test_a_bare_state_dict_says_which_it_is(network, tmp_path):
    model = network(depth=3, channels=2)
    torch.save(model.state_dict(), tmp_path / "bare.pth")
    loaded = cmslap.load_model(tmp_path / "bare.pth")
    assert (type(loaded), loaded.config()) == (network, {"depth": 3, "channels": 2})


@pytest.mark.parametrize("network", NETWORKS)
def test_arguments(network):
    with pytest.raises(ValueError, match="so 3 or more, got 2"):
        network(depth=2)
    with pytest.raises(ValueError, match="scale must be one of whole numbers, 2 or more, got 1"):
        network(depth=3, channels=1)(torch.rand(1, 1, 3, 3), 1)
