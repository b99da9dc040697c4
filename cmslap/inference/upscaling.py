"""Upscaling one image: the network on luma, MATLAB's bicubic on chroma and alpha."""

from __future__ import annotations

import math
import numbers
import os
from collections.abc import Callable

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from tqdm import tqdm

from cmslap.checkpoints.checkpoint import load_model
from cmslap.errors import UserError
from cmslap.imaging import imresize, interpolable, rgb_to_ycbcr, ycbcr_to_rgb
from cmslap.inference.ensemble import MEMBERS, self_ensemble
from cmslap.inference.memory import available_memory, pixels_at_once
from cmslap.inference.tiling import fitting_tile, receptive_field_radius, tiles
from cmslap.inference.transparency import spread_colour
from cmslap.models import LapSRN
from cmslap.precision import inference_autocast

DEFAULT_SCALE = 4


class UpscaleError(UserError, ValueError):
    """A scale, size, tile, device or array that cannot be served; the message says what can."""


def upscale(
    image: Image.Image | np.ndarray,
    scale: float | None = None,
    model: nn.Module | str | os.PathLike[str] | None = None,
    *,
    size: tuple[int, int] | None = None,
    tile: int | None = None,
    ensemble: bool = False,
    device: str | torch.device | None = None,
    precision: str = "float32",
    progress: bool = False,
) -> Image.Image | np.ndarray:
    """Enlarge an image.

    Args:
        image: a Pillow image of any mode, or an array [H, W] or [H, W, C] of uint8, uint16 or floats in [0, 1]; C is 1
            (grey), 2 (grey, alpha), 3 (RGB) or 4 (RGBA).
        scale: factor above 1; 4 if neither it nor ``size`` is given. A power of two is what the network makes; anything
            else comes from its next larger image by MATLAB's bicubic, antialiased.
        size: (width, height) of the result in pixels, instead of ``scale``; larger than ``image`` in one side at least.
        model: a network, or the name or file of one for ``cmslap.load_model``; None is the default network.
        tile: low-resolution pixels a side that run at a time, 0 for the whole image. None divides it where the
            network would take more than half of the memory that is free or, on a CPU, more than 1 GiB; there it takes
            more for tiles of six times the overlap, as smaller ones would mostly repeat work. Tiles overlap by the
            receptive field, so the result is the same.
        ensemble: average over the eight flips and rotations: a little better, eight times the work.
        device: where a model given by name runs, "cpu" or "cuda"; None is the GPU if there is one. A network that is
            passed in runs where it is.
        precision: "float32", or for the features "bfloat16" ("bf16") or "float16" ("fp16"): faster, a little less
            exact. Refused where the device has no such arithmetic: on a CPU, bfloat16 takes AVX512-BF16.
        progress: show a bar over tiles and ensemble members.

    Returns:
        The same kind as ``image``. An array keeps dtype and number of dimensions. Pillow's modes L, LA, RGB, RGBA, I;16
        and F stay and the others become one of them, as :func:`cmslap.imaging.interpolable` says; EXIF, resolution and
        a fitting ICC profile stay in ``info``.

    The network sees the Y channel (ITU-R BT.601, studio range), or grey as it is; Cb, Cr and alpha are bicubic. Fully
    transparent pixels first take the colour of their visible neighbourhood, so that none bleeds out of them.

    Raises :class:`UpscaleError` and :class:`cmslap.precision.PrecisionError` (ValueErrors),
    :class:`cmslap.imaging.ImageError` for a Pillow image without a fitting mode, and what ``load_model`` raises.
    """
    pillow = isinstance(image, Image.Image)
    plain = interpolable(image) if pillow else image
    array = np.asarray(plain)
    planes = _to_planes(array)
    target = target_size(planes.shape[-2:], scale, size)
    model = resolve_model(model, device)
    factor = pyramid_factor(model, planes.shape[-2:], target)
    _check_memory(len(planes), planes.shape[-2:], target, factor)

    def network(y: Tensor) -> Tensor:
        return super_resolve(model, y, factor, tile=tile, ensemble=ensemble, precision=precision, progress=progress)

    try:
        with torch.inference_mode():
            result = _to_array(_upscale_planes(planes, network, target), array)
    except torch.OutOfMemoryError:
        raise UpscaleError("the device's memory does not suffice; give a smaller tile") from None
    if pillow:
        result = Image.fromarray(result)
        result.info = plain.info
    return result


