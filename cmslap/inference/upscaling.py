"""Upscaling one image: the network on luma or RGB, MATLAB's bicubic on chroma and alpha.

What it will do (network, factor, sizes, tiles, precision) is settled in a plan before any of it is done.
"""

import math
import numbers
import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import nn

from cmslap.checkpoints.checkpoint import load_model
from cmslap.devices import inference_autocast
from cmslap.errors import UserError, out_of_memory
from cmslap.imaging import (
    imresize,
    imresize_rows,
    interpolable,
    join_colour,
    split_colour,
    spread_colour,
    store_planes,
    to_planes,
)
from cmslap.inference.tiling import Tile, available_memory, divide, super_resolve_rows, working_memory
from cmslap.models import Network
from cmslap.options import DEFAULT_MODEL, DEFAULT_SCALE

_ROWS = 128  # of the result that are joined, converted and rounded at a time


class UpscaleError(UserError, ValueError):
    """A scale, size, tile, device, array or output that cannot be served; the message says what can."""


@dataclass(frozen=True)
class Plan:
    """How one image is enlarged."""

    image: Image.Image | np.ndarray  # in a mode that can be interpolated
    target: tuple[int, int]  # height, width of the result
    network: Network
    factor: int  # the scale the network runs at; bicubic makes the target of that
    tiles: list[Tile]
    ensemble: bool
    autocast: torch.autocast  # of the network's precision


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

    PyTorch's threads do not survive a fork: in a process that was forked after a first call, the next one may hang.
    Start processes with multiprocessing's "spawn" or "forkserver".

    Raises :class:`UpscaleError` and :class:`cmslap.devices.PrecisionError` (ValueErrors),
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
        is_cpu = torch.get_default_device().type == "cpu"  # then without the context, which slows every operation down
        on_cpu = nullcontext() if is_cpu else torch.device("cpu")
        with on_cpu, torch.autocast("cpu", enabled=False), on_gpu, torch.inference_mode():
            yield
    finally:
        torch.set_default_dtype(default)


