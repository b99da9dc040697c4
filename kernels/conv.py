"""3×3 convolution as an implicit matrix product over NHWC pixels, with everything that follows it in the epilogue.

One kernel serves three passes:

- forward: ``φ(W ⋆ x + b + skip)``;
- data gradient: the kernel read flipped and transposed, then ``φ'`` from the sign of the saved activation, the
  sums over pixels that are the bias gradient, and the source skip's gradient;
- data gradient of the transposed convolution: stride 2 without padding, the kernel read as it lies.

A program makes one tile of pixels × one block of output channels; no im2col buffer exists. Loading a shifted tile for
each of the nine taps would move 1152 B a pixel from L2 for 64 bf16 channels, 64 B a cycle and multiprocessor at full
rate, which no GPU delivers (Triton's asynchronous copies of 16 bytes pass L1 by). So the rows of a tile are taken in
pairs: for each column of the window, four shifted loads serve six products, 768 B a pixel. Every tile also reads all
weights, 72 KiB from L2: 288 B a pixel at 256 pixels a tile, 576 at 128.

The products are oriented ``[Cout, pixels]``: weights are the left operand, of 64 rows, pixels the right one, of 128 or
more columns. On Hopper that asks shared memory for 96 bytes a cycle where ``[pixels, Cout]`` would ask for 128, its
limit.

A pixel of a 64→64 convolution: 73,728 FLOP; in bf16 128 B read and 128 B written, 128 B more for a skip or for the
saved activation of the data gradient, 256 B more where a recursion ends and the skip's gradient is summed. At
790 TFLOP/s and 4.3 TB/s that is 93 ps of arithmetic against 60 to 149 ps of memory.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .tiles import ceil_div, channel_block, load_pixels, load_tap, multiply, tile_count, tile_origin
from .tuning import Configurations, precision, size_bucket


def _config(tile_h: int, tile_w: int, block_k: int, warps: int, stages: int) -> triton.Config:
    tiles = {"TILE_H": tile_h, "TILE_W": tile_w, "BLOCK_K": block_k}
    return triton.Config(tiles, num_warps=warps, num_stages=stages)


# A tile has 2·TILE_H × TILE_W pixels and keeps 64 float32 sums for each: 128 registers a thread at 256 pixels.
# A stage holds four loads of pixels and three of weights, 44 KiB at that size, so that two programs share a Hopper
# multiprocessor and hide each other's waits and epilogue. The other configurations prefetch deeper at one program a
# multiprocessor, and cut small images into more programs.
CONFIGURATIONS = Configurations(
    operand="source",
    half=[_config(8, 16, 32, 4, 2), _config(8, 16, 32, 4, 3), _config(4, 16, 32, 4, 3)],
    # the same bytes a stage with half the channels
    tf32=[_config(8, 16, 16, 4, 2), _config(4, 16, 16, 4, 3)],
    # no tensor core multiplies exact float32; small blocks keep the unrolled multiply-adds few
    ieee=[_config(4, 8, 16, 4, 2)],
    interpreted=_config(2, 8, 64, 4, 2),
)


@triton.jit
def _matrix(weight, tap, cout, cin, COUT: tl.constexpr, CIN: tl.constexpr, FLIPPED: tl.constexpr):
    """[Cout, K] weights of a tap."""
    if FLIPPED:
        return tl.trans(load_tap(weight, 8 - tap, cin, cout, CIN, COUT))
    else:
        return load_tap(weight, tap, cout, cin, COUT, CIN)


@triton.jit
def _pixels(corner, row, column, top, left, height, width, cin, CIN: tl.constexpr):
    """[K, P] input values of a tile."""
    return tl.trans(load_pixels(corner, row, column, top, left, height, width, cin, CIN))


@triton.jit
def _products(
    corner,  # pointer to the tile's first pixel of the input, which has number ``top``, ``left`` there
    y,  # [P] rows where the windows of the upper pixels begin, from the corner
    x,  # [P] their columns
    top,
    left,
    height,
    width,
    weight,
    cout,  # [Cout]
    CIN: tl.constexpr,
    COUT: tl.constexpr,
    STRIDE: tl.constexpr,
    FLIPPED: tl.constexpr,
    PRECISION: tl.constexpr,
    K: tl.constexpr,
):
    """[Cout, P] sums over the window and all input channels: of the upper pixels of the pairs, and of the lower."""
    K_BLOCKS: tl.constexpr = (CIN + K - 1) // K
    upper = tl.zeros([cout.shape[0], y.shape[0]], tl.float32)
    lower = tl.zeros([cout.shape[0], y.shape[0]], tl.float32)
    for step in range(3 * K_BLOCKS):
        tap = step // K_BLOCKS  # of the window's top row
        cin = step % K_BLOCKS * K + tl.arange(0, K)
        w0 = _matrix(weight, tap, cout, cin, COUT, CIN, FLIPPED)  # [Cout, K]
        w1 = _matrix(weight, tap + 3, cout, cin, COUT, CIN, FLIPPED)
        w2 = _matrix(weight, tap + 6, cout, cin, COUT, CIN, FLIPPED)
        x0 = _pixels(corner, y, x + tap, top, left, height, width, cin, CIN)  # [K, P]
        x1 = _pixels(corner, y + 1, x + tap, top, left, height, width, cin, CIN)
        x2 = _pixels(corner, y + 2, x + tap, top, left, height, width, cin, CIN)
        x3 = _pixels(corner, y + 3, x + tap, top, left, height, width, cin, CIN)
        upper = multiply(w0, x0, upper, PRECISION)
        upper = multiply(w1, x1, upper, PRECISION)
        upper = multiply(w2, x2, upper, PRECISION)
        if STRIDE == 1:
            lower = multiply(w0, x1, lower, PRECISION)
            lower = multiply(w1, x2, lower, PRECISION)
            lower = multiply(w2, x3, lower, PRECISION)
        else:
            x4 = _pixels(corner, y + 4, x + tap, top, left, height, width, cin, CIN)
            lower = multiply(w0, x2, lower, PRECISION)
            lower = multiply(w1, x3, lower, PRECISION)
            lower = multiply(w2, x4, lower, PRECISION)
    return upper, lower


@triton.jit
def _finish(value, inside, corner, offset, cout, half, slope, out, bias, skip, saved, total, sums, COUT: tl.constexpr):
    """The epilogue: what becomes of the products ``value`` [P, Cout] of half a tile, and where it goes."""
    mask = inside[:, None] & (cout < COUT)[None, :]
    if bias is not None:
        value += tl.load(bias + cout, mask=cout < COUT, other=0.0).to(tl.float32)[None, :]
    if saved is None:
        if skip is not None:
            value += tl.load(skip + corner + offset, mask=mask, other=0.0).to(tl.float32)
        value = tl.where(value > 0, value, value * slope)
    else:
        sign = tl.load(saved + corner + offset, mask=mask, other=0.0).to(tl.float32)  # see derivative.py
        value = tl.where(sign > 0, value, value * slope)
    if sums is not None:
        of_half = tl.sum(tl.where(inside[:, None], value, 0.0), axis=0)
        tl.store(sums + half * COUT + cout, of_half, mask=cout < COUT)
    if total is not None:
        skipped = tl.load(skip + corner + offset, mask=mask, other=0.0).to(tl.float32)
        tl.store(total + corner + offset, (value + skipped).to(total.dtype.element_ty), mask=mask)
    if out is not None:
        tl.store(out + corner + offset, value.to(out.dtype.element_ty), mask=mask)


@CONFIGURATIONS.tuned("bucket", "CIN", "COUT", "STRIDE", "PRECISION", partial="sums")
@triton.jit(do_not_specialize=["bucket", "height_in", "width_in", "height", "width"])
def conv_kernel(
    source,  # [N, height_in, width_in, CIN]
    weight,  # [9, COUT, CIN], or [9, CIN, COUT] to be read flipped and transposed
    out,  # [N, height, width, COUT], or None
    bias,  # [COUT] or None
    skip,  # as out, or None
    saved,  # as out: the activation whose sign gives φ', or None in the forward pass
    total,  # as out: gradient + skip, or None
    sums,  # [2 · tiles, COUT] float32: the sums of the gradient over half a tile each, or None
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
    tile = tl.program_id(0)
    image, top, left = tile_origin(tile, height, width, 2 * TILE_H, TILE_W)
    pixel = tl.arange(0, TILE_H * TILE_W)
    row, column = pixel // TILE_W * 2, pixel % TILE_W  # of the upper pixels of the pairs, from the tile's corner
    cout = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)

    K: tl.constexpr = MAX_BLOCK_K if MAX_BLOCK_K < BLOCK_K else BLOCK_K
    y, x, top_in, left_in = row * STRIDE - PAD, column * STRIDE - PAD, top * STRIDE, left * STRIDE
    corner_in = source + ((image * height_in + top_in) * width_in + left_in) * CIN
    upper, lower = _products(
        corner_in, y, x, top_in, left_in, height_in, width_in, weight, cout, CIN, COUT, STRIDE, FLIPPED, PRECISION, K
    )

    corner = ((image * height + top) * width + left) * COUT
    for below in tl.static_range(2):
        value = tl.trans(lower if below else upper)  # [P, Cout]
        inside = (row + below + top < height) & (column + left < width)
        offset = ((row + below) * width + column)[:, None] * COUT + cout[None, :]  # from the tile's corner
        half = 2 * tile + below
        _finish(value, inside, corner, offset, cout, half, slope, out, bias, skip, saved, total, sums, COUT)


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
    """Launch :func:`conv_kernel`, whose comments say what the tensors are; writes ``out``, ``total`` and ``sums``."""
    images, height, width, cout = shape
    cin, block = x.shape[-1], channel_block(cout)

    def grid(tile: dict[str, int]) -> tuple[int, int]:
        return tile_count(shape, 2 * tile["TILE_H"], tile["TILE_W"]), ceil_div(cout, block)

    conv_kernel.launch(
        grid, x, weight, out, bias, skip, saved, total, sums, slope,
        x.shape[1], x.shape[2], height, width, size_bucket(images * height * width),
        CIN=cin, COUT=cout, STRIDE=stride, PAD=pad, FLIPPED=flipped, PRECISION=precision(x.dtype),
        BLOCK_M=block, MAX_BLOCK_K=channel_block(cin),
    )  # fmt: skip


def sums_rows(shape: tuple[int, ...], dtype: torch.dtype) -> int:
    """Rows a ``sums`` buffer needs for a [N, H, W, C] gradient, whichever tile the tuner chose."""
    tiles = [config.kwargs for config in CONFIGURATIONS.fitting(dtype, precision(dtype))]
    return 2 * max(tile_count(shape, 2 * tile["TILE_H"], tile["TILE_W"]) for tile in tiles)


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
