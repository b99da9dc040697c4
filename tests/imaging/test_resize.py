"""imresize against MATLAB's definition, written out as loops over output samples and taps."""

import math
import random

import pytest
import torch

from cmslap.imaging import imresize, imresize_rows


def keys_cubic(x: float) -> float:
    x = abs(x)
    if x <= 1:
        return 1.5 * x**3 - 2.5 * x**2 + 1
    return -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2 if x <= 2 else 0.0


def resize_line(line: list[float], out_length: int, scale: float) -> list[float]:
    """MATLAB's contributions() and its use, for one line, with 1-based coordinates as there."""
    shrink = min(scale, 1.0)
    result = []
    for position in range(1, out_length + 1):
        centre = position / scale + 0.5 * (1 - 1 / scale)
        taps = []
        for index in range(math.floor(centre - 2 / shrink) - 1, math.ceil(centre + 2 / shrink) + 2):
            source = index
            while not 1 <= source <= len(line):  # symmetric edges: ... 2 1 | 1 2 ... n | n n-1 ...
                source = 1 - source if source < 1 else 2 * len(line) + 1 - source
            taps.append((shrink * keys_cubic(shrink * (centre - index)), line[source - 1]))
        result.append(sum(w * v for w, v in taps) / sum(w for w, _ in taps))
    return result


def resize_image(x: torch.Tensor, out_size: tuple[int, int], scales: tuple[float, float]) -> torch.Tensor:
    order = (0, 1) if scales[0] <= scales[1] else (1, 0)  # MATLAB shrinks first
    for dim in order:
        lines = x if dim == 1 else x.T
        lines = torch.tensor([resize_line(line, out_size[dim], scales[dim]) for line in lines.tolist()])
        x = lines if dim == 1 else lines.T
    return x


@pytest.fixture(autouse=True)
def double_by_default():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("scale", [2, 4, 8, 3, 1.5, 0.5, 0.25, 0.125, 1 / 3, 0.7, 1])
def test_scale_is_matlab_s(scale):
    height, width = torch.randint(1, 40, (2,)).tolist()
    x = torch.rand(height, width)
    expected = resize_image(x, (math.ceil(height * scale), math.ceil(width * scale)), (scale, scale))
    torch.testing.assert_close(imresize(x, scale), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("size", [(1, 1), (7, 90), (50, 3), (23, 17), (46, 34)])
def test_size_is_matlab_s(size):
    x = torch.rand(23, 17)
    expected = resize_image(x, size, (size[0] / 23, size[1] / 17))
    torch.testing.assert_close(imresize(x, size=size), expected, rtol=0, atol=1e-12)


def test_a_single_pixel_and_narrow_images_grow_and_shrink():
    torch.testing.assert_close(imresize(torch.full((1, 1), 0.3), 5), torch.full((5, 5), 0.3))
    x = torch.rand(1, 9)
    torch.testing.assert_close(imresize(x, 0.3), resize_image(x, (1, 3), (0.3, 0.3)), rtol=0, atol=1e-12)


def test_constant_images_stay_constant_and_scale_1_is_the_identity():
    torch.testing.assert_close(imresize(torch.full((13, 7), 0.7), 0.37), torch.full((5, 3), 0.7))
    x = torch.rand(13, 7)
    torch.testing.assert_close(imresize(x, 1), x)


def test_batches_are_resized_image_by_image():
    x = torch.rand(2, 3, 19, 21)
    each = torch.stack([torch.stack([imresize(plane, 0.25) for plane in image]) for image in x])
    torch.testing.assert_close(imresize(x, 0.25), each)


def test_memory_layout_does_not_matter():
    x = torch.rand(2, 3, 19, 21)
    torch.testing.assert_close(imresize(x.to(memory_format=torch.channels_last), 2), imresize(x, 2))
    torch.testing.assert_close(imresize(x.mT, 2).mT, imresize(x, 2))


def test_float32_stays_float32_and_agrees():
    x = torch.rand(3, 40, 31)
    for scale in (4, 0.25):
        small = imresize(x.float(), scale)
        assert small.dtype == torch.float32
        torch.testing.assert_close(small.double(), imresize(x, scale), rtol=0, atol=1e-6)


def test_autocast_does_not_round_pixels():
    x = torch.rand(1, 1, 32, 32, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        inside = imresize(x, 0.5)
    assert torch.equal(inside, imresize(x, 0.5))


@pytest.mark.parametrize("scale", [2, 0.5])
def test_gradients(scale):
    x = torch.rand(2, 6, 5, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: imresize(x, scale), x)


def test_gradients_work_after_inference_mode_asked_first():
    with torch.inference_mode():
        imresize(torch.rand(37, 41), 0.5)
    x = torch.rand(37, 41, requires_grad=True)
    imresize(x, 0.5).sum().backward()
    assert x.grad.isfinite().all()


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({}, ValueError),
        ({"scale": 2, "size": (4, 4)}, ValueError),
        ({"scale": 0}, ValueError),
        ({"scale": math.nan}, ValueError),
        ({"size": (0, 4)}, ValueError),
    ],
)
def test_impossible_sizes_are_refused(arguments, error):
    with pytest.raises(error):
        imresize(torch.rand(4, 4), **arguments)


def test_integers_and_empty_images_are_refused():
    with pytest.raises(TypeError, match=r"torch\.uint8"):
        imresize(torch.zeros(4, 4, dtype=torch.uint8), 2)
    with pytest.raises(ValueError, match=r"\[0, 4\]"):
        imresize(torch.rand(0, 4), 2)


@pytest.mark.parametrize("size", [(37, 290), (121, 29), (7, 5)])
def test_some_rows_are_those_of_the_whole(size):
    x = torch.rand(2, 23, 31, dtype=torch.float64)
    whole = imresize(x, size=size)
    first, last = sorted(random.sample(range(size[0] + 1), 2))
    torch.testing.assert_close(imresize(x, size=size, rows=(first, last)), whole[:, first:last], rtol=0, atol=1e-14)
    assert imresize(x[:0], size=size, rows=(first, last)).shape == (0, last - first, size[1])


@pytest.mark.parametrize("size", [(37, 50), (121, 29), (40, 31), (7, 5)])
def test_an_image_that_comes_in_rows(size):
    x = torch.rand(2, 40, 31, dtype=torch.float64)
    parts = x.split([1, 16, 3, 0, 20], dim=1)
    rows = list(imresize_rows(parts, 40, size))
    torch.testing.assert_close(torch.cat(rows, 1), imresize(x, size=size), rtol=0, atol=1e-14)
    assert all(part.shape[1] for part in rows)
