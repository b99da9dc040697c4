"""What accelerated forwards call: an operation of ``cmslap.ops`` where it fits and pays, else what the user wrote.

Whatever does not fit (other shapes, mixed dtypes, autocast, a device without kernels) runs the user's own sequence of
PyTorch functions, in place where theirs was, and so fails with PyTorch's own errors.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._prims_common import suggest_memory_format

from cmslap import ops
from cmslap.compiler.heuristics import pays, too_small
from cmslap.ops.registration import is_autocast


def conv2d_lrelu(
    x: Tensor,  # [N, Cin, H, W]
    weight: Tensor,  # [Cout, Cin, 3, 3]
    bias: Tensor | None,  # [Cout]
    skip: Tensor | None,  # [N, Cout, H, W]
    negative_slope: float,
    adds_in_place: bool,
    activates_in_place: bool,
) -> Tensor:  # [N, Cout, H, W]
    """A convolution of the user's with the skip and the activation that follow it."""
    if _fits(x, weight, weight.shape[1]) and (skip is None or _is_image(skip, x, weight.shape[0])):
        return ops.conv2d_lrelu(_channels_last(x), weight, bias, skip, negative_slope)
    y = F.conv2d(x, weight, bias, padding=1)
    if adds_in_place:
        y += skip
    elif skip is not None:
        y = y + skip
    return _activate(y, negative_slope, activates_in_place)


def conv_transpose2d(
    a: Tensor,  # [N, Cin, H, W]
    weight: Tensor,  # [Cin, Cout, 3, 3]
    bias: Tensor | None,  # [Cout]
    rows: int,
    columns: int,
) -> Tensor:  # [N, Cout, rows, columns]
    """A stride-2 transposed convolution of the user's, cropped as ``[..., :rows, :columns]``."""
    if _fits(a, weight, weight.shape[0]) and _doubles(a, rows, columns):
        return ops.tied_conv_transpose2d(_channels_last(a), weight, bias)
    return F.conv_transpose2d(a, weight, bias, stride=2)[..., :rows, :columns]


class Block:
    """The D convolutions of a recursive block, stacked once a forward pass: their gradients meet in one buffer."""

    def __init__(self, weights: list[Tensor], biases: list[Tensor | None]) -> None:
        self.weights, self.biases = weights, biases
        self._stacked: tuple[Tensor, Tensor] | None = None

    def fits(self, u: Tensor) -> bool:
        """Whether all kernels are still [C, C, 3, 3] and of the image's dtype, which pruning may have changed."""
        shape = (u.shape[1], u.shape[1], 3, 3)
        return all(weight.shape == shape and weight.dtype == u.dtype for weight in self.weights)

    def stacked(self) -> tuple[Tensor, Tensor]:  # [D, C, C, 3, 3], [D, C]
        if self._stacked is None:
            biases = [_or_zeros(b, w) for b, w in zip(self.biases, self.weights, strict=True)]
            self._stacked = torch.stack(self.weights), torch.stack(biases)
        return self._stacked


def recursive_embedding(
    u: Tensor,  # [N, C, H, W]
    block: Block,
    recursions: int,
    negative_slope: float,
) -> Tensor:  # [N, C, H, W]
    """φ(h_R): a block of the user's, several times, each time with the skip from its source."""
    if _fits(u, block.weights[0], block.weights[0].shape[1]) and block.fits(u):
        return ops.recursive_embedding(_channels_last(u), *block.stacked(), recursions, negative_slope)
    a = _activate(u, negative_slope, in_place=False)
    for _ in range(recursions):
        for weight, bias in zip(block.weights[:-1], block.biases[:-1], strict=True):
            a = conv2d_lrelu(a, weight, bias, None, negative_slope, False, True)
        a = conv2d_lrelu(a, block.weights[-1], block.biases[-1], u, negative_slope, False, True)
    return a


def lapsrn_level(
    u: Tensor,  # [N, C, H, W]
    block: Block,
    recursions: int,
    negative_slope: float,
    shared_conv: int | None,
    upsample_weight: Tensor,  # [C, C, 3, 3]; the block's own when shared_conv says which
    upsample_bias: Tensor | None,  # [C]
    rows: int,
    columns: int,
) -> Tensor:  # [N, C, rows, columns]
    """A recursive embedding of the user's and the cropped transposed convolution after it."""
    if _fits(u, upsample_weight, upsample_weight.shape[0]) and block.fits(u) and _doubles(u, rows, columns):
        bias = _or_zeros(upsample_bias, upsample_weight)
        kernel = upsample_weight if shared_conv is None else None
        level = (*block.stacked(), shared_conv, bias, recursions, negative_slope)
        return ops.lapsrn_level(_channels_last(u), *level, upsample_weight=kernel)
    a = recursive_embedding(u, block, recursions, negative_slope)
    return conv_transpose2d(a, upsample_weight, upsample_bias, rows, columns)


def users_layout(value: Tensor, inputs: Tensor, weight: Tensor) -> Tensor:
    """``value`` in the memory format it would have without us, for code that may look at it or takes views.

    PyTorch's convolutions run in channels_last memory where either the image or the kernel lies so.
    """
    if not isinstance(value, Tensor) or value.dim() != 4 or value.is_contiguous():
        return value
    if _lies_in_channels_last(inputs, weight):
        return value
    return value.contiguous()


def _lies_in_channels_last(*tensors: Tensor) -> bool:
    """Whether one of them has the strides of channels_last, be it a part of a larger one: so PyTorch decides."""
    return any(suggest_memory_format(tensor) == torch.channels_last for tensor in tensors)


def _fits(x: Tensor, weight: Tensor, channels: int) -> bool:
    """Whether an operation takes the image and the kernel, and is the faster way."""
    return (
        not too_small(x, weight)
        and x.dim() == 4
        and x.shape[1] == channels
        and x.dtype == weight.dtype
        and x.numel() > 0
        and weight.shape[2:] == (3, 3)
        and not is_autocast(x.device.type)
        and pays(x, weight)
    )


def _is_image(skip: object, x: Tensor, channels: int) -> bool:
    """Whether ``skip`` needs no broadcasting and no promotion."""
    shape = (x.shape[0], channels, *x.shape[2:])
    return isinstance(skip, Tensor) and skip.shape == shape and skip.dtype == x.dtype and skip.device == x.device


def _doubles(a: Tensor, rows: int, columns: int) -> bool:
    """Whether the crop of the (2H+1)×(2W+1) result leaves 2H×2W."""
    height, width = a.shape[2:]
    return rows in (-1, 2 * height) and columns in (-1, 2 * width)


def _channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def _or_zeros(bias: Tensor | None, weight: Tensor) -> Tensor:
    return weight.new_zeros(weight.shape[1]) if bias is None else bias


def _activate(y: Tensor, negative_slope: float, in_place: bool) -> Tensor:
    if negative_slope == 1.0:
        return y
    return F.relu(y, in_place) if negative_slope == 0.0 else F.leaky_relu(y, negative_slope, in_place)