def super_resolve(
    model: nn.Module,
    y: Tensor,  # [H, W] in [0, 1]
    factor: int,
    *,
    tile: int | None = None,
    ensemble: bool = False,
    precision: str = "float32",
    progress: bool = False,
) -> Tensor:  # [factor H, factor W], float32 on the CPU, not clamped
    """Run ``model`` on one luma plane, in tiles where wanted or needed; arguments as for :func:`upscale`."""
    if tile is not None and (isinstance(tile, bool) or not isinstance(tile, int) or tile < 0):
        raise UpscaleError(f"tile must be an integer of at least 0 pixels, got {tile!r}")
    weight = next(model.parameters())
    autocast = inference_autocast(precision, weight.device)
    height, width = y.shape
    halo = receptive_field_radius(model, factor)
    if tile is None:
        tile = fitting_tile(height, width, halo, pixels_at_once(model, factor, halo))
    parts = tiles(height, width, tile, halo)
    runs = len(parts) * (MEMBERS if ensemble else 1)
    result = torch.empty(factor * height, factor * width)
    with (
        torch.inference_mode(),
        autocast,
        tqdm(total=runs, unit="tile", leave=False, disable=None if progress else True) as bar,
    ):

        def run(crop: Tensor) -> Tensor:
            # A strided view is neither memory format, and every feature map would be converted back and forth.
            image = model(crop[None, None].contiguous(memory_format=torch.channels_last), factor)[-1][0, 0].float()
            bar.update()
            return image

        for part in parts:
            crop = y[slice(*part.crop_rows), slice(*part.crop_columns)].to(weight)
            image = self_ensemble(run, crop) if ensemble else run(crop)
            kept = image[_within(part.crop_rows, part.rows, factor), _within(part.crop_columns, part.columns, factor)]
            result[_within((0, height), part.rows, factor), _within((0, width), part.columns, factor)] = kept
    return result


def _within(whole: tuple[int, int], part: tuple[int, int], factor: int) -> slice:
    """Where the low-resolution span ``part`` lies in the enlargement of the span ``whole``."""
    return slice(factor * (part[0] - whole[0]), factor * (part[1] - whole[0]))


def target_size(
    source: tuple[int, int],  # height, width
    scale: float | None = None,
    size: tuple[int, int] | None = None,  # width, height
) -> tuple[int, int]:
    """Height and width of the result of :func:`upscale`. Raises :class:`UpscaleError` unless it is an enlargement."""
    if scale is not None and size is not None:
        raise UpscaleError("scale and size exclude each other; give one of them")
    if size is None:
        scale = DEFAULT_SCALE if scale is None else scale
        if isinstance(scale, bool) or not isinstance(scale, numbers.Real) or not 1 < scale < math.inf:
            raise UpscaleError(f"scale must be a number above 1, got {scale!r}; shrinking is cmslap.imaging.imresize's")
        height, width = (math.floor(side * scale + 0.5) for side in source)
    else:
        width, height = size
        if min(size) < 1 or (height <= source[0] and width <= source[1]):
            smaller = f"{source[1]}x{source[0]}"
            raise UpscaleError(f"size must be larger than the image's {smaller} in one side, got {width}x{height}")
    return height, width


