import gc

import numpy as np
import pytest
import torch
from PIL import Image

import cmslap
from cmslap.devices import DeviceError
from cmslap.imaging import imresize, rgb_to_ycbcr, ycbcr_to_rgb
from cmslap.inference import tiling, upscaling
from cmslap.inference.upscaling import UpscaleError
from cmslap.models import NETWORKS

SMALL = {
    "CMSLapSRN": {"depth": 2, "recursions": 1, "channels": 4, "shared_conv": 1},
    "VDSR": {"depth": 4, "channels": 4},
    "AsymVDSR": {"depth": 4, "channels": 4},
    "MASRN": {"channels": 2},
    "RLRDSR": {"scale": 3, "recursions": 1, "channels": 4, "growth": 4},
}
every_network = pytest.mark.parametrize("model", SMALL, indirect=True)


@pytest.fixture
def model(request):
    """A network that changes what it is given: the first one, or those the test asks for."""
    name = getattr(request, "param", "CMSLapSRN")
    model = NETWORKS[name](**SMALL[name])
    for key, parameter in model.named_parameters():
        if key.endswith(("conv_in.weight", "conv_out.weight", "tail.weight")):  # most of which start near zero
            torch.nn.init.normal_(parameter, std=0.1)
    return model


class Bilinear(cmslap.CMSLapSRN):
    """The network without its residual: exactly the bilinear image upsampling, so results can be foretold."""

    def __init__(self):
        super().__init__(depth=1, recursions=1, channels=1, shared_conv=1)
        torch.nn.init.zeros_(self.conv_res.weight)


def smooth_image(mode, size=(16, 12)):
    ramp = np.linspace(60, 190, size[0] * size[1]).reshape(size[1], size[0]).astype(np.uint8)
    return Image.fromarray(ramp).convert(mode)


@every_network
@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA", "I;16"])
def test_pillow_modes_are_kept(model, mode):
    image = smooth_image(mode)
    image.info = {"dpi": (72, 72), "exif": b"Exif\0\0"}
    result = cmslap.upscale(image, 3, model)
    assert (result.mode, result.size, result.info) == (mode, (48, 36), image.info)
    if mode.endswith("A"):
        alpha = imresize(torch.from_numpy(np.array(image.getchannel("A"))) / 255, 3).clamp(0, 1) * 255
        assert np.array_equal(result.getchannel("A"), alpha.round().numpy())


@every_network
def test_16_bits_are_more_than_8(model):
    """Whatever the network: two images that differ by less than an 8-bit step differ in the result."""
    ramp = np.linspace(20_000, 20_400, 16 * 12).astype(np.uint16).reshape(12, 16)
    results = [cmslap.upscale(image, 3, model).astype(int) for image in (ramp, ramp + np.uint16(100))]
    assert np.abs(results[1] - results[0]).mean() > 1


def test_luma_goes_through_the_network_and_chroma_is_bicubic(model):
    rgb = np.random.randint(0, 256, (9, 11, 3), dtype=np.uint8)
    ycbcr = rgb_to_ycbcr(torch.from_numpy(rgb).permute(2, 0, 1) / 255)
    with torch.no_grad():
        y = model(ycbcr[None, :1], 4)[-1][0]
    expected = ycbcr_to_rgb(torch.cat([y, imresize(ycbcr[1:], 4)])).clamp(0, 1) * 255
    assert np.array_equal(cmslap.upscale(rgb, 4, model), expected.round().permute(1, 2, 0).numpy().astype(np.uint8))


def test_grey_goes_through_the_network_as_it_is(model):
    grey = np.random.randint(0, 256, (9, 11), dtype=np.uint8)
    with torch.no_grad():
        expected = model(torch.from_numpy(grey)[None, None] / 255, 2)[-1][0, 0].clamp(0, 1) * 255
    assert np.array_equal(cmslap.upscale(grey, 2, model), expected.round().numpy().astype(np.uint8))
    assert np.array_equal(np.asarray(cmslap.upscale(Image.fromarray(grey), 2, model)), expected.round().numpy())


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float16, np.float32, np.float64])
@pytest.mark.parametrize("channels", [(), (1,), (2,), (3,), (4,)])
def test_arrays_keep_dtype_and_dimensions(model, dtype, channels):
    white = np.iinfo(dtype).max if np.issubdtype(dtype, np.integer) else 1
    array = (np.random.rand(6, 5, *channels) * white).astype(dtype)
    result = cmslap.upscale(array, 2, model)
    assert result.dtype == dtype
    assert result.shape == (12, 10, *channels)
    assert result.min() >= 0
    assert result.max() <= white


