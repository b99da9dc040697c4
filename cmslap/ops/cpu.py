"""The CPU backend: the kernels of csrc/cpu.

They compute in float32 on images in channels_last memory; half-precision tensors are converted on the way in and out,
which still beats the processors' own half-precision convolutions. Parameters' gradients are added to their buffers, so
these start as zeros; everything else the kernels write in full.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cmslap.ops.backend import Backend
from cmslap.ops.extension import MISSING
from cmslap.ops.operation import Arguments, Operation

_kernels = torch.ops.cmslap_cpu


def _unsupported(operation: Operation, arguments: Arguments) -> str | None:
    activation = operation.activation(arguments)
    if activation.device.type != "cpu":
        return f"runs on cpu, not on {activation.device.type}"
    if activation.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return f"float32, bfloat16 or float16 only, not {str(activation.dtype).removeprefix('torch.')}"
    return None


def _image(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.to(torch.float32, memory_format=torch.channels_last)


def _array(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.to(torch.float32).contiguous()


def _new_image(like: Tensor, channels: int, factor: int = 1) -> Tensor:
    """Memory for an image of ``like``'s batch, ``factor`` times as high and wide."""
    n, _, height, width = like.shape
    shape = (n, channels, factor * height, factor * width)
    return torch.empty(shape, dtype=torch.float32, memory_format=torch.channels_last)


def _zeros_like(tensor: Tensor) -> Tensor:
    return torch.zeros(tensor.shape, dtype=torch.float32)


def _saved_shape(operation: Operation, arguments: Arguments) -> tuple[int, ...]:
    """[images, N, H, W, C]: the input of every convolution, or of every recursion; for a level also the last output."""
    n, channels, height, width = arguments["u"].shape
    images = arguments["recursions"] * (1 if arguments["recompute"] else arguments["weights"].shape[0])
    return images + (operation.name == "lapsrn_level"), n, height, width, channels


def _new_saved(save: bool, operation: Operation, **arguments: object) -> Tensor:
    return torch.empty(_saved_shape(operation, arguments) if save else 0, dtype=torch.float32)


def _conv2d_lrelu(x: Tensor, weight: Tensor, bias: Tensor | None, skip: Tensor | None, negative_slope: float) -> Tensor:
    out = _new_image(x, weight.shape[0])
    _kernels.conv2d_lrelu(_image(x), _array(weight), _array(bias), _image(skip), negative_slope, out)
    return out.to(x.dtype)
