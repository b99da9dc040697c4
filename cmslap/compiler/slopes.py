"""PReLU with gradients by vector instructions.

PyTorch's own, ``_prelu_kernel_backward``, takes one number after the other, longer than the convolution before it
takes forward. Forward PReLU is a small part of that: nothing is to be gained there by fusing.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import FunctionCtx


class _PReLU(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor, slope: Tensor) -> Tensor:
        return F.prelu(x, slope)

    @staticmethod
    def setup_context(ctx: FunctionCtx, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor, Tensor]:
        x, slope = ctx.saved_tensors
        slopes = slope.view(-1, *[1] * (x.dim() - 2))  # [C, 1, 1], or one for all channels
        positive = torch.ops.aten.threshold_backward(grad, x, 0)
        negative = grad - positive
        grad_x = positive.addcmul_(negative, slopes)
        return grad_x, negative.mul_(x).sum_to_size(slopes.shape).view_as(slope)


def prelu(x: Tensor, slope: Tensor) -> Tensor:  # [N, C, ...], [C] or [1]
    return _PReLU.apply(x, slope)