def test_strided_arrays_are_accepted(model):
    array = np.random.randint(0, 256, (12, 10, 3), dtype=np.uint8)
    turned = array[::-2, ::-1]
    assert np.array_equal(cmslap.upscale(turned, 2, model), cmslap.upscale(turned.copy(), 2, model))


def test_16_bits_stay_16_bits():
    ramp = np.linspace(20_000, 20_200, 16 * 12).astype(np.uint16).reshape(12, 16)  # less than one 8-bit step
    result = cmslap.upscale(Image.fromarray(ramp), 2, Bilinear())
    assert result.mode == "I;16"
    assert len(np.unique(np.asarray(result))) > 100


def test_a_constant_image_keeps_its_colour():
    result = np.asarray(cmslap.upscale(Image.new("RGB", (12, 12), (200, 90, 30)), 2, Bilinear()))
    assert np.abs(result[2:-2, 2:-2].astype(int) - (200, 90, 30)).max() <= 1


def test_hidden_colour_does_not_bleed_into_the_visible():
    def image(hidden):
        image = Image.new("RGBA", (24, 24), (*hidden, 0))
        image.paste((250, 120, 20, 255), (7, 6, 16, 19))
        return image

    black, green = (cmslap.upscale(image(hidden), 4, Bilinear()) for hidden in ((0, 0, 0), (0, 255, 0)))
    assert np.array_equal(np.asarray(black), np.asarray(green))
    visible = np.asarray(black)[np.asarray(black.getchannel("A")) > 0]
    assert np.abs(visible[:, :3].astype(int) - (250, 120, 20)).max() <= 1
    assert 0 < np.asarray(black.getchannel("A"))[24:27].mean() < 255  # the edge of alpha itself is soft


def test_alpha_is_bicubic_and_a_wholly_transparent_image_is_harmless():
    rgba = np.random.randint(0, 256, (8, 9, 4), dtype=np.uint8)
    alpha = imresize(torch.from_numpy(rgba[..., 3]) / 255, 2).clamp(0, 1) * 255
    assert np.array_equal(cmslap.upscale(rgba, 2, Bilinear())[..., 3], alpha.round().numpy())
    assert cmslap.upscale(np.zeros((5, 5, 4), np.uint8), 2, Bilinear())[..., 3].max() == 0


@pytest.mark.parametrize(
    ("scale", "size"),
    [(1.5, (17, 15)), (3, (33, 30)), (4.0, (44, 40)), (2.05, (23, 21)), (16, (176, 160)), (None, (44, 40))],
)
def test_any_scale_above_1(model, scale, size):
    image = Image.new("L", (11, 10), 100)
    assert cmslap.upscale(image, scale, model).size == size


def test_a_scale_between_levels_comes_from_the_next_larger_one(model, enlarge):
    grey = np.random.rand(10, 11)
    larger = enlarge(model, torch.from_numpy(grey.astype(np.float32)), 4)
    expected = imresize(larger, size=(30, 33)).clamp(0, 1).numpy()
    np.testing.assert_allclose(cmslap.upscale(grey, 3, model), expected, atol=1e-6)


def test_size_is_width_and_height_and_may_change_the_shape(model):
    image = Image.new("RGB", (11, 10))
    assert cmslap.upscale(image, model=model, size=(40, 9)).size == (40, 9)


def test_one_pixel_can_be_enlarged(model):
    assert cmslap.upscale(Image.new("RGB", (1, 1)), 8, model).size == (8, 8)


@pytest.mark.parametrize("arguments", [{"tile": 5}, {"ensemble": True}, {"tile": 6, "ensemble": True}])
def test_tiles_and_ensemble_reach_the_network(arguments):
    image = np.random.rand(20, 17)
    expected = cmslap.upscale(image, 2, Bilinear())  # has no preferred direction: the ensemble changes nothing
    np.testing.assert_allclose(cmslap.upscale(image, 2, Bilinear(), **arguments), expected, atol=1e-6)


@every_network
@pytest.mark.parametrize("scale", [3, 1.6])
@pytest.mark.parametrize(("channels", "ensemble"), [(1, False), (2, False), (3, True), (4, False)])
def test_an_image_is_made_of_rows_without_a_seam(model, scale, channels, ensemble, monkeypatch):
    image = np.random.rand(41, 30, channels).astype(np.float32)
    whole = cmslap.upscale(image, scale, model, tile=0, ensemble=ensemble)
    monkeypatch.setattr(upscaling, "_ROWS", 5)
    parts = cmslap.upscale(image, scale, model, tile=16, ensemble=ensemble)
    np.testing.assert_allclose(parts, whole, atol=1e-5)


