import math

import numpy as np
import pytest
import torch

from cmslap.evaluation.metrics import psnr, ssim


def images():
    x = torch.rand(3, 2, 40, 53, dtype=torch.float64)
    return x, (x + 0.2 * torch.randn_like(x)).clamp(0, 1)


@pytest.mark.parametrize("border", [0, 4])
def test_psnr_is_that_of_the_mean_squared_error(border):
    x, y = images()
    inside = (2, 1, slice(border, 40 - border), slice(border, 53 - border))
    error = np.mean((x[inside].numpy() - y[inside].numpy()) ** 2)
    measured = psnr(x, y, border)
    assert measured.shape == (3, 2)
    assert measured[2, 1].item() == pytest.approx(10 * math.log10(1 / error), abs=1e-9)


def test_psnr_of_equal_images_is_infinite():
    x = torch.rand(1, 8, 8)
    assert psnr(x, x).item() == math.inf


@pytest.mark.parametrize("border", [0, 8])
def test_ssim_agrees_with_scikit_image(border):
    structural_similarity = pytest.importorskip("skimage.metrics").structural_similarity
    x, y = images()
    measured = ssim(x, y, border)
    for index in np.ndindex(3, 2):
        inside = (*index, slice(border, 40 - border), slice(border, 53 - border))
        expected = structural_similarity(
            x[inside].numpy(),
            y[inside].numpy(),
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
            data_range=1.0,
        )
        assert measured[index].item() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("metric", [psnr, ssim])
def test_metrics_work_in_float64_whatever_comes(metric):
    x, y = (image.float() for image in images())
    assert metric(x, y).dtype == torch.float64
    assert torch.equal(metric(x, y), metric(x.double(), y.double()))


@pytest.mark.parametrize("metric", [psnr, ssim])
@pytest.mark.parametrize(
    ("x", "y", "border"),
    [((20, 20), (20, 21), 0), ((20,), (20,), 0), ((20, 20), (20, 20), 10), ((20, 20), (20, 20), -1)],
)
def test_metrics_refuse_what_does_not_fit(metric, x, y, border):
    with pytest.raises(ValueError, match="must"):
        metric(torch.rand(x), torch.rand(y), border)


def test_ssim_refuses_images_smaller_than_its_window():
    with pytest.raises(ValueError, match="11x11"):
        ssim(torch.rand(16, 14), torch.rand(16, 14), border=2)
