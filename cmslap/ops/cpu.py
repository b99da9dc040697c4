"""The CPU backend: the kernels of csrc/cpu, float32."""

from __future__ import annotations

import torch
from torch import Tensor

from cmslap.ops.backend import Backend
from cmslap.ops.extension import MISSING
from cmslap.ops.operation import OPERATIONS, Arguments, Operation


def _unsupported(operation: Operation, arguments: Arguments) -> str | None:
    activation = operation.activation(arguments)
    if activation.device.type != "cpu":
        return f"runs on cpu, not on {activation.device.type}"
    if activation.dtype != torch.float32:
        return f"float32 only, not {str(activation.dtype).removeprefix('torch.')}"
    return None


def _tied_conv_transpose2d(a: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    out = OPERATIONS["tied_conv_transpose2d"].empty_output({"a": a, "weight": weight, "bias": bias})
    torch.ops.cmslap_cpu.tied_conv_transpose2d(a, weight, bias, out)
    return out


CPU = Backend("cpu", MISSING, _unsupported, forward={"tied_conv_transpose2d": _tied_conv_transpose2d})
