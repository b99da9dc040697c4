"""Pillow's modes: which of them can be interpolated, and what becomes of the others."""

import io
import warnings

import numpy as np
from PIL import Image, ImageCms

from cmslap.errors import UserError

_METADATA = ("icc_profile", "exif", "dpi")
_PROFILE_SPACES = {"L": "GRAY", "LA": "GRAY", "1": "GRAY", "I;16": "GRAY", "F": "GRAY", "CMYK": "CMYK"}  # else RGB


class ImageError(UserError, OSError):
    """An image that cannot be read, written or represented; the message names it and what is accepted."""


class ImageWarning(UserWarning):
    """Something of an image that could not be kept."""


def interpolable(image: Image.Image) -> Image.Image:
    """``image`` in a mode whose samples may be interpolated: L, LA, RGB, RGBA, I;16 or F.

    - L, LA, RGB, RGBA, I;16 and F stay; with a transparent key colour L and RGB gain an alpha channel.
    - 1 becomes L and P becomes RGB, or RGBA when it has transparency: interpolation makes values between those of a
      palette, so the result cannot keep it.
    - I must hold values of 0 to 65535 and becomes I;16, as do its byte-swapped kin.
    - CMYK becomes sRGB, through the embedded profile where there is one; every other mode becomes RGB.

    Of ``info`` stay EXIF, resolution, and the ICC profile if it describes the new mode. Raises :class:`ImageError`.
    """
    metadata = kept_metadata(image)
    if image.mode == "CMYK":
        plain = _cmyk_to_srgb(image)
    elif image.mode.startswith("I"):
        plain = _to_16_bit(image)
    elif image.mode == "F":
        plain = image.copy()
    else:
        grey = image.mode in ("1", "L", "LA", "La")
        plain = image.convert(("L" if grey else "RGB") + ("A" if image.has_transparency_data else ""))
    plain.info = metadata
    plain.info = kept_metadata(plain)
    return plain


def to_8_bits(image: Image.Image) -> Image.Image:
    """An interpolable image in 8 bits: of I;16 white is 65535, of F 1; others stay."""
    if image.mode not in ("F", "I;16"):
        return image
    white = 1 if image.mode == "F" else 65535
    values = np.asarray(image, dtype=np.float64).clip(0, white)
    return Image.fromarray(np.rint(values * (255 / white)).astype(np.uint8))


def kept_metadata(image: Image.Image) -> dict:
    """EXIF, resolution and a fitting ICC profile of ``image``, as keyword arguments of ``Image.save``."""
    metadata = {key: image.info[key] for key in _METADATA if image.info.get(key)}
    space = _PROFILE_SPACES.get(image.mode, "RGB")
    if "icc_profile" in metadata and _profile_space(metadata["icc_profile"]) != space:
        del metadata["icc_profile"]
    if not all(value > 0 for value in metadata.get("dpi", ())):
        del metadata["dpi"]
    return metadata


def _profile_space(profile: bytes) -> str | None:
    """The colour space an ICC profile describes: "RGB", "GRAY", "CMYK", ..."""
    try:
        return ImageCms.ImageCmsProfile(io.BytesIO(profile)).profile.xcolor_space.strip()
    except (OSError, ImageCms.PyCMSError):
        return None


def _cmyk_to_srgb(image: Image.Image) -> Image.Image:
    profile = image.info.get("icc_profile")
    if profile and _profile_space(profile) == "CMYK":
        try:
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            return ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
        except ImageCms.PyCMSError as error:
            warnings.warn(f"the CMYK profile is not usable ({error}); colours are approximate", ImageWarning, 3)
    return image.convert("RGB")


def _to_16_bit(image: Image.Image) -> Image.Image:
    values = np.asarray(image)
    if values.min() < 0 or values.max() > 65535:
        raise ImageError(
            f"32-bit integers from {values.min()} to {values.max()} (mode {image.mode}) do not fit 16 bits; "
            "scale them to 0..65535, or pass an array of floats in [0, 1]"
        )
    return Image.fromarray(values.astype(np.uint16))
