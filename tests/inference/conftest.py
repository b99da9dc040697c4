import pytest
import torch

from cmslap.inference import super_resolve
from cmslap.inference.tiling import divide

torch.set_num_threads(1)  # the tensors here are tiny: more threads only wait for each other


@pytest.fixture
def enlarge():
    """A network's own result, not clamped, for an image [H, W] or [C, H, W] in tiles of some size."""

    def run(network, image, factor, tile=None, **options):
        planes = image.reshape(-1, *image.shape[-2:])
        larger = super_resolve(network, planes, factor, divide(network, factor, image.shape[-2:], tile), **options)
        return larger.reshape(*image.shape[:-2], *larger.shape[-2:])

    return run
