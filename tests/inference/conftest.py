import pytest
import torch

from cmslap.devices import inference_autocast
from cmslap.inference.tiling import divide, super_resolve_rows


@pytest.fixture
def enlarge():
    """A network's own result, not clamped, for an image [H, W] or [C, H, W] in tiles of some size."""

    def run(network, image, factor, tile=None, **options):
        planes, tiles = image.reshape(-1, *image.shape[-2:]), divide(network, factor, image.shape[-2:], tile)
        autocast = inference_autocast("float32", image.device)
        larger = torch.cat([*super_resolve_rows(network, planes, factor, tiles, autocast=autocast, **options)], -2)
        return larger.reshape(*image.shape[:-2], *larger.shape[-2:])

    return run
