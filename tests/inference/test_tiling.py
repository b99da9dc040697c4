import math

import pytest
import torch
from torch import nn

import cmslap
from cmslap.inference.tiling import MEMBERS, fitting_tile, self_ensemble, tiles


def positive(model: nn.Module) -> nn.Module:
    """Weights with which no contribution can cancel or vanish: the support of the gradient is the receptive field."""
    for parameter in model.parameters():
        nn.init.constant_(parameter, 0.1)
    return model.double()


NETWORKS = {
    "CMS-LapSRN D1R1": lambda: cmslap.CMSLapSRN(depth=1, recursions=1, channels=2, shared_conv=1),
    "CMS-LapSRN D3R2": lambda: cmslap.CMSLapSRN(depth=3, recursions=2, channels=1),
    "MS-LapSRN D2R2": lambda: cmslap.MSLapSRN(depth=2, recursions=2, channels=2),
    "LapSRN D1": lambda: cmslap.LapSRN(scale=8, depth=1, channels=2),
    "LapSRN D4": lambda: cmslap.LapSRN(scale=8, depth=4, channels=1),
    "VDSR D4": lambda: cmslap.VDSR(depth=4, channels=1),
    "Asym_VDSR D5": lambda: cmslap.AsymVDSR(depth=5, channels=2),
    "MASRN": lambda: cmslap.MASRN(channels=1),
}


@pytest.mark.parametrize(
    ("name", "scale"),
    [(name, scale) for name, network in NETWORKS.items() for scale in (2, 3, 4, 8) if scale in network().scales],
)
def test_radius_is_exactly_the_support_of_the_gradient(name, scale):
    model = positive(NETWORKS[name]())
    radius = model.receptive_field_radius(scale)
    middle = radius + 3
    size = 1, model.image_channels, 2 * middle + 1, 5
    y = torch.rand(size, dtype=torch.float64, requires_grad=True)
    pixel = model(y, scale)[-1][..., scale * middle : scale * (middle + 1), :]
    (gradient,) = torch.autograd.grad(pixel.sum(), y)
    rows = gradient.abs().amax(dim=(0, 1, 3)).nonzero().flatten()
    assert max(middle - rows.min(), rows.max() - middle) == radius


def test_radius_of_the_published_networks():
    assert [cmslap.CMSLapSRN().receptive_field_radius(scale) for scale in (2, 4, 8)] == [42, 62, 72]
    assert [cmslap.LapSRN(scale=8).receptive_field_radius(scale) for scale in (2, 4, 8)] == [12, 17, 20]
    assert [cmslap.VDSR().receptive_field_radius(scale) for scale in (2, 3, 4)] == [12, 8, 7]
    assert [cmslap.MASRN().receptive_field_radius(scale) for scale in (2, 3, 4)] == [48, 46, 46]


@pytest.mark.parametrize(("size", "halo"), [(0, 9), (1, 0), (7, 3), (32, 5), (100, 62)])
def test_tiles_cover_every_pixel_once_and_stay_inside(size, halo):
    height, width = torch.randint(1, 90, (2,)).tolist()
    times = torch.zeros(height, width)
    for tile in tiles(height, width, size, halo):
        times[slice(*tile.rows), slice(*tile.columns)] += 1
        for (start, stop), (first, last), length in (
            (tile.rows, tile.crop_rows, height),
            (tile.columns, tile.crop_columns, width),
        ):
            assert stop - start <= (size or length)
            assert (first, last) == (max(start - halo, 0), min(stop + halo, length))
    assert (times == 1).all()


def test_tiles_are_even():
    assert [tile.columns for tile in tiles(10, 100, 90, 5)] == [(0, 50), (50, 100)]


def test_fitting_tile():
    assert fitting_tile(100, 100, halo=10, pixels=10_000) == 100
    assert fitting_tile(100, 102, halo=10, pixels=10_000) == 51
    assert fitting_tile(5000, 5000, halo=10, pixels=0) == 32
    assert fitting_tile(20, 9, halo=10, pixels=0) == 20