class Planner:
    """Makes the plans of any number of images. Arguments and errors as of :func:`upscale`.

    What is wrong whatever the image is refused here, once.
    """

    def __init__(
        self,
        model: nn.Module | str | os.PathLike[str] | None = None,
        scale: float | None = None,
        *,
        size: tuple[int, int] | None = None,  # width, height
        tile: int | None = None,
        ensemble: bool = False,
        device: str | torch.device | None = None,
        precision: str = "float32",
    ) -> None:
        if scale is not None and size is not None:
            raise UpscaleError("scale and size exclude each other; give one of them")
        scale = DEFAULT_SCALE if scale is None else scale
        if isinstance(scale, bool) or not isinstance(scale, numbers.Real) or not 1 < scale < math.inf:
            raise UpscaleError(f"scale must be a number above 1, got {scale!r}; shrinking is cmslap.imaging.imresize's")
        if tile is not None and (isinstance(tile, bool) or not isinstance(tile, int) or tile < 0):
            raise UpscaleError(f"tile must be an integer of at least 0 pixels, got {tile!r}")
        if isinstance(model, nn.Module) and device is not None:
            raise UpscaleError("device goes with a model's name; a network that is passed in runs where it is")
        self.scale, self.size, self.tile, self.ensemble = scale, size, tile, ensemble
        model = DEFAULT_MODEL if model is None else model
        self.network = model if isinstance(model, nn.Module) else load_model(model, device=device or "auto")
        self.autocast = inference_autocast(precision, next(self.network.parameters()).device)
        if size is None:
            self._factor(scale)

    def plan(self, image: Image.Image | np.ndarray) -> Plan:
        """How to enlarge ``image``."""
        if isinstance(image, Image.Image):
            image = interpolable(image)
            shape = (image.height, image.width, len(image.getbands()))
        else:
            image = np.asarray(image)
            shape = image.shape
            if not (image.dtype.kind == "f" or (image.dtype.kind == "u" and image.dtype.itemsize <= 2)):
                raise UpscaleError(f"image must be uint8, uint16 or floating point, got {image.dtype}")
        if len(shape) not in (2, 3) or 0 in shape or shape[2:] > (4,):
            raise UpscaleError(f"image must be [H, W] or [H, W, 1 to 4], got shape {list(shape)}")
        height, width = shape[:2]
        target = self._target(height, width)
        factor = self._factor(max(target[0] / height, target[1] / width))
        tiles = divide(self.network, factor, (height, width), self.tile)
        return Plan(image, target, self.network, factor, tiles, self.ensemble, self.autocast)

    def _target(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of the result for an image of ``height`` × ``width``; it must be an enlargement."""
        if self.size is None:
            return math.floor(height * self.scale + 0.5), math.floor(width * self.scale + 0.5)
        wanted_width, wanted_height = self.size
        if min(self.size) < 1 or (wanted_height <= height and wanted_width <= width):
            wanted, given = f"{wanted_width}x{wanted_height}", f"{width}x{height}"
            raise UpscaleError(f"size must be larger than the image's {given} in one side, got {wanted}")
        return wanted_height, wanted_width

    def _factor(self, ratio: float) -> int:
        """The smallest of the network's scales that is at least ``ratio``."""
        factor = next((scale for scale in self.network.scales if scale >= ratio), None)
        if factor is None:
            name, largest = type(self.network).__name__, self.network.scales[-1]
            raise UpscaleError(f"this {name} serves scales up to {largest}, and {ratio:g} was asked for")
        return factor


def run(plan: Plan, progress: bool = False) -> Image.Image | np.ndarray:
    """The enlarged image of a plan; ``progress`` shows a bar over tiles and ensemble members."""
    array = np.asarray(plan.image)
    needed, available = _needed_memory(array, plan), available_memory(torch.device("cpu"))
    if needed > available:  # else the work would end in swapping or a kill
        raise UpscaleError(
            f"a result of {plan.target[1]}x{plan.target[0]} pixels needs {needed / 2**30:.1f} GiB of memory, "
            f"and {available / 2**30:.1f} GiB are free"
        )
    try:
        with _own_settings():
            result = _enlarge(array, plan, progress)
            if isinstance(plan.image, Image.Image):
                result = Image.fromarray(result)
                result.info = plan.image.info
    except (MemoryError, RuntimeError) as error:
        reason = out_of_memory(error)
        if reason is None:
            raise
        raise UpscaleError(reason) from None
    return result


def _needed_memory(array: np.ndarray, plan: Plan) -> int:
    """Bytes of main memory at most, the image itself left out: the result, and what makes it or Pillow's copy of it."""
    height, width, *channels = array.shape
    channels, pixels = math.prod(channels), math.prod(plan.target)
    planes = 4 * height * width * (channels + 2 * plan.network.image_channels)
    rows = max(stop - start for (start, stop), *_ in plan.tiles)
    row_of_tiles = 4 * plan.network.image_channels * plan.factor**2 * rows * width
    if plan.target != (plan.factor * height, plan.factor * width):
        row_of_tiles *= 3  # with what imresize_rows makes of it
    network = working_memory(plan.network, plan.factor, plan.tiles)
    joining = 4 * (3 * channels + 6) * min(_ROWS, plan.target[0]) * plan.target[1]
    copy = 4 * pixels if isinstance(plan.image, Image.Image) and plan.image.mode in ("LA", "RGB") else 0
    return array.itemsize * channels * pixels + max(copy, planes + row_of_tiles + max(network, joining))


def _enlarge(array: np.ndarray, plan: Plan, progress: bool) -> np.ndarray:
    """The result [*target] or [*target, C] in the array's dtype. Floats are made of a few rows at a time only."""
    if array.dtype.kind == "f" and not (array.min() >= 0 and array.max() <= 1):
        raise UpscaleError(f"a floating-point image must lie in [0, 1], got {array.min():g} to {array.max():g}")
    planes = to_planes(array, np.float32)
    colours = 3 if len(planes) > 2 else 1
    colour, alpha = planes[:colours], planes[colours:]
    if len(alpha):
        colour = spread_colour(colour, alpha)
    seen, chroma = split_colour(colour, plan.network.image_channels)
    del planes, colour
    parts = super_resolve_rows(
        plan.network, seen, plan.factor, plan.tiles, ensemble=plan.ensemble, autocast=plan.autocast, progress=progress
    )
    if plan.target != (plan.factor * seen.shape[1], plan.factor * seen.shape[2]):
        parts = imresize_rows(parts, plan.factor * seen.shape[1], plan.target)
    result = np.empty((*plan.target, *array.shape[2:]), array.dtype)
    smooth = torch.cat([chroma, alpha]) if len(alpha) else chroma
    hues, top = len(chroma), 0
    del chroma, alpha  # which is a part of all the image's planes
    for part in parts:
        for larger in part.split(_ROWS, dim=-2):
            bottom = top + larger.shape[-2]
            bicubic = imresize(smooth, size=plan.target, rows=(top, bottom))
            colour = join_colour(larger, bicubic[:hues], colours)
            store_planes(torch.cat([colour, bicubic[hues:]]), result[top:bottom])
            top = bottom
        del part, larger  # before the next row of tiles takes memory
    return result
