import numpy as np
import pytest
import torch
from PIL import Image, ImageCms

from cmslap.imaging import ImageError, ImageWarning, interpolable, rgb_to_ycbcr, ycbcr_to_rgb

EXPECTED = {
    "1": "L", "L": "L", "LA": "LA", "La": "LA", "P": "RGB", "PA": "RGBA", "RGB": "RGB", "RGBA": "RGBA", "RGBa": "RGBA",
    "RGBX": "RGB", "CMYK": "RGB", "YCbCr": "RGB", "HSV": "RGB", "LAB": "RGB", "I": "I;16", "I;16": "I;16",
    "I;16B": "I;16", "I;16L": "I;16", "F": "F",
}  # fmt: skip


@pytest.mark.parametrize("mode", EXPECTED)
def test_every_mode_becomes_one_that_can_be_interpolated(mode):
    image = Image.new(mode, (5, 4))
    image.info = {"dpi": (72, 72), "exif": b"Exif\0\0", "comment": "gone"}
    plain = interpolable(image)
    assert plain.mode == EXPECTED[mode]
    assert plain.size == (5, 4)
    assert plain.info == {"dpi": (72, 72), "exif": b"Exif\0\0"}


@pytest.mark.parametrize(("mode", "key", "expected"), [("L", 7, "LA"), ("RGB", (7, 7, 7), "RGBA"), ("P", 7, "RGBA")])
def test_a_transparent_key_colour_becomes_alpha(mode, key, expected):
    image = Image.new(mode, (2, 1), key)
    image.putpixel((1, 0), 8 if mode != "RGB" else (8, 8, 8))
    image.info["transparency"] = key
    plain = interpolable(image)
    assert plain.mode == expected
    assert list(plain.getchannel("A").tobytes()) == [0, 255]


def test_16_bit_values_are_kept_whatever_the_byte_order():
    values = np.random.randint(0, 65536, (4, 6), dtype=np.uint16)
    for mode, kind in (("I;16", "<u2"), ("I;16B", ">u2"), ("I", "<i4")):
        image = Image.frombytes(mode, (6, 4), values.astype(kind).tobytes())
        assert np.array_equal(np.asarray(interpolable(image)), values)


@pytest.mark.parametrize("value", [-1, 65536])
def test_integers_beyond_16_bits_are_refused(value):
    with pytest.raises(ImageError, match=str(value)):
        interpolable(Image.new("I", (3, 3), value))


def test_only_a_profile_of_the_new_mode_s_colour_space_is_kept():
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for mode, kept in (("RGB", True), ("P", True), ("RGBA", True), ("L", False), ("CMYK", False)):
        image = Image.new(mode, (3, 3))
        image.info["icc_profile"] = srgb
        assert ("icc_profile" in interpolable(image).info) is kept
    image = Image.new("RGB", (3, 3))
    image.info["icc_profile"] = b"no profile"
    assert "icc_profile" not in interpolable(image).info


def test_an_unusable_cmyk_profile_is_said():
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    profile[16:20] = b"CMYK"  # claims CMYK, but has only the RGB tables
    image = Image.new("CMYK", (3, 3), (0, 255, 255, 0))
    image.info["icc_profile"] = bytes(profile)
    with pytest.warns(ImageWarning, match="CMYK profile"):
        plain = interpolable(image)
    assert plain.getpixel((0, 0)) == (255, 0, 0)
    assert "icc_profile" not in plain.info


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
