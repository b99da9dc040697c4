import numpy as np
import pytest
from PIL import Image, ImageCms

from cmslap.imaging import ImageError, ImageWarning, interpolable

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
