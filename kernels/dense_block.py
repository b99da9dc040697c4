"""The recursion of residual dense blocks whose convolutions are separable, forward and backward, over NHWC records.

A record is a pixel's [x, a, b]: a = φ(P₁ D₁ x), b = φ(P₂ D₂ [x, a]), and y = x + P₃ [x, a, b] is the next x. Two
launches make a block. Both take a tile through a depthwise convolution of the record's first channels and a pointwise
one of that, and write what comes behind those channels; the second also makes y of the tile. So no depthwise sum and
no concatenation goes through memory.

Backward takes two launches as well, the second separable convolution's first. With g the gradient of its value before
φ, which for b is φ'(b) · P₃ᵀ dy and never stored, that of its input is Σ_tap D_tap · (Pᵀ g)[p - tap], and with
m_tap = Σ_p g[p - tap] ⊗ input[p] those of its parameters are Σ_tap D_tap · m_tap and Σ_G P · m_tap. Each program adds
up its share of the pixels' parameter gradients and the caller the shares, in a fixed order.

A pixel of a block, C = G = 32 in bf16: forward 12,288 FLOP in matrix products, 1,728 outside, and 320 B of memory, 384
where b is kept; backward 139,264 and 3,456, as products with nine shifted tiles take the place of a map of depthwise
gradients, and 640 B. At 790 and 60 TFLOP/s and 4.3 TB/s that is 44 ps of arithmetic against 74 ps of memory forward,
234 against 149 backward. These are predictions: the kernels have not run on a GPU.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .tiles import load_pixels, multiply, store_pixels, tile_count, tile_origin
from .tuning import Configurations, multiprocessors, precision, size_bucket


def _config(tile_h: int, tile_w: int, warps: int, stages: int) -> triton.Config:
    return triton.Config({"TILE_H": tile_h, "TILE_W": tile_w}, num_warps=warps, num_stages=stages)


# Forward, a thread keeps 32 depthwise sums at 128 pixels, 64 channels and 8 warps.
FORWARD = Configurations(
    operand="records",
    half=[_config(8, 16, 8, 2), _config(4, 16, 4, 2)],
    tf32=[_config(4, 16, 4, 2)],
    ieee=[_config(4, 8, 4, 2)],
    interpreted=_config(2, 8, 4, 2),
)
# Backward, tiles of gradients and the sums of the parameters' fill the registers: at 64 pixels a few bytes spill.
BACKWARD = Configurations(
    operand="records",
    half=[_config(2, 16, 8, 2), _config(4, 16, 8, 2)],
    tf32=[_config(2, 16, 8, 2)],
    ieee=[_config(2, 8, 8, 2)],
    interpreted=_config(2, 8, 4, 2),
)


class Block(NamedTuple):
    """A block's parameters as matrices, in the records' dtype."""

    separable: tuple[tuple[Tensor, Tensor, Tensor], ...]  # of a and of b: D [IN, 9], P [G, IN], bias [G]
    mix: Tensor  # P₃ [C, C + 2G]
    mix_bias: Tensor  # [C]


@triton.jit
def _matrix(source, row, column, ROWS: tl.constexpr, COLUMNS: tl.constexpr, PITCH: tl.constexpr):
    """[rows, columns] of a matrix with ``PITCH`` columns in memory, zero beyond."""
    mask = (row < ROWS)[:, None] & (column < COLUMNS)[None, :]
    return tl.load(source + row[:, None] * PITCH + column[None, :], mask=mask, other=0.0)


@triton.jit
def _store_matrix(target, value, row, column, ROWS: tl.constexpr, COLUMNS: tl.constexpr, PITCH: tl.constexpr):
    """The counterpart of :func:`_matrix`."""
    mask = (row < ROWS)[:, None] & (column < COLUMNS)[None, :]
    tl.store(target + row[:, None] * PITCH + column[None, :], value.to(target.dtype.element_ty), mask=mask)


@triton.jit
def _vector(source, index, COUNT: tl.constexpr, PITCH: tl.constexpr = 1):
    """[count] of every ``PITCH``-th number as float32, zero beyond."""
    return tl.load(source + index * PITCH, mask=index < COUNT, other=0.0).to(tl.float32)


@FORWARD.tuned("bucket", "C", "G", "MIX", "PRECISION")
@triton.jit(do_not_specialize=["height", "width", "bucket"])
def dense_kernel(
    records,  # [N, height, width, C + 2G]
    depthwise,  # [IN, 9]
    pointwise,  # [G, IN]
    bias,  # [G]
    mix,  # [C, C + 2G], or None where this makes ``a``
    mix_bias,  # [C], or None
    following,  # [N, height, width, FOLLOWING]: its first C channels receive y; or None
    slope,
    height,
    width,
    bucket,
    C: tl.constexpr,
    G: tl.constexpr,
    MIX: tl.constexpr,
    KEEP: tl.constexpr,  # whether the growth goes into the records
    FOLLOWING: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_IN: tl.constexpr,
    TILE_H: tl.constexpr,
    TILE_W: tl.constexpr,
):
    IN: tl.constexpr = C + G if MIX else C
    RECORD: tl.constexpr = C + 2 * G
    image, top, left = tile_origin(tl.program_id(0), height, width, TILE_H, TILE_W)
    pixel = tl.arange(0, TILE_H * TILE_W)
    row, column = pixel // TILE_W, pixel % TILE_W
    c, g, k = tl.arange(0, BLOCK_C), tl.arange(0, BLOCK_G), tl.arange(0, BLOCK_IN)
    corner = (image * height + top) * width + left
    records += corner * RECORD

    sums = tl.zeros([TILE_H * TILE_W, BLOCK_IN], tl.float32)
    for tap in tl.static_range(9):
        y, x = row + tap // 3 - 1, column + tap % 3 - 1
        value = load_pixels(records, y, x, top, left, height, width, k, IN, RECORD)
        sums += value.to(tl.float32) * _vector(depthwise + tap, k, IN, 9)[None, :]
    zero = tl.zeros([TILE_H * TILE_W, BLOCK_G], tl.float32)
    matrix = tl.trans(_matrix(pointwise, g, k, G, IN, IN))
    growth = multiply(sums.to(records.dtype.element_ty), matrix, zero, PRECISION) + _vector(bias, g, G)[None, :]
    growth = tl.where(growth > 0, growth, growth * slope).to(records.dtype.element_ty)
    if KEEP:
        store_pixels(records + IN, growth, row, column, top, left, height, width, g, G, RECORD)
    if MIX:
        value = load_pixels(records, row, column, top, left, height, width, c, C, RECORD).to(tl.float32)
        value += _vector(mix_bias, c, C)[None, :]
        dense = load_pixels(records, row, column, top, left, height, width, k, IN, RECORD)
        value = multiply(dense, tl.trans(_matrix(mix, c, k, C, IN, RECORD)), value, PRECISION)
        value = multiply(growth, tl.trans(_matrix(mix + IN, c, g, C, G, RECORD)), value, PRECISION)
        store_pixels(following + corner * FOLLOWING, value, row, column, top, left, height, width, c, C, FOLLOWING)


@triton.jit
def _growth_gradient(
    grad, record, to_growth, y, x, top, left, height, width, slope, C: tl.constexpr, G: tl.constexpr,
    MIX: tl.constexpr, PRECISION: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_G: tl.constexpr
):  # fmt: skip
    """[P, G] gradients of the growth before φ, of pixels (y, x)."""
    c, g = tl.arange(0, BLOCK_C), tl.arange(0, BLOCK_G)
    if MIX:
        of_next = load_pixels(grad, y, x, top, left, height, width, c, C)
        value = multiply(of_next, to_growth, tl.zeros([y.shape[0], BLOCK_G], tl.float32), PRECISION)
        b = load_pixels(record + C + G, y, x, top, left, height, width, g, G, C + 2 * G).to(tl.float32)
        return tl.where(b > 0, value, value * slope).to(grad.dtype.element_ty)
    else:
        return load_pixels(grad + C, y, x, top, left, height, width, g, G, C + G)


@triton.jit
def _separable_gradient(
    sums, total, source, grad, record, depthwise, matrix, to_growth, row, column, top, left, height, width, slope,
    C: tl.constexpr, G: tl.constexpr, IN: tl.constexpr, MIX: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_G: tl.constexpr, BLOCK_IN: tl.constexpr
):  # fmt: skip
    """The parameters' ``sums`` and the ``total`` [P, IN] of the input's gradients, with those of a tile."""
    depthwise_sum, pointwise_sum, bias_sum = sums  # [16, IN], [G, IN], [G]
    k, index = tl.arange(0, BLOCK_IN), tl.arange(0, 16)[:, None]
    zero, product = tl.zeros([row.shape[0], BLOCK_IN], tl.float32), tl.zeros([BLOCK_G, BLOCK_IN], tl.float32)
    for tap in range(9):
        y, x = row + 1 - tap // 3, column + 1 - tap % 3
        of_growth = _growth_gradient(
            grad, record, to_growth, y, x, top, left, height, width, slope, C, G, MIX, PRECISION, BLOCK_C, BLOCK_G
        )
        weight = _vector(depthwise + tap, k, IN, 9)[None, :]
        of_depthwise = multiply(of_growth, matrix, zero, PRECISION)  # [P, IN]
        total += weight * of_depthwise
        of_tap = tl.sum(source.to(tl.float32) * of_depthwise, axis=0)[None, :]
        depthwise_sum += tl.where(index == tap, of_tap, 0.0)
        pointwise_sum += weight * multiply(tl.trans(of_growth), source, product, PRECISION)
        bias_sum += tl.where(tap == 4, tl.sum(of_growth.to(tl.float32), axis=0), 0.0)
    return (depthwise_sum, pointwise_sum, bias_sum), total


@triton.jit
def _store_separable(
    sums, share, depthwise, pointwise, bias, G: tl.constexpr, IN: tl.constexpr, BLOCK_G: tl.constexpr,
    BLOCK_IN: tl.constexpr
):  # fmt: skip
    g, k = tl.arange(0, BLOCK_G), tl.arange(0, BLOCK_IN)
    _store_matrix(depthwise + share * IN * 9, tl.trans(sums[0]), k, tl.arange(0, 16), IN, 9, 9)
    _store_matrix(pointwise + share * G * IN, sums[1], g, k, G, IN, IN)
    tl.store(bias + share * G + g, sums[2], mask=g < G)


@BACKWARD.tuned("bucket", "C", "G", "MIX", "PRECISION")
@triton.jit(do_not_specialize=["images", "height", "width", "bucket"])
def dense_gradient_kernel(
    records,  # [N, height, width, C + 2G]
    grad,  # of y [N, height, width, C]; or, without MIX, what the launch with it wrote
    depthwise,  # [IN, 9]
    pointwise,  # [G, IN]
    mix,  # [C, C + 2G], or None
    out,  # [N, height, width, IN]: with MIX x's gradient as far as it goes and that of ``a`` before φ, else x's
    depthwise_shares,  # [S, IN, 9] float32
    pointwise_shares,  # [S, G, IN]
    bias_shares,  # [S, G]
    mix_shares,  # [S, C, C + 2G], or None
    mix_bias_shares,  # [S, C], or None
    slope, images, height, width, bucket,
    C: tl.constexpr, G: tl.constexpr, MIX: tl.constexpr, PRECISION: tl.constexpr, BLOCK_C: tl.constexpr,
    BLOCK_G: tl.constexpr, BLOCK_IN: tl.constexpr, TILE_H: tl.constexpr, TILE_W: tl.constexpr,
):  # fmt: skip
    IN: tl.constexpr = C + G if MIX else C
    RECORD: tl.constexpr = C + 2 * G
    GRAD: tl.constexpr = C if MIX else C + G
    share, pixel = tl.program_id(0), tl.arange(0, TILE_H * TILE_W)
    row, column = pixel // TILE_W, pixel % TILE_W
    c, g, k = tl.arange(0, BLOCK_C), tl.arange(0, BLOCK_G), tl.arange(0, BLOCK_IN)
    matrix, to_growth = _matrix(pointwise, g, k, G, IN, IN), None
    of_matrix = tl.zeros([BLOCK_G, BLOCK_IN], tl.float32)
    sums = tl.zeros([16, BLOCK_IN], tl.float32), of_matrix, tl.zeros([BLOCK_G], tl.float32)
    if MIX:
        to_growth, to_input = _matrix(mix + IN, c, g, C, G, RECORD), _matrix(mix, c, k, C, IN, RECORD)
        mix_input, mix_growth = tl.zeros([BLOCK_C, BLOCK_IN], tl.float32), tl.zeros([BLOCK_C, BLOCK_G], tl.float32)
        mix_bias_sum = tl.zeros([BLOCK_C], tl.float32)

    for tile in range(share, images * tl.cdiv(height, TILE_H) * tl.cdiv(width, TILE_W), tl.num_programs(0)):
        image, top, left = tile_origin(tile, height, width, TILE_H, TILE_W)
        corner = (image * height + top) * width + left
        record, tile_grad = records + corner * RECORD, grad + corner * GRAD
        source = load_pixels(record, row, column, top, left, height, width, k, IN, RECORD)  # [P, IN]
        total = load_pixels(tile_grad, row, column, top, left, height, width, k, C, GRAD).to(tl.float32)
        if MIX:
            of_next = load_pixels(tile_grad, row, column, top, left, height, width, c, C)
            b = load_pixels(record + IN, row, column, top, left, height, width, g, G, RECORD)
            total = multiply(of_next, to_input, total, PRECISION)
            mix_input = multiply(tl.trans(of_next), source, mix_input, PRECISION)
            mix_growth = multiply(tl.trans(of_next), b, mix_growth, PRECISION)
            mix_bias_sum += tl.sum(of_next.to(tl.float32), axis=0)
        sums, total = _separable_gradient(
            sums, total, source, tile_grad, record, depthwise, matrix, to_growth, row, column, top, left, height, width,
            slope, C, G, IN, MIX, PRECISION, BLOCK_C, BLOCK_G, BLOCK_IN,
        )  # fmt: skip
        if MIX:  # what the separable convolution before makes of it
            total = tl.where((k < C)[None, :] | (source.to(tl.float32) > 0), total, total * slope)
        store_pixels(out + corner * IN, total, row, column, top, left, height, width, k, IN)

    _store_separable(sums, share, depthwise_shares, pointwise_shares, bias_shares, G, IN, BLOCK_G, BLOCK_IN)
    if MIX:
        mix_shares += share * C * RECORD
        _store_matrix(mix_shares, mix_input, c, k, C, IN, RECORD)
        _store_matrix(mix_shares + IN, mix_growth, c, g, C, G, RECORD)
        tl.store(mix_bias_shares + share * C + c, mix_bias_sum, mask=c < C)


def _constants(block: Block, mixes: bool, dtype: torch.dtype) -> dict[str, int | str]:
    """What both kernels are compiled for."""
    depthwise, pointwise, _ = block.separable[mixes]
    channels, growth, count = block.mix.shape[0], pointwise.shape[0], depthwise.shape[0]
    return {
        "C": channels, "G": growth, "MIX": mixes, "PRECISION": precision(dtype),
        "BLOCK_C": _power(channels), "BLOCK_G": _power(growth), "BLOCK_IN": _power(count),
    }  # fmt: skip


def _power(channels: int) -> int:
    """The power of two that holds them."""
    return 1 << (channels - 1).bit_length()


def launch_dense(
    records: Tensor,  # [N, H, W, C + 2G], with x, or x and a
    block: Block,
    following: Tensor | None,  # [N, H, W, C + 2G or C], receives y; None where ``a`` is to be made
    slope: float,
    keep: bool = True,
) -> None:
    """``a`` of x, or b of [x, a] and y of it all; b goes into the records to be kept."""
    mixes, (images, height, width, _) = following is not None, records.shape
    mix = (block.mix, block.mix_bias) if mixes else (None, None)
    dense_kernel.launch(
        lambda tile: (tile_count(records.shape, tile["TILE_H"], tile["TILE_W"]),),
        records, *block.separable[mixes], *mix, following, slope, height, width, size_bucket(images * height * width),
        **_constants(block, mixes, records.dtype), KEEP=keep, FOLLOWING=following.shape[-1] if mixes else 0,
    )  # fmt: skip


def launch_dense_gradient(
    records: Tensor,  # [N, H, W, C + 2G]
    grad: Tensor,  # of y [N, H, W, C], or [N, H, W, C + G] as the launch for b leaves it
    block: Block,
    out: Tensor,  # [N, H, W, C + G], or x's [N, H, W, C]
    shares: list[Tensor],  # of D, P and the bias [S, ...], for b also of P₃ and its bias
    slope: float,
) -> None:
    """The gradients of [x, a] and of what makes b and y of them; or of x and what makes ``a``."""
    mixes, (images, height, width, _) = len(shares) == 5, records.shape
    depthwise, pointwise, _ = block.separable[mixes]
    dense_gradient_kernel.launch(
        lambda tile: (shares[0].shape[0],),
        records, grad, depthwise, pointwise, block.mix if mixes else None, out, *shares, *[None] * (5 - len(shares)),
        slope, images, height, width, size_bucket(images * height * width), **_constants(block, mixes, records.dtype),
    )  # fmt: skip


def recursion(
    u: Tensor,  # [N, H, W, C]
    block: Block,
    recursions: int,
    slope: float,
    saved: Tensor | None = None,  # [R, N, H, W, C + 2G], receives every block's records
) -> Tensor:  # [N, H, W, C]
    """x_R."""
    channels, out = u.shape[-1], torch.empty_like(u)
    records = u.new_empty(2, *u.shape[:3], block.mix.shape[1]) if saved is None else saved
    records[0, ..., :channels] = u
    for r in range(recursions):
        following = out if r == recursions - 1 else records[(r + 1) % len(records)]
        launch_dense(records[r % len(records)], block, None, slope)
        launch_dense(records[r % len(records)], block, following, slope, keep=saved is not None)
    return out


def recursion_gradient(
    grad: Tensor,  # [N, H, W, C]
    saved: Tensor,  # [R, N, H, W, C + 2G]
    block: Block,
    slope: float,
) -> tuple[Tensor, list[Tensor]]:
    """The gradients of u [N, H, W, C], and in float32 of the parameters in the order of a block's."""
    count = min(2 * multiprocessors(grad.device), tile_count(grad.shape, 8, 8))
    parameters = *block.separable[0], *block.separable[1], block.mix, block.mix_bias
    shares = [grad.new_empty(len(saved), count, *p.shape, dtype=torch.float32) for p in parameters]
    of_dense = grad.new_empty(*grad.shape[:3], block.separable[1][0].shape[0])
    for r in reversed(range(len(saved))):
        launch_dense_gradient(saved[r], grad, block, of_dense, [share[r] for share in shares[3:]], slope)
        grad = torch.empty_like(grad)
        launch_dense_gradient(saved[r], of_dense, block, grad, [share[r] for share in shares[:3]], slope)
    return grad, [share.sum((0, 1)) for share in shares]
