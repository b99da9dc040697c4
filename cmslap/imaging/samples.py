"""What an image's numbers mean: Pillow's modes, samples as planes, and RGB and YCbCr of ITU-R BT.601 in studio range.

All values are fractions of 255: RGB lies in [0, 1], Y in [16/255, 235/255], Cb and Cr in [16/255, 240/255] with grey
at 128/255, as MATLAB's ``rgb2ycbcr`` and ``ycbcr2rgb`` have it. Super-resolution papers run their networks on this Y
and measure PSNR on it.
"""

import io
import warnings

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageCms
from torch import Tensor

from cmslap.errors import UserError

_METADATA = ("icc_profile", "exif", "dpi")
_PROFILE_SPACES = {"L": "GRAY", "LA": "GRAY", "1": "GRAY", "I;16": "GRAY", "F": "GRAY", "CMYK": "CMYK"}  # else RGB
_MATRIX = torch.tensor(
    [[65.481, 128.553, 24.966], [-37.797, -74.203, 112.0], [112.0, -93.786, -18.214]], dtype=torch.float64
).div(255)
_OFFSET = torch.tensor([16.0, 128.0, 128.0], dtype=torch.float64).div(255)
_INVERSE = torch.linalg.inv(_MATRIX)


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


def to_planes(samples: np.ndarray, dtype: type[np.floating]) -> Tensor:  # [H, W] or [H, W, C] -> [1 or C, H, W]
    """An array's unsigned integers as fractions of the largest there are, its floats as they are."""
    planes = torch.from_numpy(samples.astype(dtype)).div_(_white(samples.dtype))
    return planes[None] if samples.ndim == 2 else planes.permute(2, 0, 1)


def store_planes(planes: Tensor, samples: np.ndarray) -> None:  # [C, H, W] -> [H, W] or [H, W, C]
    """The inverse of :func:`to_planes`, clamped to [0, 1], and rounded where samples are integers."""
    planes = planes.clamp(0, 1).mul_(_white(samples.dtype))
    if samples.dtype.kind == "u":
        planes.round_()
    samples[:] = planes[0] if samples.ndim == 2 else planes.permute(1, 2, 0)


def _white(dtype: np.dtype) -> int:
    return 1 if dtype.kind == "f" else np.iinfo(dtype).max


def _check(x: Tensor, name: str) -> None:
    if not x.is_floating_point():
        raise TypeError(f"{name} must be floating point, got {x.dtype}")
    if x.dim() < 3 or x.shape[-3] != 3:
        raise ValueError(f"{name} must be [..., 3, H, W], got shape {list(x.shape)}")


def _mix(matrix: Tensor, x: Tensor) -> Tensor:
    return torch.einsum("ij,...jhw->...ihw", matrix.to(x), x)


def rgb_to_ycbcr(rgb: Tensor) -> Tensor:  # [..., 3, H, W] -> [..., 3, H, W]
    """Y, Cb and Cr of ``rgb`` in [0, 1]. Raises TypeError unless floating point, ValueError unless [..., 3, H, W]."""
    _check(rgb, "rgb")
    return _mix(_MATRIX, rgb) + _OFFSET.to(rgb)[:, None, None]


def ycbcr_to_rgb(ycbcr: Tensor) -> Tensor:  # [..., 3, H, W] -> [..., 3, H, W]
    """The exact inverse of :func:`rgb_to_ycbcr`; not clamped. Raises as that does."""
    _check(ycbcr, "ycbcr")
    return _mix(_INVERSE, ycbcr - _OFFSET.to(ycbcr)[:, None, None])


def luma(image: Tensor) -> Tensor:  # [1 or 3, H, W], grey or RGB -> [1, H, W]
    """Y of a colour image; a grey one as it is."""
    return image if len(image) == 1 else rgb_to_ycbcr(image)[:1]


def split_colour(
    image: Tensor,  # [1 or 3, H, W] in [0, 1], grey or RGB
    channels: int,
) -> tuple[Tensor, Tensor]:  # [channels, H, W], [0 or 2, H, W]
    """What a network of luma (1 channel) or RGB (3) enlarges of an image, and what of it is bicubic: chroma.

    Grey goes through a network of luma as it is, and through one of RGB as three equal channels.
    """
    if len(image) == 3 and channels == 1:
        ycbcr = rgb_to_ycbcr(image)
        return ycbcr[:1], ycbcr[1:]
    return image.expand(channels, -1, -1), image[:0]


def join_colour(
    seen: Tensor,  # [channels, h, w]
    chroma: Tensor,  # [0 or 2, h, w]
    colours: int,  # 1 for a grey image, 3 for RGB
) -> Tensor:  # [colours, h, w]
    """The enlarged image of the two parts that :func:`split_colour` made; grey is the luma of RGB."""
    if len(chroma):
        return ycbcr_to_rgb(torch.cat([seen, chroma]))
    if len(seen) == colours:
        return seen
    return (rgb_to_ycbcr(seen)[:1] - _OFFSET[0].item()) / _MATRIX[0].sum().item()


def spread_colour(
    colour: Tensor,  # [C, H, W]
    alpha: Tensor,  # [1, H, W]
) -> Tensor:  # [C, H, W]
    """``colour`` with that of the visible neighbourhood where ``alpha`` is 0.

    Files store any colour there, mostly black, which interpolation would drag into the visible edge as a dark fringe.
    Pull-push: halve the image, weighted by alpha, until no hole is left, then fill holes from the coarser images.
    """
    return _fill(colour * alpha, alpha, colour) if (alpha > 0).any() else colour


def _fill(weighted: Tensor, weight: Tensor, colour: Tensor) -> Tensor:
    if (weight > 0).all():
        return colour
    halved, half_weight = (F.avg_pool2d(x[None], 2, ceil_mode=True)[0] for x in (weighted, weight))
    half_colour = halved / half_weight.clamp(min=torch.finfo(weight.dtype).tiny)
    coarse = _fill(halved, half_weight, half_colour)
    smooth = F.interpolate(coarse[None], scale_factor=2, mode="bilinear", align_corners=False)[0]
    return torch.where(weight > 0, colour, smooth[:, : weight.shape[-2], : weight.shape[-1]])
