"""What every operation means, in plain PyTorch.

These functions are the test oracle (in float64) and the code that runs where no kernel fits. They are
ordinary differentiable PyTorch: autograd, double backward and ``torch.compile`` see through them. What users call
(interface.py) takes its signature and documentation from here.

Shapes, from which the calls' arguments are checked (operation.py): N images, C feature channels, H×W pixels,
D convolutions in the recursive block, G the growth of a dense one.
The first convolution of the block is number 1, as in the paper.
"""

from __future__ import annotations

from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint


def leaky_relu(x: Tensor, negative_slope: float) -> Tensor:
    """φ(x); slope 1 is the identity and costs nothing, slope 0 is ReLU."""
    return x if negative_slope == 1.0 else F.leaky_relu(x, negative_slope)


def conv2d_lrelu(
    x: Annotated[Tensor, "N Cin H W"],
    weight: Annotated[Tensor, "Cout Cin 3 3"],
    bias: Annotated[Tensor, "Cout"] | None = None,
    skip: Annotated[Tensor, "N Cout H W"] | None = None,
    negative_slope: float = 0.2,
) -> Annotated[Tensor, "N Cout H W"]:
    """φ(W ⋆ x + b + skip): 3×3 convolution, padding 1, with its skip and LeakyReLU (slope 1: none, 0: ReLU)."""
    y = F.conv2d(x, weight, bias, padding=1)
    if skip is not None:
        y = y + skip
    return leaky_relu(y, negative_slope)


def recursive_embedding(
    u: Annotated[Tensor, "N C H W"],
    weights: Annotated[Tensor, "D C C 3 3"],
    biases: Annotated[Tensor, "D C"],
    recursions: int,
    negative_slope: float = 0.2,
    recompute: bool = False,
) -> Annotated[Tensor, "N C H W"]:
    """φ(h_R) of the recursion h_0 = u, h_r = (conv ∘ φ)^D(h_{r-1}) + u: D convolutions, R times, source skip.

    ``weights`` and ``biases`` may be sequences of D tensors. ``recompute`` keeps one activation a recursion for the
    backward pass instead of one a convolution.
    """
    depth = weights.shape[0]

    def block(a: Tensor, u: Tensor) -> Tensor:  # φ(h_{r-1}) -> φ(h_r)
        for d in range(depth):
            a = conv2d_lrelu(a, weights[d], biases[d], u if d == depth - 1 else None, negative_slope)
        return a

    a = leaky_relu(u, negative_slope)
    for _ in range(recursions):
        if recompute and torch.is_grad_enabled():
            a = checkpoint(block, a, u, use_reentrant=False)
        else:
            a = block(a, u)
    return a


def dense_recursion(
    u: Annotated[Tensor, "N C H W"],
    depthwise1: Annotated[Tensor, "C 1 3 3"],
    pointwise1: Annotated[Tensor, "G C 1 1"],
    bias1: Annotated[Tensor, "G"],
    depthwise2: Annotated[Tensor, "C+G 1 3 3"],
    pointwise2: Annotated[Tensor, "G C+G 1 1"],
    bias2: Annotated[Tensor, "G"],
    pointwise3: Annotated[Tensor, "C C+2G 1 1"],
    bias3: Annotated[Tensor, "C"],
    recursions: int,
    negative_slope: float = 0.0,
) -> Annotated[Tensor, "N C H W"]:
    """x_R of the recursion x_0 = u, x_r = x + P₃ [x, a, b] with a = φ(P₁ D₁ x), b = φ(P₂ D₂ [x, a]), x = x_{r-1}.

    The light-weight residual dense block, D depthwise 3×3 and P pointwise, R times with the same parameters.
    """

    def separable(x: Tensor, depthwise: Tensor, pointwise: Tensor, bias: Tensor) -> Tensor:
        return F.conv2d(F.conv2d(x, depthwise, padding=1, groups=x.shape[1]), pointwise, bias)

    x = u
    for _ in range(recursions):
        a = leaky_relu(separable(x, depthwise1, pointwise1, bias1), negative_slope)
        dense = torch.cat([x, a], 1)
        b = leaky_relu(separable(dense, depthwise2, pointwise2, bias2), negative_slope)
        x = x + F.conv2d(torch.cat([dense, b], 1), pointwise3, bias3)
    return x


