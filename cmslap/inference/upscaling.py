"""Upscaling one image: the network on luma or RGB, MATLAB's bicubic on chroma and alpha."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from cmslap.errors import out_of_memory
from cmslap.imaging import enlarge_colour, imresize
from cmslap.inference.forward import super_resolve
from cmslap.inference.memory import available_memory
from cmslap.inference.plan import Plan, Planner, UpscaleError
from cmslap.inference.transparency import spread_colour


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
        scale: factor above 1; 4 if neither it nor ``size`` is given. A network makes scales of its own, mostly powers
            of two; anything else comes from the next larger one by MATLAB's bicubic, antialiased.
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

    A network of luma sees the Y channel (ITU-R BT.601, studio range), or grey as it is; Cb and Cr are bicubic. One of
    RGB sees the image, or grey three times. Alpha is bicubic, and fully transparent pixels first take the colour of
    their visible neighbourhood, so that none bleeds out of them.

    Raises :class:`UpscaleError` and :class:`cmslap.precision.PrecisionError` (ValueErrors),
    :class:`cmslap.imaging.ImageError` for a Pillow image without a fitting mode, and what ``load_model`` raises.
    """
    with _own_settings():
        planner = Planner(model, scale, size=size, tile=tile, ensemble=ensemble, device=device, precision=precision)
    return run(planner.plan(image), progress)


@contextmanager
def _own_settings() -> Iterator[None]:
    """Without the caller's autocast, default device and default dtype: what is asked for is in the arguments."""
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        on_gpu = torch.autocast("cuda", enabled=False) if torch.cuda.is_available() else nullcontext()
        with torch.device("cpu"), torch.autocast("cpu", enabled=False), on_gpu, torch.inference_mode():
            yield
    finally:
        torch.set_default_dtype(default)


def run(plan: Plan, progress: bool = False) -> Image.Image | np.ndarray:
    """The enlarged image of a plan; ``progress`` shows a bar over tiles and ensemble members."""
    array = np.asarray(plan.image)
    _check_memory(array, plan)
    try:
        with _own_settings():
            result = _to_array(_enlarge(_to_planes(array), plan, progress), array)
    except (MemoryError, RuntimeError) as error:
        reason = out_of_memory(error)
        if reason is None:
            raise
        raise UpscaleError(reason) from None
    if isinstance(plan.image, Image.Image):
        result = Image.fromarray(result)
        result.info = plan.image.info
    return result


def _check_memory(array: np.ndarray, plan: Plan) -> None:
    """The planes themselves cannot be tiled: refuse before the work what would end in swapping or a kill."""
    height, width, *channels = array.shape
    made = plan.network.image_channels * plan.factor**2 * height * width
    needed = 4 * (made + 3 * math.prod(channels) * math.prod(plan.target))
    available = available_memory(torch.device("cpu"))
    if needed > available:
        raise UpscaleError(
            f"a result of {plan.target[1]}x{plan.target[0]} pixels needs {needed / 2**30:.1f} GiB of memory, "
            f"and {available / 2**30:.1f} GiB are free"
        )


def _to_planes(array: np.ndarray) -> Tensor:  # [C, H, W], float32 in [0, 1]
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


def _enlarge(
    planes: Tensor,  # [C, H, W] in [0, 1]
    plan: Plan,
    progress: bool,
) -> Tensor:  # [C, *target], not clamped
    def network(image: Tensor) -> Tensor:
        larger = super_resolve(
            plan.network, image, plan.factor, plan.tiles,
            ensemble=plan.ensemble, precision=plan.precision, progress=progress,
        )  # fmt: skip
        return larger if larger.shape[-2:] == plan.target else imresize(larger, size=plan.target)

    if len(planes) in (1, 3):
        return enlarge_colour(planes, network, plan.network.image_channels)
    colour, alpha = planes[:-1], planes[-1:]
    colour = enlarge_colour(spread_colour(colour, alpha), network, plan.network.image_channels)
    return torch.cat([colour, imresize(alpha, size=plan.target)])
