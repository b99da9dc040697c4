"""3×3 convolution as an implicit matrix product over NHWC pixels, with everything that follows it in the epilogue.

One kernel serves three passes:

- forward: ``φ(W ⋆ x + b + skip)``;
- data gradient: the kernel read flipped and transposed, then ``φ'`` from the sign of the saved activation, the
  sums over pixels that are the bias gradient, and the source skip's gradient;
- data gradient of the transposed convolution: stride 2 without padding, the kernel read as it lies.

A program makes one tile of pixels × one block of output channels. It walks over the nine taps (and blocks of input
channels), loading a shifted tile of pixels and one matrix of weights for each product; no im2col buffer exists. The
product is oriented ``[Cout, pixels]``: weights are the left operand, of 64 rows, and pixels the right one, of up to
256 columns. On Hopper that asks shared memory for 80 bytes a cycle where ``[pixels, Cout]`` would ask for 128, its
limit. The eight re-reads of a pixel come from the L1 cache, so a 16×16 tile reads each pixel from L2 1.27 times.

A pixel of a 64→64 convolution: 73,728 FLOP; in bf16 128 B read and 128 B written, 128 B more for a skip or for the
saved activation of the data gradient, 256 B more where a recursion ends and the skip's gradient is summed. At
790 TFLOP/s and 4.3 TB/s that is 93 ps of arithmetic against 60 to 149 ps of memory.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .tiles import (
    INTERPRETED,
    channel_block,
    load_pixels,
    load_tap,
    multiply,
    precision,
    size_bucket,
    tile_count,
    tile_origin,
)

def _config(tile_h: int, tile_w: int, block_k: int, warps: int, stages: int) -> triton.Config:
    tiles = {"TILE_H": tile_h, "TILE_W": tile_w, "BLOCK_K": block_k}
    return triton.Config(tiles, num_warps=warps, num_stages=stages)


# 16-bit operands. A stage holds BLOCK_K × (pixels + 64) values: 40 KiB for the first two, 24 for the third, 12 for
# the last. So one program a multiprocessor with long products and deep prefetch, against two or three that hide each
# other's latency and fill small images better.
_HALF = [_config(16, 16, 64, 8, 3), _config(16, 16, 64, 4, 2), _config(8, 16, 64, 4, 3), _config(8, 16, 32, 4, 4)]
# Four-byte operands on tensor cores: the same bytes a stage with half the channels.
_TF32 = [_config(16, 16, 32, 8, 3), _config(8, 16, 32, 4, 3)]
# Exact float32 has no tensor core; small blocks keep the unrolled multiply-adds few.
_IEEE = [_config(8, 8, 16, 4, 2)]
CONFIGS = [_config(4, 8, 64, 4, 2)] if INTERPRETED else [*_HALF, *_TF32, *_IEEE]


def configs_for(dtype: torch.dtype, dot_precision: str) -> list[triton.Config]:
    """The tile shapes worth trying for operands of ``dtype``."""
    if INTERPRETED:
        return CONFIGS
    if dtype != torch.float32:
        return _HALF
    return _TF32 if dot_precision == "tf32" else _IEEE


def prune(configs: list[triton.Config], arguments: dict, **constants: object) -> list[triton.Config]:
    """For the tuner."""
    return configs_for(arguments["x"].dtype, constants["PRECISION"])


@triton.autotune(
    CONFIGS, key=["bucket", "CIN", "COUT", "STRIDE", "PRECISION"], prune_configs_by={"early_config_prune": prune},
    cache_results=True,
)  # fmt: skip
@triton.jit(do_not_specialize=["bucket", "height_in", "width_in", "height", "width"])
def conv_kernel(
    x,  # [N, height_in, width_in, CIN]
    weight,  # [9, COUT, CIN], or [9, CIN, COUT] to be read flipped and transposed
    out,  # [N, height, width, COUT], or None
    bias,  # [COUT] or None
    skip,  # as out, or None
    saved,  # as out: the activation whose sign gives φ', or None in the forward pass
    total,  # as out: gradient + skip, or None
    sums,  # [tiles, COUT] float32: each tile's sums of the gradient, or None
    slope,
    height_in,
    width_in,
    height,
    width,
    bucket,
    CIN: tl.constexpr,
    COUT: tl.constexpr,
    STRIDE: tl.constexpr,
    PAD: tl.constexpr,
    FLIPPED: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    MAX_BLOCK_K: tl.constexpr,
    TILE_H: tl.constexpr,
    TILE_W: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    K: tl.constexpr = MAX_BLOCK_K if MAX_BLOCK_K < BLOCK_K else BLOCK_K
    K_BLOCKS: tl.constexpr = (CIN + K - 1) // K
    tile = tl.program_id(0)
    image, top, left = tile_origin(tile, height, width, TILE_H, TILE_W)
    pixel = tl.arange(0, TILE_H * TILE_W)
    row, column = pixel // TILE_W, pixel % TILE_W
    cout = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)

    x += ((image * height_in + top * STRIDE) * width_in + left * STRIDE) * CIN
    product = tl.zeros([BLOCK_M, TILE_H * TILE_W], tl.float32)
    for step in range(9 * K_BLOCKS):
        tap = step // K_BLOCKS
        cin = step % K_BLOCKS * K + tl.arange(0, K)
        y_in, x_in = row * STRIDE + tap // 3 - PAD, column * STRIDE + tap % 3 - PAD
        pixels = load_pixels(x, y_in, x_in, top * STRIDE, left * STRIDE, height_in, width_in, cin, CIN)  # [P, K]
        if FLIPPED:
            matrix = tl.trans(load_tap(weight, 8 - tap, cin, cout, CIN, COUT))  # [Cout, K]
        else:
            matrix = load_tap(weight, tap, cout, cin, COUT, CIN)
        product = multiply(matrix, tl.trans(pixels), product, PRECISION)

    value = tl.trans(product)  # [P, Cout]
    inside = (row + top < height) & (column + left < width)
    mask = inside[:, None] & (cout < COUT)[None, :]
    corner = ((image * height + top) * width + left) * COUT
    offset = (row * width + column)[:, None] * COUT + cout[None, :]  # from the tile's corner
    if bias is not None:
        value += tl.load(bias + cout, mask=cout < COUT, other=0.0).to(tl.float32)[None, :]
    if saved is None:
        if skip is not None:
            value += tl.load(skip + corner + offset, mask=mask, other=0.0).to(tl.float32)
        value = tl.where(value > 0, value, value * slope)
    else:
        value = tl.where(tl.load(saved + corner + offset, mask=mask, other=0.0) > 0, value, value * slope)
    if sums is not None:
        of_tile = tl.sum(tl.where(inside[:, None], value, 0.0), axis=0)
        tl.store(sums + tile * COUT + cout, of_tile, mask=cout < COUT)
    if total is not None:
        skipped = tl.load(skip + corner + offset, mask=mask, other=0.0).to(tl.float32)
        tl.store(total + corner + offset, (value + skipped).to(total.dtype.element_ty), mask=mask)
    if out is not None:
        tl.store(out + corner + offset, value.to(out.dtype.element_ty), mask=mask)


def launch_conv(
    x: Tensor,  # [N, Hin, Win, Cin]
    weight: Tensor,  # packed [9, Cout, Cin], or [9, Cin, Cout] if flipped
    shape: tuple[int, ...],  # [N, H, W, Cout] of the result
    slope: float,
    *,
    stride: int = 1,
    pad: int = 1,
    flipped: bool = False,
    out: Tensor | None = None,
    bias: Tensor | None = None,
    skip: Tensor | None = None,
    saved: Tensor | None = None,
    total: Tensor | None = None,
    sums: Tensor | None = None,
) -> None:
    """Launch :func:`conv_kernel`, whose comments say what the tensors are; it writes ``out``, ``total`` and ``sums``."""
    images, height, width, cout = shape
    cin, block = x.shape[-1], channel_block(cout)

    def grid(tile: dict[str, int]) -> tuple[int, int]:
        return tile_count(shape, tile["TILE_H"], tile["TILE_W"]), triton.cdiv(cout, block)

    conv_kernel[grid](
        x, weight, out, bias, skip, saved, total, sums, slope,
        x.shape[1], x.shape[2], height, width, size_bucket(images * height * width),
        CIN=cin, COUT=cout, STRIDE=stride, PAD=pad, FLIPPED=flipped, PRECISION=precision(x.dtype),
        BLOCK_M=block, MAX_BLOCK_K=channel_block(cin),
    )  # fmt: skip


def sums_rows(shape: tuple[int, ...], dtype: torch.dtype) -> int:
    """Rows a ``sums`` buffer needs for a [N, H, W, C] gradient, whichever tile the tuner chose."""
    tiles = [config.kwargs for config in configs_for(dtype, precision(dtype))]
    return max(tile_count(shape, tile["TILE_H"], tile["TILE_W"]) for tile in tiles)


def conv_lrelu(
    x: Tensor,  # [N, H, W, Cin]
    weight: Tensor,  # packed [9, Cout, Cin]
    bias: Tensor | None,  # [Cout]
    skip: Tensor | None,  # [N, H, W, Cout]
    slope: float,
    out: Tensor | None = None,  # [N, H, W, Cout]
) -> Tensor:
    """φ(W ⋆ x + b + skip)."""
    shape = (*x.shape[:3], weight.shape[1])
    out = x.new_empty(shape) if out is None else out
    launch_conv(x, weight, shape, slope, out=out, bias=bias, skip=skip)
    return out


def conv_data_gradient(
    grad: Tensor,  # [N, H, W, Cout], of the value before φ
    weight: Tensor,  # packed [9, Cout, Cin]
) -> Tensor:  # [N, H, W, Cin]
    """Gradient with respect to the convolution's input."""
    out = grad.new_empty(*grad.shape[:3], weight.shape[2])
    launch_conv(grad, weight, out.shape, 1.0, flipped=True, out=out)
    return out
