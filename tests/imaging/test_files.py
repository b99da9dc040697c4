import io
import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms

from cmslap.imaging import ImageError, ImageWarning, check_writable, read_image, write_image

LOSSLESS = [("png", mode) for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")]
LOSSLESS += [("tif", mode) for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16", "F", "CMYK")]
LOSSY = [("jpg", "L"), ("jpg", "RGB"), ("jpg", "CMYK"), ("webp", "RGB"), ("webp", "RGBA")]


def random_image(mode: str, width: int = 12, height: int = 9) -> Image.Image:
    if mode == "I;16":
        return Image.fromarray(np.random.randint(0, 65536, (height, width), dtype=np.uint16))
    if mode == "F":
        return Image.fromarray(np.random.rand(height, width).astype(np.float32))
    if mode in ("1", "P"):
        return random_image("RGB", width, height).convert(mode)
    bands = len(Image.new(mode, (1, 1)).getbands())
    return Image.frombytes(mode, (width, height), np.random.bytes(width * height * bands))


def srgb_profile() -> bytes:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def save(folder, name: str, **options):
    path = folder / name
    random_image("RGB").save(path, **options)
    return path


@pytest.mark.parametrize(("suffix", "mode"), LOSSLESS)
def test_lossless_formats_keep_mode_and_pixels(tmp_path, suffix, mode):
    image = random_image(mode)
    write_image(image, tmp_path / f"x.{suffix}")
    back = read_image(tmp_path / f"x.{suffix}")
    assert back.mode == mode
    assert back.convert("RGB").tobytes() == image.convert("RGB").tobytes()
    assert np.array_equal(np.asarray(back), np.asarray(image))


@pytest.mark.parametrize(("suffix", "mode"), LOSSY)
def test_lossy_formats_keep_mode_and_nearly_the_pixels(tmp_path, suffix, mode):
    image = random_image(mode, 1, 1).resize((40, 30)).point(lambda value: 60 + value // 2)  # alpha neither 0 nor 1
    write_image(image, tmp_path / f"x.{suffix}")
    back = read_image(tmp_path / f"x.{suffix}")
    assert back.mode == mode
    assert np.abs(np.asarray(back).astype(int) - np.asarray(image)).max() <= 4


def test_webp_stores_grey_as_rgb(tmp_path):
    for mode in ("L", "LA"):
        write_image(Image.new(mode, (8, 8), 77 if mode == "L" else (77, 99)), tmp_path / "x.webp")
        assert read_image(tmp_path / "x.webp").mode == mode.replace("L", "RGB")


def test_jpeg_keeps_full_chroma(tmp_path):
    red_and_blue = Image.new("RGB", (32, 32), "red")
    red_and_blue.paste("blue", (1, 0, 32, 32))  # an edge inside a 2x2 chroma cell
    write_image(red_and_blue, tmp_path / "x.jpg")
    assert read_image(tmp_path / "x.jpg").getpixel((0, 5))[0] > 200


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["png", "tif", "jpg"])
def test_exif_orientation_is_applied_once_and_reset(tmp_path, orientation, suffix):
    exif = Image.Exif()
    exif[0x0112] = orientation
    exif[0x010F] = "camera"
    path = save(tmp_path, f"turned.{suffix}", exif=exif.tobytes())
    plain = tmp_path / f"plain.{suffix}"
    with Image.open(path) as stored:
        pixels = {1: None, 2: 0, 3: 3, 4: 1, 5: 5, 6: 4, 7: 6, 8: 2}[orientation]  # as Image.Transpose numbers them
        raw = Image.open(path, formats=[stored.format])
        if suffix != "tif":  # Pillow itself turns TIFF
            raw = raw if pixels is None else raw.transpose(Image.Transpose(pixels))
    upright = read_image(path)
    assert upright.tobytes() == raw.tobytes()
    assert upright.size == ((12, 9) if orientation < 5 else (9, 12))
    write_image(upright, plain)
    with Image.open(plain) as again:
        assert again.getexif().get(0x0112, 1) == 1
        if suffix != "tif":
            assert again.getexif()[0x010F] == "camera"
    assert read_image(plain).size == upright.size


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "tif"])
def test_profile_and_resolution_are_kept(tmp_path, suffix):
    profile = srgb_profile()
    path = save(tmp_path, f"x.{suffix}", icc_profile=profile, dpi=(300, 300))
    write_image(read_image(path), tmp_path / f"y.{suffix}")
    with Image.open(tmp_path / f"y.{suffix}") as again:
        assert again.info["icc_profile"] == profile
        if suffix != "webp":  # WebP has no field for it
            assert again.info["dpi"] == pytest.approx((300, 300), abs=0.01)


