"""MASRN beside its definition in plain PyTorch."""

import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from randomising import randomised

import cmslap
from cmslap.imaging import imresize
from cmslap.models.masrn import Pair


def plain_pair(pair, x):
    reach = pair.size // 2
    x = F.conv2d(x, pair.horizontal, padding=(0, reach))
    return F.conv2d(x, pair.vertical, pair.bias, padding=(reach, 0))


def definition(model, image, scale):
    x = F.conv2d(image, model.conv_in.weight, model.conv_in.bias, padding=1)
    maps = [x]
    for block in model.blocks:
        a, b, c, d = block.pairs
        x = x + plain_pair(b, F.relu(plain_pair(a, x)))
        x = x + plain_pair(d, F.relu(plain_pair(c, x)))
        maps.append(x)
    x = F.conv2d(torch.cat(maps, 1), model.bottleneck.weight, model.bottleneck.bias)
    x = F.conv2d(x, model.conv_mid.weight, model.conv_mid.bias, padding=1)
    upscale = model.upscale[str(scale)]
    for conv in upscale.convs:
        x = F.conv2d(x, conv.weight, conv.bias, padding=1)
        x = F.pixel_shuffle(x, int((conv.out_channels // conv.in_channels) ** 0.5))
    enlarged = imresize(image, scale) + F.conv2d(x, upscale.conv_out.weight, upscale.conv_out.bias, padding=1)
    refine = model.refine
    x = F.conv2d(enlarged, refine.conv_in.weight, refine.conv_in.bias, padding=1)
    branches = [F.relu(plain_pair(b, F.relu(plain_pair(a, x)))) for a, b in refine.branches]
    return enlarged + F.conv2d(torch.cat(branches, 1), refine.conv_out.weight, refine.conv_out.bias)


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_values_and_gradients_are_the_definitions(scale):
    model = randomised(cmslap.MASRN, channels=random.randint(1, 5))
    image = torch.rand(2, 3, random.randint(1, 9), random.randint(1, 9), dtype=torch.float64, requires_grad=True)
    expected = definition(model, image, scale)
    (enlarged,) = model(image, scale)
    torch.testing.assert_close(enlarged, expected, rtol=1e-10, atol=1e-10)
    used = [parameter for name, parameter in model.named_parameters() if not name.startswith("upscale")]
    inputs = [image, *used, *model.upscale[str(scale)].parameters()]
    toward = torch.randn_like(expected)
    gradients = torch.autograd.grad(enlarged, inputs, toward)
    for ours, theirs in zip(gradients, torch.autograd.grad(expected, inputs, toward), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("size", [1, 3, 5, 7, 9])
def test_a_pair_runs_as_the_fused_convolution_or_as_two(size):
    channels = random.randint(1, 20)
    pair = Pair(channels, size)
    for parameter in pair.parameters():
        torch.nn.init.normal_(parameter)
    x = torch.randn(2, channels, random.randint(1, 12), random.randint(1, 12))
    with torch.no_grad():
        expected = F.relu(plain_pair(pair.double(), x.double()))
        found = pair.float()(x, 0.0)
    assert (found - expected).norm() <= 1e-5 * expected.norm() + 1e-6


def test_parameters_and_what_the_scales_share():
    model = cmslap.MASRN()
    counts = {name: sum(p.numel() for p in module.parameters()) for name, module in model.upscale.items()}
    total = sum(parameter.numel() for parameter in model.parameters())
    assert (total, total - sum(counts.values())) == (1_648_652, 867_971)


def test_bicubic_is_what_training_starts_from():
    image = torch.rand(1, 3, 12, 12)
    with torch.no_grad():
        for scale in (2, 3, 4):
            assert (cmslap.MASRN()(image, scale)[0] - imresize(image, scale)).square().mean().sqrt() < 0.1


def test_other_scales_are_refused():
    with pytest.raises(ValueError, match="scale must be one of 2, 3 and 4, got 5"):
        cmslap.MASRN(channels=1)(torch.rand(1, 3, 4, 4), 5)


def test_a_bare_state_dict_says_what_it_is(tmp_path):
    torch.save(cmslap.MASRN(channels=2).state_dict(), tmp_path / "bare.pth")
    loaded = cmslap.load_model(tmp_path / "bare.pth")
    assert (type(loaded), loaded.config()) == (cmslap.MASRN, {"channels": 2})


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "I;16"])
def test_upscaling_in_tiles_keeps_the_mode(mode):
    model = randomised(cmslap.MASRN, channels=2).float()
    for parameter in model.parameters():
        parameter.data.mul_(0.7)  # so that clamping leaves most pixels as they are
    pixels = np.random.randint(0, 256, (57, 60, 4), dtype=np.uint8)
    image = Image.fromarray(pixels[..., 0].astype(np.uint16) * 257) if mode == "I;16" else Image.fromarray(pixels)
    image = image if mode == "I;16" else image.convert(mode)
    whole, tiled = (cmslap.upscale(image, 3, model, tile=tile) for tile in (0, 7))
    assert (tiled.mode, tiled.size) == (mode, (180, 171))
    steps = np.abs(np.asarray(tiled).astype(int) - np.asarray(whole).astype(int))
    assert steps.max() <= (1 if mode != "I;16" else 8)  # where rounding falls
