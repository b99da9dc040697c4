"""Reading and writing images: PNG, JPEG, WebP, TIFF (and BMP, GIF and PNM to read)."""

import io
import itertools
import os
import stat
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, NoReturn

import numpy as np
from PIL import Image, ImageOps
from torch import Tensor

from cmslap.files import replacing
from cmslap.imaging.samples import ImageError, ImageWarning, interpolable, kept_metadata, to_8_bits, to_planes

READABLE = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp", ".gif", ".ppm", ".pgm", ".pbm")
_READERS = ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF", "PPM")  # no reader that runs other programs


class _Format(NamedTuple):
    name: str
    modes: tuple[str, ...]
    largest_side: int  # pixels
    options: dict


_UNLIMITED = 2**31 - 1
_GREY_OR_RGB = ("L", "LA", "RGB", "RGBA")
_PNG = _Format("PNG", (*_GREY_OR_RGB, "1", "P", "I;16"), _UNLIMITED, {})
_JPEG = _Format("JPEG", ("L", "RGB", "CMYK"), 65500, {"quality": 95, "subsampling": 0})  # 0: full chroma, 4:4:4
_WEBP = _Format("WEBP", _GREY_OR_RGB, 16383, {"quality": 95})
_TIFF = _Format("TIFF", (*_GREY_OR_RGB, "1", "P", "I;16", "F", "CMYK"), _UNLIMITED, {"compression": "tiff_lzw"})
_FORMATS = {".png": _PNG, ".jpg": _JPEG, ".jpeg": _JPEG, ".webp": _WEBP, ".tif": _TIFF, ".tiff": _TIFF}
WRITABLE = tuple(_FORMATS)


def find_images(folder: str | os.PathLike[str], recursive: bool = False) -> list[Path]:
    """The images in a folder, by name and going by their suffixes; hidden ones are left out.

    Raises :class:`ImageError` where there is no such folder or no image in it, OSError where one cannot be read.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ImageError(f"{folder}: no such folder of images")
    walk = os.walk(folder, onerror=_raise)
    found = sorted(
        file
        for root, _, names in (walk if recursive else itertools.islice(walk, 1))
        for file in (Path(root, name) for name in names)
        if file.suffix.lower() in READABLE
        and file.is_file()
        and not any(part.startswith(".") for part in file.relative_to(folder).parts)
    )
    if not found:
        raise ImageError(f"{folder}: no images in this folder ({' '.join(READABLE)})")
    return found


def _raise(error: OSError) -> NoReturn:
    raise error


def read_image(path: str | os.PathLike[str], unlimited: bool = False) -> Image.Image:
    """Read an image upright, in the mode it is stored in, with EXIF, ICC profile and resolution in ``info``.

    The EXIF orientation is applied and its tag removed, which means upright. Of several frames or pages the first is
    read. That, and 16-bit colour, which Pillow reads as 8-bit, give an :class:`ImageWarning`. (TIFF's own tags, but
    for the profile and the resolution, are not kept.)

    Raises :class:`ImageError` for what is no intact image or, unless ``unlimited``, has more pixels than
    ``PIL.Image.MAX_IMAGE_PIXELS``; FileNotFoundError and its like for what cannot be opened.
    """
    with Path(path).open("rb") as file, warnings.catch_warnings():
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            file = io.BytesIO(file.read())  # a pipe, in which readers could not go back
        if not file.read(1):
            raise ImageError(f"{path}: the file is empty")
        file.seek(0)
        try:
            with _pixel_limit(unlimited):
                image = Image.open(file, formats=_READERS)
                _warn_of_losses(image)
                image.load()
                return ImageOps.exif_transpose(image)
        except Image.UnidentifiedImageError:
            raise ImageError(f"{path}: not an image in a known format ({', '.join(_READERS)})") from None
        except (Image.DecompressionBombWarning, Image.DecompressionBombError):
            limit = f"{Image.MAX_IMAGE_PIXELS:,} pixels (PIL.Image.MAX_IMAGE_PIXELS)"
            raise ImageError(f"{path}: larger than the limit of {limit}; `cmslap upscale --huge` reads it") from None
        except MemoryError:
            raise ImageError(f"{path}: there is not enough memory to read it") from None
        except Exception as error:  # on damaged files Pillow's readers raise nearly anything
            raise ImageError(f"{path}: damaged image ({error})") from error


@contextmanager
def _pixel_limit(unlimited: bool) -> Iterator[None]:
    """Pillow's guard against small files that claim to be huge images: an error, or nothing."""
    warnings.simplefilter("error", Image.DecompressionBombWarning)
    limit = Image.MAX_IMAGE_PIXELS
    if unlimited:
        Image.MAX_IMAGE_PIXELS = None
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = limit


