"""φ' and the sums over pixels that are a bias gradient, in one pass: where the backward pass of an operation begins.

Inside a level, the epilogue of the launch before does both (conv.py). 384 B of memory a bf16 pixel of 64 channels.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .tiles import ceil_div

ELEMENTS = 8192  # a program: 32 a thread


@triton.jit
def derivative_kernel(
    grad,  # [P, C]
    activated,  # [P, C]
    out,  # [P, C]
    sums,  # [programs, C]
    pixels,
    slope,
    C: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    program = tl.program_id(0)
    pixel = program.to(tl.int64) * BLOCK_P + tl.arange(0, BLOCK_P)
    channel = tl.arange(0, BLOCK_C)
    inside = (pixel < pixels)[:, None] & (channel < C)[None, :]
    offset = pixel[:, None] * C + channel[None, :]
    value = tl.load(grad + offset, mask=inside, other=0.0).to(tl.float32)
    # In float32, as Triton's interpreter would compare the bits of a bfloat16.
    sign = tl.load(activated + offset, mask=inside, other=0.0).to(tl.float32)
    value = tl.where(sign > 0, value, value * slope)
    tl.store(out + offset, value.to(out.dtype.element_ty), mask=inside)
    tl.store(sums + program * C + channel, tl.sum(value, axis=0), mask=channel < C)


def derivative(
    grad: Tensor,  # [N, H, W, C], of φ's value
    activated: Tensor,  # [N, H, W, C], φ's value
    slope: float,
) -> tuple[Tensor, Tensor]:  # [N, H, W, C] and float32 [C]
    """The gradient of the value before φ, and its sum over all pixels."""
    channels = grad.shape[-1]
    pixels, block = grad.numel() // channels, max(16, 1 << (channels - 1).bit_length())
    programs = ceil_div(pixels, ELEMENTS // block)
    out = torch.empty_like(grad)
    sums = torch.empty(programs, channels, dtype=torch.float32, device=grad.device)
    derivative_kernel[(programs,)](
        grad, activated, out, sums, pixels, slope, C=channels, BLOCK_P=ELEMENTS // block, BLOCK_C=block, num_warps=8
    )
    return out, sums.sum(0)
