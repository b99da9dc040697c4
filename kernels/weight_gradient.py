"""Weight gradient of the convolution and of the tied transposed convolution.

``dW[tap] = Σ_pixels left[p]ᵀ · right[stride·p + tap - pad]``, [Cout, Cin] a tap:

- convolution: ``left`` is the gradient before φ, ``right`` the input, stride 1, pad 1;
- transposed convolution: ``left`` is its input, ``right`` its output's gradient, stride 2, no padding. The same
  kernel tensor receives both, so their sums have one layout.

Pixels are the reduction. They are split over programs, and each program writes the float32 sum over its own share of
tiles, whatever the buffer held before; the caller adds the shares in a fixed order. So results don't vary from run to
run, there are no atomics, and the tuner may repeat a launch. A program makes the three taps of one column of the
window and takes the rows of ``left`` in pairs, so that six loaded tiles serve six products: 1152 B a pixel from L2 for
64 bf16 channels, where a tap a program would load 2304.

A launch takes D maps at once, the D convolutions of one recursion: their products run side by side, which fills the
device with D times fewer shares than launches of their own would need.

A pixel of a 64→64 convolution: 73,728 FLOP, bf16 memory 256 B read: 93 ps of arithmetic against 60 ps of memory at
790 TFLOP/s and 4.3 TB/s; re-reads come from the L2 cache. A share costs 9·Cout·Cin·4 B written and
read once, 147 kB at 64 channels.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .tiles import ceil_div, channel_block, load_pixels, multiply, tile_count, tile_origin
from .tuning import Configurations, multiprocessors, precision, size_bucket


def _config(tile_h: int, tile_w: int, warps: int, stages: int) -> triton.Config:
    return triton.Config({"TILE_H": tile_h, "TILE_W": tile_w}, num_warps=warps, num_stages=stages)


# A stage holds six tiles of TILE_H·TILE_W pixels × 64 channels: 24 KiB at 32 pixels of 16 bit, so that two or three
# programs share a multiprocessor, or 48 KiB for longer products.
CONFIGURATIONS = Configurations(
    operand="left",
    half=[_config(2, 16, 4, 3), _config(2, 16, 4, 4), _config(4, 16, 4, 2)],
    tf32=[_config(2, 16, 4, 2), _config(2, 16, 8, 3)],
    ieee=[_config(1, 16, 8, 2)],
    interpreted=_config(2, 8, 4, 2),
)


@triton.jit
def _add_products(
    taps,  # three [Cout, Cin] sums: one for each row of the window, of one of its columns
    upper,  # [Cout, P] pixels of left
    lower,  # those below
    corner,  # pointer to what the window's centre reads of right for the tile's first pixel
    y,  # [P] rows where the windows of the upper pixels begin, from the corner
    x,
    top,
    across,
    height,
    width,
    cin,
    CIN: tl.constexpr,
    STRIDE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """``taps`` with the products of a tile."""
    top_tap, centre_tap, bottom_tap = taps
    x0 = load_pixels(corner, y, x, top, across, height, width, cin, CIN)  # [P, Cin]
    x1 = load_pixels(corner, y + 1, x, top, across, height, width, cin, CIN)
    x2 = load_pixels(corner, y + 2, x, top, across, height, width, cin, CIN)
    x3 = load_pixels(corner, y + 3, x, top, across, height, width, cin, CIN)
    top_tap = multiply(upper, x0, top_tap, PRECISION)
    centre_tap = multiply(upper, x1, centre_tap, PRECISION)
    bottom_tap = multiply(upper, x2, bottom_tap, PRECISION)
    if STRIDE == 1:
        top_tap = multiply(lower, x1, top_tap, PRECISION)
        centre_tap = multiply(lower, x2, centre_tap, PRECISION)
        bottom_tap = multiply(lower, x3, bottom_tap, PRECISION)
    else:
        x4 = load_pixels(corner, y + 4, x, top, across, height, width, cin, CIN)
        top_tap = multiply(lower, x2, top_tap, PRECISION)
        centre_tap = multiply(lower, x3, centre_tap, PRECISION)
        bottom_tap = multiply(lower, x4, bottom_tap, PRECISION)
    return top_tap, centre_tap, bottom_tap


@CONFIGURATIONS.tuned("bucket", "CIN", "COUT", "STRIDE", "PRECISION")
@triton.jit(do_not_specialize=["images", "height", "width", "height_right", "width_right", "bucket"])
def weight_gradient_kernel(
    left,  # [D, images, height, width, COUT]
    right,  # [D, images, height_right, width_right, CIN]
    shares,  # [D, S, 9, COUT, CIN] float32
    images,
    height,
    width,
    height_right,
    width_right,
    bucket,
    CIN: tl.constexpr,
    COUT: tl.constexpr,
    STRIDE: tl.constexpr,
    PAD: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_COUT: tl.constexpr,
    BLOCK_CIN: tl.constexpr,
    TILE_H: tl.constexpr,
    TILE_W: tl.constexpr,
):
    share, conv, window_column = tl.program_id(0), tl.program_id(1) // 3, tl.program_id(1) % 3
    cin_blocks: tl.constexpr = (CIN + BLOCK_CIN - 1) // BLOCK_CIN
    cout = tl.program_id(2) // cin_blocks * BLOCK_COUT + tl.arange(0, BLOCK_COUT)
    cin = tl.program_id(2) % cin_blocks * BLOCK_CIN + tl.arange(0, BLOCK_CIN)
    pixel = tl.arange(0, TILE_H * TILE_W)
    row, column = pixel // TILE_W * 2, pixel % TILE_W  # of the upper pixels of the pairs, from the tile's corner
    y, x = row * STRIDE - PAD, column * STRIDE - PAD + window_column

    first = conv.to(tl.int64) * images
    zero = tl.zeros([BLOCK_COUT, BLOCK_CIN], tl.float32)
    taps = zero, zero, zero
    tiles = images * tl.cdiv(height, 2 * TILE_H) * tl.cdiv(width, TILE_W)
    for tile in range(share, tiles, tl.num_programs(0)):
        image, top, across = tile_origin(tile, height, width, 2 * TILE_H, TILE_W)
        image += first
        corner = left + ((image * height + top) * width + across) * COUT
        upper = tl.trans(load_pixels(corner, row, column, top, across, height, width, cout, COUT))  # [Cout, P]
        lower = tl.trans(load_pixels(corner, row + 1, column, top, across, height, width, cout, COUT))
        top, across = top * STRIDE, across * STRIDE
        corner = right + ((image * height_right + top) * width_right + across) * CIN
        taps = _add_products(
            taps, upper, lower, corner, y, x, top, across, height_right, width_right, cin, CIN, STRIDE, PRECISION
        )

    mask = (cout < COUT)[:, None] & (cin < CIN)[None, :]
    matrix = (conv * tl.num_programs(0) + share).to(tl.int64) * 9 + window_column
    shares += matrix * COUT * CIN + cout[:, None] * CIN + cin[None, :]
    tl.store(shares, taps[0], mask=mask)
    tl.store(shares + 3 * COUT * CIN, taps[1], mask=mask)
    tl.store(shares + 6 * COUT * CIN, taps[2], mask=mask)


def share_count(left_shape: tuple[int, ...], right_channels: int, device: torch.device) -> int:
    """How many programs share the pixels of ``left`` [D, N, H, W, Cout]: two programs a multiprocessor in all.

    No more than that: a second round would have the device all but empty. Depends on the shape and the device alone,
    so that the same call always sums in the same order.
    """
    depth, images, height, width, cout = left_shape
    blocks = ceil_div(cout, channel_block(cout)) * ceil_div(right_channels, channel_block(right_channels))
    wanted = 2 * multiprocessors(device) // (3 * depth * blocks)
    return min(max(1, wanted), tile_count((images, height, width), 8, 8))


def weight_gradient_shares(
    left: Tensor,  # [D, N, H, W, Cout]
    right: Tensor,  # [D, N, stride·H, stride·W, Cin]
    stride: int,
    shares: Tensor | None = None,  # [D, S, 9, Cout, Cin] float32
) -> Tensor:
    """Shares of the weight gradient; their sum over S is the gradient, packed. One launch."""
    depth, images, height, width, cout = left.shape
    _, _, height_right, width_right, cin = right.shape
    if shares is None:
        count = share_count(left.shape, cin, left.device)
        shares = torch.empty(depth, count, 9, cout, cin, dtype=torch.float32, device=left.device)
    block_cout, block_cin = channel_block(cout), channel_block(cin)
    grid = (shares.shape[1], 3 * depth, ceil_div(cout, block_cout) * ceil_div(cin, block_cin))
    weight_gradient_kernel.launch(
        lambda tile: grid, left, right, shares,
        images, height, width, height_right, width_right, size_bucket(images * height * width),
        CIN=cin, COUT=cout, STRIDE=stride, PAD=1 if stride == 1 else 0, PRECISION=precision(left.dtype),
        BLOCK_COUT=block_cout, BLOCK_CIN=block_cin,
    )  # fmt: skip
    return shares