def read_planes(path: str | os.PathLike[str]) -> Tensor:  # [1 or 3, H, W] float64 in [0, 1]
    """Read the numbers of an image: one plane of a gray one, three of all others, in RGB; transparency is dropped.

    Raises :class:`ImageError`, of floating-point images too, which have no white level.
    """
    image = read_image(path)
    try:
        image = interpolable(image)
    except ImageError as error:
        raise ImageError(f"{path}: {error}") from error
    if image.mode == "F":
        raise ImageError(f"{path}: a floating-point image has no white level; use 8 or 16 bits")
    if image.mode != "I;16":
        image = image.convert("L" if image.mode in ("L", "LA") else "RGB")
    return to_planes(np.asarray(image), np.float64).contiguous()


def _warn_of_losses(image: Image.Image) -> None:
    frames = getattr(image, "n_frames", 1)
    if frames > 1 and image.format != "MPO":  # the further images of an MPO are previews and depth maps
        warnings.warn(f"of {frames} frames only the first is read", ImageWarning, 3)
    stored = str([tile.args for tile in image.tile])  # how Pillow's decoder is to read samples, such as RGB;16B
    if image.mode in ("LA", "RGB", "RGBA") and ";16" in stored:
        warnings.warn("16-bit colour is read as 8-bit", ImageWarning, 3)


def check_writable(path: str | os.PathLike[str], mode: str, size: tuple[int, int], suffix: str | None = None) -> None:
    """Raise :class:`ImageError` unless ``suffix`` names a format for ``mode`` and ``size``, (width, height).

    Without a ``suffix``, that of ``path``.
    """
    suffix = (Path(path).suffix if suffix is None else suffix).lower()
    if suffix not in _FORMATS:
        raise ImageError(f"{path}: cannot write {suffix or 'a file without suffix'}; use one of {', '.join(WRITABLE)}")
    form = _FORMATS[suffix]
    if mode not in form.modes:
        others = [other for other, candidate in _FORMATS.items() if mode in candidate.modes]
        known = f"use one of {', '.join(others)}" if others else "no format has"
        raise ImageError(f"{path}: {form.name} has no mode {mode}; {known}, or `cmslap upscale --convert`")
    if max(size) > form.largest_side:
        raise ImageError(f"{path}: {form.name} is at most {form.largest_side} pixels a side, got {size[0]}x{size[1]}")


def fitting(image: Image.Image, suffix: str) -> Image.Image:
    """``image`` made to fit a format: where that has no alpha channel on white, where it has no 16 bits in 8."""
    modes = _FORMATS[suffix.lower()].modes if suffix.lower() in _FORMATS else (image.mode,)
    metadata = image.info
    if image.mode not in modes:
        image = to_8_bits(image)
    if image.mode not in modes:
        plain = Image.new(image.mode, image.size, "white")
        plain.alpha_composite(image) if image.mode == "RGBA" else plain.paste(image, mask=image.getchannel("A"))
        image = plain.convert("L" if image.mode == "LA" else "RGB")
    image.info = metadata
    return image


def write_image(image: Image.Image, path: str | os.PathLike[str], suffix: str | None = None) -> None:
    """Write ``image`` with its EXIF, ICC profile and resolution. All or nothing.

    ``suffix``, or without it that of ``path``, says the format.

    JPEG has quality 95 and full chroma, WebP quality 95; WebP knows no grey and stores it as RGB. Raises
    :class:`ImageError` where the format cannot hold the image.
    """
    suffix = Path(path).suffix if suffix is None else suffix
    check_writable(path, image.mode, image.size, suffix)
    form = _FORMATS[suffix.lower()]
    if form is _WEBP and image.mode in ("L", "LA"):
        image = image.convert("RGBA" if image.mode == "LA" else "RGB")
    metadata = {"icc_profile": None, **kept_metadata(image)}  # None: Pillow would write a profile that does not fit
    with replacing(path) as temporary:
        try:
            image.save(temporary, form.name, **form.options, **metadata)
        except ValueError as error:
            raise ImageError(f"{path}: cannot be written ({error})") from error
