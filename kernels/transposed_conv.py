"""2× upsampling with a convolution's own kernel: the tied transposed convolution.

``U(a)[2i+k, 2j+l] = Σ a[i, j]·W[:, :, k, l]``, cropped to 2H×2W. Output pixels fall into four phases by the parity of
their row and column; phase (0, 0) receives the four taps with even k and l, (0, 1) and (1, 0) two each, (1, 1) the
centre tap. One launch makes all four: a program takes one phase of one tile of input pixels, the phases of a tile
next to each other so that they share its pixels in the caches. The taps are read from the convolution's packed
[9, Cout, Cin] matrices as they lie; nothing is copied, permuted or flipped for the upsampling.

The data gradient is the convolution kernel with stride 2 and no padding (conv.py), the weight gradient the
convolution's with stride 2 (weight_gradient.py).

An input pixel at 64 channels: 73,728 FLOP; bf16 memory 128 B read and 512 B written: 93 ps of arithmetic against
149 ps of memory at 790 TFLOP/s and 4.3 TB/s, so memory-bound, forward and in both gradients.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .conv import launch_conv, sums_rows
from .tiles import ceil_div, channel_block, load_pixels, load_tap, multiply, tile_count, tile_origin
from .tuning import Configurations, precision, size_bucket


def _config(tile_h: int, tile_w: int, block_k: int, warps: int, stages: int) -> triton.Config:
    tiles = {"TILE_H": tile_h, "TILE_W": tile_w, "BLOCK_K": block_k}
    return triton.Config(tiles, num_warps=warps, num_stages=stages)


# A stage holds BLOCK_K × (pixels + 64) values, 12 to 40 KiB: several programs a multiprocessor, whose loads, products
# and stores overlap.
CONFIGURATIONS = Configurations(
    operand="x",
    half=[_config(8, 16, 64, 4, 2), _config(8, 16, 32, 4, 4), _config(16, 16, 64, 8, 3)],
    tf32=[_config(8, 16, 32, 4, 3), _config(16, 16, 32, 8, 3)],
    ieee=[_config(8, 8, 16, 4, 2)],
    interpreted=_config(4, 8, 64, 4, 2),
)


@CONFIGURATIONS.tuned("bucket", "CIN", "COUT", "PRECISION")
@triton.jit(do_not_specialize=["bucket", "height", "width"])
def transposed_conv_kernel(
    x,  # [N, height, width, COUT]: the channels the convolution puts out are the ones read here
    weight,  # [9, COUT, CIN]
    out,  # [N, 2·height, 2·width, CIN]
    bias,  # [CIN] or None
    height,
    width,
    bucket,
    CIN: tl.constexpr,
    COUT: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    MAX_BLOCK_K: tl.constexpr,
    TILE_H: tl.constexpr,
    TILE_W: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    K: tl.constexpr = MAX_BLOCK_K if MAX_BLOCK_K < BLOCK_K else BLOCK_K
    K_BLOCKS: tl.constexpr = (COUT + K - 1) // K
    phase_y, phase_x = tl.program_id(0) % 4 // 2, tl.program_id(0) % 2
    image, top, left = tile_origin(tl.program_id(0) // 4, height, width, TILE_H, TILE_W)
    pixel = tl.arange(0, TILE_H * TILE_W)
    row, column = pixel // TILE_W, pixel % TILE_W
    cin = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)

    x += ((image * height + top) * width + left) * COUT
    product = tl.zeros([BLOCK_M, TILE_H * TILE_W], tl.float32)
    taps_x = 2 - phase_x  # an even row or column meets taps 0 and 2, an odd one tap 1
    for step in range((2 - phase_y) * taps_x * K_BLOCKS):
        back_y, back_x = step // K_BLOCKS // taps_x, step // K_BLOCKS % taps_x  # tap 2 reads the pixel before
        tap = (phase_y + 2 * back_y) * 3 + phase_x + 2 * back_x
        cout = step % K_BLOCKS * K + tl.arange(0, K)
        pixels = load_pixels(x, row - back_y, column - back_x, top, left, height, width, cout, COUT)  # [P, K]
        matrix = load_tap(weight, tap, cout, cin, COUT, CIN)  # [K, Cin]
        product = multiply(tl.trans(matrix), tl.trans(pixels), product, PRECISION)

    value = tl.trans(product)  # [P, Cin]
    if bias is not None:
        value += tl.load(bias + cin, mask=cin < CIN, other=0.0).to(tl.float32)[None, :]
    inside = (row + top < height) & (column + left < width)
    out += ((image * height + top) * 2 + phase_y) * (2 * width) * CIN + (left * 2 + phase_x) * CIN
    offset = (row * 4 * width + column * 2)[:, None] * CIN + cin[None, :]
    tl.store(out + offset, value.to(out.dtype.element_ty), mask=inside[:, None] & (cin < CIN)[None, :])


def transposed_conv(
    a: Tensor,  # [N, H, W, Cout]
    weight: Tensor,  # packed [9, Cout, Cin]
    bias: Tensor | None,  # [Cin]
) -> Tensor:  # [N, 2H, 2W, Cin]
    """U(a) + b."""
    images, height, width, cout = a.shape
    cin = weight.shape[2]
    out = a.new_empty(images, 2 * height, 2 * width, cin)
    block = channel_block(cin)

    def grid(tile: dict[str, int]) -> tuple[int, int]:
        return 4 * tile_count(a.shape, tile["TILE_H"], tile["TILE_W"]), ceil_div(cin, block)

    transposed_conv_kernel.launch(
        grid, a, weight, out, bias, height, width, size_bucket(images * height * width),
        CIN=cin, COUT=cout, PRECISION=precision(a.dtype), BLOCK_M=block, MAX_BLOCK_K=channel_block(cout),
    )  # fmt: skip
    return out


def transposed_conv_data_gradient(
    grad: Tensor,  # [N, 2H, 2W, Cin]
    weight: Tensor,  # packed [9, Cout, Cin]
    saved: Tensor | None = None,  # [N, H, W, Cout]: its sign gives φ'
    slope: float = 1.0,
) -> tuple[Tensor, Tensor]:  # [N, H, W, Cout], float32 [Cout]
    """Gradient of ``a``, or given ``saved`` of the value φ made ``a`` of; and its sum over pixels."""
    images, height, width, _ = grad.shape
    out = grad.new_empty(images, height // 2, width // 2, weight.shape[1])
    sums = grad.new_zeros(sums_rows(out.shape, out.dtype), out.shape[-1], dtype=torch.float32)
    launch_conv(grad, weight, out.shape, slope, stride=2, pad=0, out=out, saved=saved, sums=sums)
    return out, sums.sum(0)