@pytest.mark.parametrize("halo", [3, 62])
def test_fitting_tile_fits_and_the_next_larger_does_not(halo):
    height, width = torch.randint(300, 1500, (2,)).tolist()
    pixels = int(torch.randint((4 * halo + 64) ** 2, 600**2, ()))

    def most(size):
        crops = [(t.crop_rows, t.crop_columns) for t in tiles(height, width, size, halo)]
        return max((bottom - top) * (right - left) for (top, bottom), (left, right) in crops)

    size, longer = fitting_tile(height, width, halo, pixels), max(height, width)
    assert most(size) <= pixels
    fewer = math.ceil(longer / size) - 1
    assert fewer == 0 or most(math.ceil(longer / fewer)) > pixels


@pytest.mark.parametrize("ensemble", [False, True])
@pytest.mark.parametrize("scale", [2, 4])
@pytest.mark.parametrize(
    "model",
    [
        lambda: cmslap.CMSLapSRN(depth=2, recursions=2, channels=6, shared_conv=2),
        lambda: cmslap.MSLapSRN(depth=3, recursions=1, channels=4),
        lambda: cmslap.LapSRN(scale=4, depth=3, channels=5),
    ],
)
def test_tiled_equals_untiled(model, scale, ensemble, enlarge):
    model = model()
    y = torch.rand(37, 52)
    whole = enlarge(model, y, scale, tile=0, ensemble=ensemble)
    for tile in (1 + int(torch.randint(6, 12, ())), 30):
        tiled = enlarge(model, y, scale, tile=tile, ensemble=ensemble)
        torch.testing.assert_close(tiled, whole, rtol=0, atol=1e-5)


@pytest.mark.parametrize("scale", [2, 4])
def test_tiled_equals_untiled_in_the_published_depth(scale, enlarge):
    model = cmslap.CMSLapSRN(channels=4).double()  # D5 R8: 40 convolutions a level, which amplify float32's rounding
    nn.init.normal_(model.conv_in.weight, std=0.3)  # strong enough features to see what a halo lacks
    y = torch.rand(20, 260 if scale == 2 else 300)
    whole = enlarge(model, y, scale, tile=0)
    torch.testing.assert_close(enlarge(model, y, scale, tile=100), whole, rtol=0, atol=1e-5)


def test_a_halo_one_pixel_short_would_show():
    """The tile tests above can fail: with the halo one pixel narrower they do."""
    model = positive(cmslap.CMSLapSRN(depth=1, recursions=1, channels=2, shared_conv=1)).float()
    y = torch.rand(9, 40)
    halo = model.receptive_field_radius(2)
    with torch.no_grad():
        whole = model(y[None, None], 2)[-1][0, 0]
        for cut, exact in ((halo, True), (halo - 1, False)):
            part = model(y[None, None, :, 20 - cut :], 2)[-1][0, 0]
            assert torch.allclose(part[:, 2 * cut :], whole[:, 40:], rtol=0, atol=1e-6) is exact


def test_a_pixelwise_network_is_unchanged():
    y = torch.rand(5, 7)
    torch.testing.assert_close(self_ensemble(lambda t: 2 * t, y), 2 * y)


def test_every_flip_and_rotation_is_run_once():
    y, seen = torch.arange(6.0).view(2, 3), []

    def run(turned):
        assert turned.is_contiguous()
        seen.append(turned.clone())
        return turned

    self_ensemble(run, y)
    assert len({(tuple(t.shape), tuple(t.flatten().tolist())) for t in seen}) == len(seen) == MEMBERS


def test_the_result_turns_with_the_image():
    """What a lopsided network makes of a turned image is, averaged, the turned result: that is what it is for."""
    kernel = torch.rand(1, 1, 3, 3)

    def lopsided(t):
        return torch.nn.functional.conv_transpose2d(t[None, None], kernel, stride=2)[0, 0, :-1, :-1]

    y = torch.rand(6, 4)
    result = self_ensemble(lopsided, y)
    for turn in (lambda t: t.flip(-1), lambda t: t.rot90(1, (-2, -1)), lambda t: t.mT):
        torch.testing.assert_close(self_ensemble(lopsided, turn(y)), turn(result))
    assert not torch.allclose(lopsided(y.flip(-1)), lopsided(y).flip(-1))
