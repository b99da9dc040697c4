"""The networks: parameter counts, the shared kernel, shapes, arguments, copies."""

import copy
import io
import pickle
import random

import pytest
import torch
import torch.nn.functional as F

import cmslap

CLASSES = (cmslap.CMSLapSRN, cmslap.MSLapSRN, cmslap.LapSRN)
SISTERS = (cmslap.VDSR, cmslap.AsymVDSR, cmslap.MASRN)


def small(network, scale=4, **more):
    if network in SISTERS:
        return network(channels=4)
    recursions = {} if network is cmslap.LapSRN else {"recursions": 2}
    return network(scale=scale, depth=3, channels=4, **recursions, **more)


def count(model):
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("scale", [2, 4, 8])
@pytest.mark.parametrize("recursions", [1, 8])
def test_shared_weights_do_not_grow_with_scale_or_recursions(scale, recursions):
    assert count(cmslap.CMSLapSRN(scale=scale, recursions=recursions)) == 185_937
    assert count(cmslap.MSLapSRN(scale=scale, recursions=recursions)) == 222_801


def test_lapsrn_has_the_tables_parameters():
    model = cmslap.LapSRN(scale=4)
    assert count(model) == 814_242
    assert sum(p.numel() for p in model.parameters() if p.ndim == 4) == 812_768


@pytest.mark.parametrize("network", CLASSES)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_level_shapes(network, layout):
    height, width = random.randint(1, 9), random.randint(1, 9)
    y = torch.rand(2, 1, height, width).contiguous(memory_format=layout)
    shapes = [tuple(image.shape) for image in small(network, scale=8)(y)]
    assert shapes == [(2, 1, s * height, s * width) for s in (2, 4, 8)]


@pytest.mark.parametrize("network", CLASSES)
def test_scale_chooses_the_levels(network):
    model, y = small(network, scale=4), torch.rand(1, 1, 5, 3)
    whole = model(y)
    assert len(model(y, scale=2)) == 1
    torch.testing.assert_close(model(y, scale=2)[0], whole[0])
    if network is cmslap.LapSRN:
        with pytest.raises(ValueError, match="scale must be one of powers of two up to 4"):
            model(y, scale=8)
    else:
        assert model(y, scale=16)[-1].shape == (1, 1, 80, 48)
    with pytest.raises(ValueError, match="scale must be one of powers of two"):
        model(y, scale=3)


@pytest.mark.parametrize("network", CLASSES + SISTERS)
def test_a_network_in_channels_last_memory_is_the_same(network):
    model = small(network).double()
    y = torch.rand(1, model.image_channels, 4, 5, dtype=torch.float64)
    expected = model(y)
    model.to(memory_format=torch.channels_last)
    torch.testing.assert_close(model(y.contiguous(memory_format=torch.channels_last)), expected)
    sum(image.sum() for image in model(y)).backward()


@pytest.mark.parametrize("shared_conv", [1, 3])
def test_shared_kernel_is_one_parameter_with_the_gradient_of_both_uses(shared_conv):
    tied = small(cmslap.CMSLapSRN, shared_conv=shared_conv).double()
    assert "upsample_weight" not in tied.state_dict()
    untied = small(cmslap.MSLapSRN).double()
    kernel = tied.embedding_weight.chunk(tied.depth)[shared_conv - 1].detach().clone()
    untied.load_state_dict({**tied.state_dict(), "upsample_weight": kernel})
    y = torch.rand(1, 1, 4, 5, dtype=torch.float64)
    for model in (tied, untied):
        sum(image.square().sum() for image in model(y)).backward()
    torch.testing.assert_close(tied(y), untied(y))
    expected = untied.embedding_weight.grad.clone()
    expected.view(untied.depth, *kernel.shape)[shared_conv - 1] += untied.upsample_weight.grad
    torch.testing.assert_close(tied.embedding_weight.grad, expected)


@pytest.mark.parametrize("recompute", [False, True])
def test_recompute_leaves_the_gradient_alone(recompute):
    model = small(cmslap.CMSLapSRN).double()
    y = torch.rand(1, 1, 4, 5, dtype=torch.float64)
    expected = torch.autograd.grad(model(y)[-1].sum(), list(model.parameters()))
    model.recompute = recompute
    torch.testing.assert_close(torch.autograd.grad(model(y)[-1].sum(), list(model.parameters())), expected)


@pytest.mark.parametrize("network", CLASSES)
def test_image_upsampling_starts_bilinear(network):
    y = torch.rand(1, 1, 6, 5)
    (weight,) = (p for name, p in small(network, scale=2).named_parameters() if name.endswith("image_weight"))
    upsampled = F.conv_transpose2d(y, weight, stride=2, padding=1)
    bilinear = F.interpolate(y, scale_factor=2, mode="bilinear")
    torch.testing.assert_close(upsampled[..., 1:-1, 1:-1], bilinear[..., 1:-1, 1:-1])


@pytest.mark.parametrize("network", CLASSES + SISTERS)
def test_copies_and_pickles(network):
    model = small(network)
    y = torch.rand(1, model.image_channels, 4, 5)
    stream = io.BytesIO()
    torch.save(model.state_dict(), stream)
    stream.seek(0)
    rebuilt = network(**model.config())
    rebuilt.load_state_dict(torch.load(stream, weights_only=True))
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), rebuilt):
        torch.testing.assert_close(other(y), model(y))
        with torch.no_grad():
            next(other.parameters()).add_(1)  # a copy shares nothing
        assert not torch.equal(next(other.parameters()), next(model.parameters()))


@pytest.mark.parametrize("network", CLASSES)
@pytest.mark.parametrize("change", [{"scale": 3}, {"scale": 1}, {"scale": 4.0}, {"channels": 0}])
def test_bad_arguments(network, change):
    (name,) = change
    with pytest.raises(ValueError, match=f"{name} must be"):
        network(**change)


@pytest.mark.parametrize("shared_conv", [0, 6, 2.0, True])
def test_bad_shared_conv(shared_conv):
    with pytest.raises(ValueError, match="shared_conv must be"):
        cmslap.CMSLapSRN(shared_conv=shared_conv)
