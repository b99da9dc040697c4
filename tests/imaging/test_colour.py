import pytest
import torch

from cmslap.imaging import rgb_to_ycbcr, ycbcr_to_rgb

# 255·RGB -> 255·YCbCr of BT.601's studio range: white, black, and the saturated primaries.
LANDMARKS = [
    ((255, 255, 255), (235, 128, 128)),
    ((0, 0, 0), (16, 128, 128)),
    ((255, 0, 0), (81.481, 90.203, 240)),
    ((0, 255, 0), (144.553, 53.797, 34.214)),
    ((0, 0, 255), (40.966, 240, 109.786)),
]


@pytest.mark.parametrize(("rgb", "ycbcr"), LANDMARKS)
def test_landmarks(rgb, ycbcr):
    rgb, ycbcr = (torch.tensor(v, dtype=torch.float64).view(3, 1, 1) / 255 for v in (rgb, ycbcr))
    torch.testing.assert_close(rgb_to_ycbcr(rgb), ycbcr, rtol=0, atol=1e-14)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-14), (torch.float32, 1e-6)])
def test_inverse(dtype, tolerance):
    rgb = torch.rand(2, 3, 5, 7, dtype=dtype)
    back = ycbcr_to_rgb(rgb_to_ycbcr(rgb))
    assert back.dtype == dtype
    torch.testing.assert_close(back, rgb, rtol=0, atol=tolerance)


def test_every_8_bit_colour_survives_rounding():
    rgb = torch.randint(0, 256, (3, 64, 64))
    assert torch.equal(ycbcr_to_rgb(rgb_to_ycbcr(rgb.float() / 255)).mul(255).round().long(), rgb)


def test_wrong_tensors_are_refused():
    with pytest.raises(TypeError, match="uint8"):
        rgb_to_ycbcr(torch.zeros(3, 4, 4, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"\[1, 4, 4\]"):
        ycbcr_to_rgb(torch.zeros(1, 4, 4))