def pyramid_factor(model: nn.Module, source: tuple[int, int], target: tuple[float, float]) -> int:
    """The scale of the first pyramid level that is at least as large as ``target`` (both height and width)."""
    ratio = max(wanted / given for wanted, given in zip(target, source, strict=True))
    factor = 2
    while factor < ratio:
        factor *= 2
    if isinstance(model, LapSRN) and factor > model.scale:
        raise UpscaleError(f"this LapSRN has levels for scales up to {model.scale}, and {ratio:g} was asked for")
    return factor


def resolve_model(
    model: nn.Module | str | os.PathLike[str] | None, device: str | torch.device | None = None
) -> nn.Module:
    """The network itself: the one given, or the one ``cmslap.load_model`` finds under that name, on ``device``."""
    if isinstance(model, nn.Module):
        if device is not None:
            raise UpscaleError("device goes with a model's name; a network that is passed in runs where it is")
        return model
    device = device or "auto"
    return load_model(device=device) if model is None else load_model(model, device=device)


def _check_memory(channels: int, source: tuple[int, int], target: tuple[int, int], factor: int) -> None:
    """The planes themselves cannot be tiled: refuse before the work what would end in swapping or a kill."""
    needed = 4 * (factor**2 * math.prod(source) + 3 * channels * math.prod(target))
    available = available_memory(torch.device("cpu"))
    if needed > available:
        raise UpscaleError(
            f"a result of {target[1]}x{target[0]} pixels needs {needed / 2**30:.1f} GiB of memory, "
            f"and {available / 2**30:.1f} GiB are free"
        )


def _to_planes(array: np.ndarray) -> Tensor:  # [C, H, W], float32 in [0, 1]
    if array.ndim not in (2, 3) or 0 in array.shape or (array.ndim == 3 and array.shape[2] > 4):
        raise UpscaleError(f"image must be [H, W] or [H, W, 1 to 4], got shape {list(array.shape)}")
    if not (array.dtype.kind == "f" or (array.dtype.kind == "u" and array.dtype.itemsize <= 2)):
        raise UpscaleError(f"image must be uint8, uint16 or floating point, got {array.dtype}")
    if array.dtype.kind == "f" and not (array.min() >= 0 and array.max() <= 1):
        raise UpscaleError(f"a floating-point image must lie in [0, 1], got {array.min():g} to {array.max():g}")
    values = torch.from_numpy(array.astype(np.float32)).div_(_white(array.dtype))
    return values[None] if array.ndim == 2 else values.permute(2, 0, 1)


def _to_array(planes: Tensor, like: np.ndarray) -> np.ndarray:
    values = planes.clamp(0, 1).mul_(_white(like.dtype))
    if like.dtype.kind == "u":
        values.round_()
    values = values[0] if like.ndim == 2 else values.permute(1, 2, 0)
    return values.numpy().astype(like.dtype, order="C")


def _white(dtype: np.dtype) -> int:
    return 1 if dtype.kind == "f" else np.iinfo(dtype).max


def _upscale_planes(
    planes: Tensor,  # [C, H, W] in [0, 1]
    network: Callable[[Tensor], Tensor],  # [H, W] -> a larger [h, w]
    target: tuple[int, int],
) -> Tensor:  # [C, *target], not clamped
    has_alpha = len(planes) in (2, 4)
    colour, alpha = (planes[:-1], planes[-1:]) if has_alpha else (planes, planes[:0])
    if has_alpha:
        colour = spread_colour(colour, alpha)
        alpha = imresize(alpha, size=target)
    if len(colour) == 3:
        ycbcr = rgb_to_ycbcr(colour)
        y = _fit(network(ycbcr[0]), target)
        colour = ycbcr_to_rgb(torch.cat([y[None], imresize(ycbcr[1:], size=target)]))
    else:
        colour = _fit(network(colour[0]), target)[None]
    return torch.cat([colour, alpha]) if has_alpha else colour


def _fit(plane: Tensor, target: tuple[int, int]) -> Tensor:
    return plane if tuple(plane.shape) == target else imresize(plane, size=target)
