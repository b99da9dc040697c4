"""A network the package has never seen, through everything: it knows of a network only what the network says."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import cmslap
from cmslap.checkpoints.checkpoint import CheckpointError
from cmslap.evaluation.evaluate import BenchmarkError, evaluate, quality
from cmslap.imaging import imresize, rgb_to_ycbcr
from cmslap.inference import tiling
from cmslap.inference.upscaling import UpscaleError
from cmslap.models import NETWORKS, Network
from cmslap.training.config import ConfigError, from_dict


class TinyRGB(Network):
    """Unlike the package's own: RGB, scales 2 and 3, no levels. Bicubic plus two convolutions and a pixel shuffle."""

    image_channels = 3
    scales = (2, 3)
    scales_in_words = "2 and 3"

    def __init__(self, channels: int = 4) -> None:
        super().__init__()
        self.channels = channels
        self.conv_in = nn.Conv2d(3, channels, 3, padding=1)
        self.heads = nn.ModuleDict({str(scale): nn.Conv2d(channels, 3 * scale**2, 1) for scale in self.scales})

    def receptive_field_radius(self, scale: int) -> int:
        return 2  # bicubic's; the convolutions read one pixel around

    def largest_map(self, scale: int) -> int:
        return max(self.channels, 3 * scale**2)

    def forward(
        self,
        image: Tensor,  # [N, 3, H, W]
        scale: int | None = None,
    ) -> list[Tensor]:  # [N, 3, scale H, scale W]
        scale = self.check_scale(scale or 2)
        residual = nn.functional.pixel_shuffle(self.heads[str(scale)](torch.relu(self.conv_in(image))), scale)
        return [imresize(image, scale) + 0.1 * residual]


@pytest.fixture
def network(monkeypatch):
    monkeypatch.setitem(NETWORKS, "TinyRGB", TinyRGB)
    return TinyRGB().eval()


def planes(array):
    return torch.from_numpy(array).permute(2, 0, 1).double() / 255


def pixels(larger):
    return larger.clamp(0, 1).mul(255).round().permute(1, 2, 0).numpy()


@pytest.mark.parametrize("scale", [2, 3])
def test_rgb_goes_in_and_comes_out(network, scale):
    rgb = np.random.randint(0, 256, (13, 11, 3), dtype=np.uint8)
    with torch.no_grad():
        expected = pixels(network(planes(rgb).float()[None], scale)[0][0])
    assert np.abs(cmslap.upscale(rgb, scale, network).astype(int) - expected).max() <= 1
    image = cmslap.upscale(Image.fromarray(rgb), scale, network)
    assert (image.mode, image.size) == ("RGB", (11 * scale, 13 * scale))


def test_a_scale_between_comes_from_the_next_larger_one(network):
    rgb = np.random.rand(12, 10, 3).astype(np.float32)
    with torch.no_grad():
        larger = network(torch.from_numpy(rgb).permute(2, 0, 1)[None], 3)[0][0]
    expected = imresize(larger, size=(30, 25)).clamp(0, 1).permute(1, 2, 0).numpy()
    np.testing.assert_allclose(cmslap.upscale(rgb, 2.5, network), expected, atol=1e-5)


@pytest.mark.parametrize("arguments", [{}, {"ensemble": True}])
def test_tiles_change_nothing(network, arguments):
    rgb = np.random.rand(40, 33, 3).astype(np.float32)
    whole = cmslap.upscale(rgb, 3, network, tile=0, **arguments)
    np.testing.assert_allclose(cmslap.upscale(rgb, 3, network, tile=9, **arguments), whole, atol=1e-5)
    if arguments:
        assert not np.allclose(whole, cmslap.upscale(rgb, 3, network, tile=0), atol=1e-4)


def test_memory_divides_it_as_it_says(network, monkeypatch):
    seen = []
    network.register_forward_pre_hook(lambda module, arguments: seen.append(arguments[0].shape[-2:]))
    monkeypatch.setattr(tiling, "available_memory", lambda device: 2 * 40 * 40 * network.bytes_per_pixel(2))
    cmslap.upscale(np.random.rand(80, 90, 3), 2, network)
    assert len(seen) > 2
    assert max(height * width for height, width in seen) <= 40 * 40


