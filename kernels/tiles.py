"""What all kernels share: which pixels a program works on, and the matrix product.

Feature maps are NHWC: ``[N, H, W, C]`` contiguous, so that a pixel's channels are one run of memory and a tile of
pixels under one filter tap is a ``[pixels, channels]`` matrix. Kernels are packed ``[9, Cout, Cin]``, one matrix a
tap (row-major over the 3×3 window).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .tuning import INTERPRETED

_INTERPRETED = tl.constexpr(INTERPRETED)


@triton.jit
def tile_origin(tile, height, width, TILE_H: tl.constexpr, TILE_W: tl.constexpr):
    """Image, top row and left column of tile number ``tile``; tiles run along rows, then down, then over images."""
    across = tl.cdiv(width, TILE_W)
    down = tl.cdiv(height, TILE_H)
    return (tile // (across * down)).to(tl.int64), tile // across % down * TILE_H, tile % across * TILE_W


@triton.jit
def multiply(a, b, accumulator, PRECISION: tl.constexpr):
    """accumulator + a·b in float32."""
    if _INTERPRETED and a.dtype == tl.bfloat16:  # the interpreter would multiply the bit patterns
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, accumulator, input_precision=PRECISION)


@triton.jit
def load_pixels(
    origin,  # pointer to pixel (0, 0) of the tile in x [H, W, C]; may lie outside the image
    row,  # [P] rows relative to the origin
    column,  # [P]
    top,  # row and column of the origin in the image
    left,
    height,
    width,
    channel,  # [K]
    C: tl.constexpr,
    PITCH: tl.constexpr = None,  # from pixel to pixel, where x has more channels than the C that count
):
    """[P, K] values of x, zero outside the image and beyond its C channels."""
    inside = (row + top >= 0) & (row + top < height) & (column + left >= 0) & (column + left < width)
    offset = (row * width + column)[:, None] * (C if PITCH is None else PITCH) + channel[None, :]
    return tl.load(origin + offset, mask=inside[:, None] & (channel < C)[None, :], other=0.0)


@triton.jit
def store_pixels(
    origin,  # pointer to pixel (0, 0) of the tile in x [H, W, C]
    value,  # [P, K]
    row,  # [P], not above the origin
    column,  # [P], not left of it
    top,
    left,
    height,
    width,
    channel,  # [K]
    C: tl.constexpr,
    PITCH: tl.constexpr = None,
):
    """The counterpart of :func:`load_pixels`: what lies inside is stored."""
    inside = (row + top < height) & (column + left < width)
    offset = (row * width + column)[:, None] * (C if PITCH is None else PITCH) + channel[None, :]
    tl.store(origin + offset, value.to(origin.dtype.element_ty), mask=inside[:, None] & (channel < C)[None, :])


@triton.jit
def load_tap(
    weight,  # pointer to packed [9, Cout, Cin]
    tap,
    out_channel,  # [M]
    in_channel,  # [K]
    COUT: tl.constexpr,
    CIN: tl.constexpr,
):
    """[M, K] matrix of one tap, zero beyond the channels."""
    mask = (out_channel < COUT)[:, None] & (in_channel < CIN)[None, :]
    return tl.load(weight + (tap * COUT + out_channel[:, None]) * CIN + in_channel[None, :], mask=mask, other=0.0)


def pack_weights(weights: Tensor, dtype: torch.dtype) -> Tensor:
    """[..., Cout, Cin, 3, 3] of any dtype -> [..., 9, Cout, Cin] in ``dtype``: one small copy kernel a call."""
    matrices = weights.flatten(-2).movedim(-1, -3)
    return torch.empty(matrices.shape, dtype=dtype, device=weights.device).copy_(matrices)


def unpack_weights(matrices: Tensor) -> Tensor:
    """[..., 9, Cout, Cin] -> a [..., Cout, Cin, 3, 3] view: the inverse of :func:`pack_weights`."""
    return matrices.movedim(-3, -1).unflatten(-1, (3, 3))


def channel_block(channels: int) -> int:
    """Rows of a matrix product for this many channels: at least the 16 a tensor core takes, at most 64."""
    return min(64, max(16, 1 << (channels - 1).bit_length()))


def ceil_div(a: int, b: int) -> int:
    """⌈a / b⌉. ``triton.cdiv`` takes the host a hundred times as long."""
    return -(-a // b)


def tile_count(shape: tuple[int, ...], tile_h: int, tile_w: int) -> int:
    """Tiles that cover a [N, H, W, ...] map."""
    images, height, width = shape[:3]
    return images * ceil_div(height, tile_h) * ceil_div(width, tile_w)