def dense_network(
    image: Annotated[Tensor, "N 1 H W"],
    head_weight: Annotated[Tensor, "C 1 3 3"],
    head_bias: Annotated[Tensor, "C"],
    depthwise1: Annotated[Tensor, "C 1 3 3"],
    pointwise1: Annotated[Tensor, "G C 1 1"],
    bias1: Annotated[Tensor, "G"],
    depthwise2: Annotated[Tensor, "C+G 1 3 3"],
    pointwise2: Annotated[Tensor, "G C+G 1 1"],
    bias2: Annotated[Tensor, "G"],
    pointwise3: Annotated[Tensor, "C C+2G 1 1"],
    bias3: Annotated[Tensor, "C"],
    tail_weight: Annotated[Tensor, "S C 3 3"],
    tail_bias: Annotated[Tensor, "S"],
    recursions: int,
    negative_slope: float = 0.0,
) -> Annotated[Tensor, "N S H W"]:
    """W_tail ⋆ x_R + b_tail of the :func:`dense_recursion` that begins with u = W_head ⋆ I + b_head.

    For inference: in kernels no feature map exists. They have no gradient of it; a network in training calls its parts.
    """
    u = F.conv2d(image, head_weight, head_bias, padding=1).to(tail_weight.dtype)
    block = depthwise1, pointwise1, bias1, depthwise2, pointwise2, bias2, pointwise3, bias3
    x = dense_recursion(u, *block, recursions, negative_slope)
    return F.conv2d(x, tail_weight, tail_bias, padding=1).to(image.dtype)


def tied_conv_transpose2d(
    a: Annotated[Tensor, "N Cout H W"],
    weight: Annotated[Tensor, "Cout Cin 3 3"],  # a convolution's as it lies
    bias: Annotated[Tensor, "Cin"] | None = None,
) -> Annotated[Tensor, "N Cin 2H 2W"]:
    """2× upsampling with a convolution's own weight: transposed convolution, stride 2, cropped at the end.

    A conv weight is [out, in, 3, 3], which is what a transposed convolution takes as [in, out, 3, 3]. The
    (2H+1)×(2W+1) result is cropped at the end to 2H×2W (MatConvNet's crop [0 1 0 1]).
    """
    height, width = a.shape[-2:]
    return F.conv_transpose2d(a, weight, bias, stride=2)[..., : 2 * height, : 2 * width]


def lapsrn_level(
    u: Annotated[Tensor, "N C H W"],
    weights: Annotated[Tensor, "D C C 3 3"],
    biases: Annotated[Tensor, "D C"],
    shared_conv: int | None,
    upsample_bias: Annotated[Tensor, "C"],
    recursions: int,
    negative_slope: float = 0.2,
    recompute: bool = False,
    upsample_weight: Annotated[Tensor, "C C 3 3"] | None = None,  # when shared_conv is None
) -> Annotated[Tensor, "N C 2H 2W"]:
    """Features of one pyramid level: f = U(φ(h_R)) + b_u, where U reads the weight of conv ``shared_conv``.

    Convolutions count from 1. With ``shared_conv`` None the upsampling has a weight of its own, ``upsample_weight``.
    ``weights``, ``biases`` and ``recompute`` are those of :func:`recursive_embedding`.
    """
    a = recursive_embedding(u, weights, biases, recursions, negative_slope, recompute)
    weight = upsample_weight if shared_conv is None else weights[shared_conv - 1]
    return tied_conv_transpose2d(a, weight, upsample_bias)


def residual_head(
    f: Annotated[Tensor, "N C 2H 2W"],
    image: Annotated[Tensor, "N 1 H W"],
    residual_weight: Annotated[Tensor, "1 C 3 3"],
    residual_bias: Annotated[Tensor, "1"],
    image_weight: Annotated[Tensor, "1 1 4 4"],
) -> Annotated[Tensor, "N 1 2H 2W"]:
    """I' = K ⋆ᵀ I + (W_res ⋆ f + b_res): the upsampled image plus the sub-band residual."""
    upsampled = F.conv_transpose2d(image, image_weight, stride=2, padding=1)
    return upsampled + F.conv2d(f, residual_weight, residual_bias, padding=1)


def lapsrn_last_level(
    u: Annotated[Tensor, "N C H W"],
    image: Annotated[Tensor, "N 1 H W"],
    weights: Annotated[Tensor, "D C C 3 3"],
    biases: Annotated[Tensor, "D C"],
    shared_conv: int | None,
    upsample_bias: Annotated[Tensor, "C"],
    recursions: int,
    residual_weight: Annotated[Tensor, "1 C 3 3"],
    residual_bias: Annotated[Tensor, "1"],
    image_weight: Annotated[Tensor, "1 1 4 4"],
    negative_slope: float = 0.2,
    recompute: bool = False,
    upsample_weight: Annotated[Tensor, "C C 3 3"] | None = None,  # when shared_conv is None
) -> Annotated[Tensor, "N 1 2H 2W"]:
    """I' of a level whose features nobody else needs: :func:`residual_head` of :func:`lapsrn_level`.

    Without gradients a backend may fold upsampling and residual convolution into one, so that the features at twice
    the resolution never exist. Otherwise this is those two operations.
    """
    f = lapsrn_level(
        u, weights, biases, shared_conv, upsample_bias, recursions, negative_slope, recompute, upsample_weight
    )
    return residual_head(f, image, residual_weight, residual_bias, image_weight)