def test_a_profile_of_another_colour_space_is_not_written(tmp_path):
    image = random_image("L")
    image.info["icc_profile"] = srgb_profile()
    write_image(image, tmp_path / "x.png")
    assert "icc_profile" not in read_image(tmp_path / "x.png").info


def png_of_16_bit_colour() -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = b"".join(b"\0" + np.random.bytes(3 * 2 * 4) for _ in range(4))
    header = struct.pack(">IIBBBBB", 4, 4, 16, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def test_what_is_lost_is_said(tmp_path):
    frames = [Image.new("L", (8, 8), shade) for shade in (10, 200, 90)]
    for name in ("x.gif", "x.tif", "x.webp"):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
        with pytest.warns(ImageWarning, match="3 frames"):
            assert abs(read_image(tmp_path / name).convert("L").getpixel((0, 0)) - 10) < 3
    (tmp_path / "deep.png").write_bytes(png_of_16_bit_colour())
    with pytest.warns(ImageWarning, match="16-bit"):
        read_image(tmp_path / "deep.png")


def test_ordinary_images_give_no_warning(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for suffix in ("png", "jpg", "webp", "tif", "bmp", "gif", "ppm"):
            read_image(save(tmp_path, f"x.{suffix}"))


def damaged_files() -> dict[str, bytes]:
    jpeg, png = io.BytesIO(), io.BytesIO()
    random_image("RGB", 99, 99).save(jpeg, "JPEG")
    random_image("RGB", 99, 99).save(png, "PNG")
    return {
        "empty.png": b"",
        "text.png": b"this is no image\n",
        "truncated.jpg": jpeg.getvalue()[: len(jpeg.getvalue()) // 2],
        "truncated.png": png.getvalue()[: len(png.getvalue()) // 2],
        "postscript.png": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",  # must not start an interpreter
        "flipped.png": png.getvalue()[:60] + bytes(255 - byte for byte in png.getvalue()[60:90]) + png.getvalue()[90:],
    }


@pytest.mark.parametrize("name", damaged_files())
def test_damaged_files_give_one_line_that_names_them(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(damaged_files()[name])
    with pytest.raises(ImageError, match=name) as caught:
        read_image(path)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_file_not_found(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_image(tmp_path / "none.png")


@pytest.mark.parametrize("limit", [100, 60])  # beyond the limit Pillow warns, beyond twice the limit it raises
def test_decompression_bombs_are_errors_that_name_the_limit(tmp_path, monkeypatch, limit):
    path = save(tmp_path, "bomb.png")  # 12 x 9
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit - 50)
    with pytest.raises(ImageError, match=f"{limit - 50} pixels .*MAX_IMAGE_PIXELS"):
        read_image(path)


@pytest.mark.parametrize(
    ("name", "mode", "size", "said"),
    [
        ("x.gif", "RGB", (9, 9), r"\.gif.*\.png"),
        ("x", "RGB", (9, 9), r"without suffix.*\.png"),
        ("x.jpg", "RGBA", (9, 9), r"JPEG.*RGBA.*\.png"),
        ("x.webp", "I;16", (9, 9), r"WEBP.*I;16.*\.png"),
        ("x.webp", "RGB", (16384, 9), r"16383.*16384x9"),
        ("x.jpg", "L", (9, 70000), r"65500.*9x70000"),
    ],
)
def test_what_a_format_cannot_hold_is_refused_before_anything_is_written(tmp_path, name, mode, size, said):
    with pytest.raises(ImageError, match=said):
        check_writable(tmp_path / name, mode, size)


def test_a_refused_image_leaves_no_file(tmp_path):
    with pytest.raises(ImageError):
        write_image(random_image("RGBA"), tmp_path / "x.jpg")
    assert not list(tmp_path.iterdir())


@pytest.mark.filterwarnings("error")
def test_8_bit_colour_is_no_matter_for_a_warning(tmp_path):
    for side in range(1, 65):  # a TIFF decoder is told where the samples lie, at 116 or 160 for some of these
        image = Image.fromarray(np.zeros((side, side, 4), np.uint8))
        image.save(tmp_path / "x.tif", compression="tiff_lzw")
        read_image(tmp_path / "x.tif")
