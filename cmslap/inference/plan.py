"""What upscaling an image will do, settled before it is done: network, factor, sizes, tiles, precision."""

from __future__ import annotations

import math
import numbers
import os
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import nn

from cmslap.checkpoints.checkpoint import load_model
from cmslap.devices import inference_autocast
from cmslap.errors import UserError
from cmslap.imaging import interpolable
from cmslap.inference.tiling import Tile, divide, working_memory
from cmslap.models import Network
from cmslap.options import DEFAULT_SCALE


class UpscaleError(UserError, ValueError):
    """A scale, size, tile, device or array that cannot be served; the message says what can."""


@dataclass(frozen=True)
class Plan:
    """How one image is enlarged."""

    image: Image.Image | np.ndarray  # in a mode that can be interpolated
    target: tuple[int, int]  # height, width of the result
    network: Network
    factor: int  # the scale the network runs at; bicubic makes the target of that
    tiles: list[Tile]
    working_memory: int  # bytes of main memory that the network takes for the largest of them
    ensemble: bool
    autocast: torch.autocast  # of the network's precision


class Planner:
    """Makes the plans of any number of images. Arguments and errors as of :func:`cmslap.upscale`.

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
        self.scale, self.size = _check_scale(scale, size), size
        self.tile, self.ensemble = _check_tile(tile), ensemble
        self.network = _network(model, device)
        self.autocast = inference_autocast(precision, next(self.network.parameters()).device)
        if size is None:
            _factor(self.network, self.scale)

    def plan(self, image: Image.Image | np.ndarray) -> Plan:
        """How to enlarge ``image``."""
        if isinstance(image, Image.Image):
            image = interpolable(image)
            shape = (image.height, image.width, len(image.getbands()))
        else:
            image = np.asarray(image)
            shape = image.shape
            _check_dtype(image.dtype)
        _check_shape(shape)
        height, width = shape[:2]
        target = self._target(height, width)
        factor = _factor(self.network, max(target[0] / height, target[1] / width))
        tiles = divide(self.network, factor, (height, width), self.tile)
        memory = working_memory(self.network, factor, tiles)
        return Plan(image, target, self.network, factor, tiles, memory, self.ensemble, self.autocast)

    def _target(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of the result for an image of ``height`` × ``width``; it must be an enlargement."""
        if self.size is None:
            return math.floor(height * self.scale + 0.5), math.floor(width * self.scale + 0.5)
        wanted_width, wanted_height = self.size
        if min(self.size) < 1 or (wanted_height <= height and wanted_width <= width):
            wanted, given = f"{wanted_width}x{wanted_height}", f"{width}x{height}"
            raise UpscaleError(f"size must be larger than the image's {given} in one side, got {wanted}")
        return wanted_height, wanted_width


def _check_scale(scale: float | None, size: tuple[int, int] | None) -> float | None:
    if size is not None:
        if scale is not None:
            raise UpscaleError("scale and size exclude each other; give one of them")
        return None
    scale = DEFAULT_SCALE if scale is None else scale
    if isinstance(scale, bool) or not isinstance(scale, numbers.Real) or not 1 < scale < math.inf:
        raise UpscaleError(f"scale must be a number above 1, got {scale!r}; shrinking is cmslap.imaging.imresize's")
    return scale


def _check_tile(tile: int | None) -> int | None:
    if tile is not None and (isinstance(tile, bool) or not isinstance(tile, int) or tile < 0):
        raise UpscaleError(f"tile must be an integer of at least 0 pixels, got {tile!r}")
    return tile


def _network(model: nn.Module | str | os.PathLike[str] | None, device: str | torch.device | None) -> Network:
    """The network itself: the one given, or the one ``cmslap.load_model`` finds under that name, on ``device``."""
    if isinstance(model, nn.Module):
        if device is not None:
            raise UpscaleError("device goes with a model's name; a network that is passed in runs where it is")
        return model
    device = device or "auto"
    return load_model(device=device) if model is None else load_model(model, device=device)


def _factor(network: Network, ratio: float) -> int:
    """The smallest of the network's scales that is at least ``ratio``."""
    factor = next((scale for scale in network.scales if scale >= ratio), None)
    if factor is None:
        largest = network.scales[-1]
        raise UpscaleError(f"this {type(network).__name__} serves scales up to {largest}, and {ratio:g} was asked for")
    return factor


def _check_dtype(dtype: np.dtype) -> None:
    if not (dtype.kind == "f" or (dtype.kind == "u" and dtype.itemsize <= 2)):
        raise UpscaleError(f"image must be uint8, uint16 or floating point, got {dtype}")


def _check_shape(shape: tuple[int, ...]) -> None:
    if len(shape) not in (2, 3) or 0 in shape or shape[2:] > (4,):
        raise UpscaleError(f"image must be [H, W] or [H, W, 1 to 4], got shape {list(shape)}")
