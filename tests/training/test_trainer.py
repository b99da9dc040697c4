from __future__ import annotations

import pytest
import torch

from cmslap.training.config import LossConfig
from cmslap.training.trainer import pixel_loss, pyramid_loss


@pytest.fixture
def pair():
    return torch.rand(3, 1, 8, 8, dtype=torch.float64), torch.rand(3, 1, 8, 8, dtype=torch.float64)


def test_pixel_losses_are_their_definitions(pair):
    output, target = pair
    error = output.float() - target
    assert torch.equal(pixel_loss(*pair, LossConfig("l1")), error.abs().mean((1, 2, 3)))
    expected = (error**2 + 0.01**2).sqrt().mean((1, 2, 3))
    torch.testing.assert_close(pixel_loss(*pair, LossConfig("charbonnier", 0.01)), expected)


def test_half_precision_outputs_are_compared_in_float32(pair):
    output, target = (x.float() for x in pair)
    expected = pixel_loss(output.bfloat16().float(), target, LossConfig())
    assert torch.equal(pixel_loss(output.bfloat16(), target, LossConfig()), expected)


def test_level_weights_count_from_the_full_size_down():
    outputs = [torch.rand(2, 1, side, side) for side in (4, 8, 16)]
    targets = [torch.rand_like(x) for x in outputs]
    loss = LossConfig("l1", level_weights=[1.0, 0.5, 0.25])
    small, middle, large = (pixel_loss(x, y, loss) for x, y in zip(outputs, targets, strict=True))
    torch.testing.assert_close(pyramid_loss(outputs, targets, loss), large + 0.5 * middle + 0.25 * small)
    torch.testing.assert_close(pyramid_loss(outputs[2:], targets[2:], loss), large)
    unweighted = pyramid_loss(outputs, targets, LossConfig("l1"))
    torch.testing.assert_close(unweighted, large + middle + small)