def test_grey_comes_back_with_the_luma_of_what_the_network_made(network):
    grey = np.random.randint(16, 240, (9, 11), dtype=np.uint8)
    with torch.no_grad():
        larger = network((torch.from_numpy(grey) / 255).expand(1, 3, -1, -1), 2)[0][0]
    luma = (rgb_to_ycbcr(larger)[0] * 255 - 16) * 255 / 219
    assert np.abs(cmslap.upscale(grey, 2, network) - luma.clamp(0, 255).numpy()).max() <= 0.51


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA"])
def test_modes_are_kept_and_alpha_is_bicubic(network, mode):
    image = Image.fromarray(np.random.randint(0, 256, (8, 9, 4), dtype=np.uint8)).convert(mode)
    result = cmslap.upscale(image, 3, network)
    assert (result.mode, result.size) == (mode, (27, 24))
    if mode.endswith("A"):
        alpha = imresize(torch.from_numpy(np.array(image.getchannel("A"))) / 255, 3).clamp(0, 1) * 255
        assert np.array_equal(result.getchannel("A"), alpha.round().numpy())


def test_scales_it_does_not_serve_are_refused(network, tmp_path):
    with pytest.raises(UpscaleError, match="TinyRGB serves scales up to 3, and 4 was asked for"):
        cmslap.upscale(Image.new("RGB", (5, 5)), 4, network)
    with pytest.raises(BenchmarkError, match="scale must be one of 2 and 3, got 4"):
        evaluate(network, tmp_path, [2, 4])


def test_it_is_evaluated_on_luma_of_its_rounded_rgb(network, tmp_path):
    high = np.random.randint(0, 256, (40, 43, 3), dtype=np.uint8)
    Image.fromarray(high).save(tmp_path / "a.png")
    Image.fromarray(high[..., 0]).save(tmp_path / "b.png")
    colour, grey = evaluate(network.double(), tmp_path, [3]).rows
    truth = planes(high)[:, :39, :42]
    with torch.no_grad():
        result = network(imresize(truth, 1 / 3)[None], 3)[0][0]
    assert colour.model.psnr == pytest.approx(quality(result, truth, 3).psnr, abs=1e-3)
    assert grey.model.psnr == pytest.approx(grey.bicubic.psnr, abs=3)  # another image than the colour's red, no failure


def test_it_is_saved_and_loaded_by_its_name(network, tmp_path):
    cmslap.save_model(network, tmp_path / "tiny.safetensors")
    loaded = cmslap.load_model(tmp_path / "tiny.safetensors")
    image = torch.rand(1, 3, 5, 6)
    assert isinstance(loaded, TinyRGB)
    assert torch.equal(loaded(image, 3)[0], network(image, 3)[0])
    rgb = np.random.randint(0, 256, (6, 5, 3), dtype=np.uint8)
    assert np.array_equal(
        cmslap.upscale(rgb, 3, str(tmp_path / "tiny.safetensors"), device="cpu"), cmslap.upscale(rgb, 3, network)
    )


def test_without_registration_it_is_not_saved(tmp_path):
    with pytest.raises(CheckpointError, match="got TinyRGB"):
        cmslap.save_model(TinyRGB(), tmp_path / "tiny.safetensors")


@pytest.mark.usefixtures("network")
def test_a_training_configuration_asks_it_for_its_scales():
    table = {
        "out": "run",
        "steps": 1,
        "batch": 4,
        "model": {"name": "TinyRGB", "channels": 2},
        "data": {"train": ["x"]},
    }
    model = from_dict(table | {"patch": 12, "scales": [2, 3]}).build_model()
    assert model.config() == {"channels": 2}
    with pytest.raises(ConfigError, match=r"scales = \[2, 4\]: expected distinct 2 and 3"):
        from_dict(table | {"patch": 12, "scales": [2, 4]})
    with pytest.raises(ConfigError, match="patch = 9: expected a multiple of every scale, 6"):
        from_dict(table | {"patch": 9, "scales": [2, 3]})