def test_tiles_are_chosen_when_memory_is_short(model, monkeypatch):
    seen = []
    model.register_forward_pre_hook(lambda module, arguments: seen.append(arguments[0].shape[-2:]))
    image = np.random.rand(80, 90)
    whole = cmslap.upscale(image, 2, model)
    assert seen == [(80, 90)]
    monkeypatch.setattr(tiling, "available_memory", lambda device: 2 * 60 * 60 * model.bytes_per_pixel(2))
    np.testing.assert_allclose(cmslap.upscale(image, 2, model), whole, atol=1e-5)
    assert len(seen) > 2
    assert max(height * width for height, width in seen[1:]) <= 60 * 60


@pytest.mark.parametrize(("shape", "planes"), [((), 1), ((2,), 3), ((3,), 3), ((4,), 6)])
def test_planes_of_an_image_that_are_in_memory_while_the_network_works(model, shape, planes):
    """Luma and chroma once; with alpha, that and chroma in one piece besides."""
    size, found = 300 * 40, []

    def count(*_):
        large = [x for x in gc.get_objects() if type(x) is torch.Tensor and x.numel() >= size]
        found.append(sum({x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in large}.values()))

    model.register_forward_hook(count)
    cmslap.upscale(np.random.rand(300, 40, *shape).astype(np.float32), 2, model, tile=20)
    assert len(found) == 15 * 2
    assert max(found) <= 4 * size * planes


def test_a_result_that_memory_cannot_hold_is_refused(model):
    with pytest.raises(UpscaleError, match=r"GiB of memory.*free"):
        cmslap.upscale(np.zeros((500, 500), np.uint8), 2**20, model)


def test_bfloat16_runs_the_network_in_autocast(model, bfloat16):
    image = np.random.rand(16, 16)
    exact, rounded = (cmslap.upscale(image, 2, model, precision=name) for name in ("float32", "bf16"))
    assert 0 < np.abs(exact - rounded).max() < 0.1
    assert next(model.parameters()).dtype == torch.float32


def test_the_networks_of_the_family(model):
    for network in (cmslap.MSLapSRN(2, 1, 1, 2), cmslap.LapSRN(4, 1, 2)):
        assert cmslap.upscale(Image.new("L", (5, 5)), 4, network).size == (20, 20)
    with pytest.raises(UpscaleError, match=r"up to 4.*8"):
        cmslap.upscale(Image.new("L", (5, 5)), 8, cmslap.LapSRN(4, 1, 2))


GREY = np.zeros((6, 6), np.uint8)


@pytest.mark.parametrize(
    ("image", "arguments", "said"),
    [
        (GREY, {"scale": 1}, "above 1"),
        (GREY, {"scale": 0.5}, "0.5"),
        (GREY, {"scale": float("nan")}, "nan"),
        (GREY, {"scale": "4"}, "'4'"),
        (GREY, {"scale": 2, "size": (12, 12)}, "exclude"),
        (GREY, {"size": (6, 5)}, "6x5"),
        (GREY, {"size": (60, 0)}, "60x0"),
        (GREY, {"tile": -1}, "tile.*-1"),
        (GREY, {"tile": 1.5}, "tile.*1.5"),
        (GREY, {"device": "cpu"}, "device"),
        (np.zeros((6, 6, 5), np.uint8), {}, r"\[6, 6, 5\]"),
        (np.zeros((0, 6), np.uint8), {}, r"\[0, 6\]"),
        (np.zeros((6, 6), np.int64), {}, "int64"),
        (np.full((6, 6), 255.0), {}, "255"),
        (np.full((6, 6), np.nan), {}, "nan"),
        (Image.new("F", (6, 6), 300), {}, "300"),
    ],
)
def test_mistakes_are_named(model, image, arguments, said):
    with pytest.raises(UpscaleError, match=said):
        cmslap.upscale(image, model=model, **arguments)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_an_error():
    with pytest.raises(DeviceError, match="cuda"):
        cmslap.upscale(GREY, device="cuda")


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_the_gpu_gives_the_same_image(model):
    image = np.random.rand(40, 31, 3).astype(np.float32)
    here = cmslap.upscale(image, 4, model, ensemble=True)
    there = cmslap.upscale(image, 4, model.cuda(), ensemble=True, tile=16)
    np.testing.assert_allclose(there, here, atol=2e-3)
