"""The operations as users call them: check the arguments, choose the backend, run.

The reference runs inline, so that ``torch.compile`` and double backward see through it; every other backend runs
behind the operators of registration.py.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from cmslap.ops.arguments import needs_gradients, prepare
from cmslap.ops.backend import Backend
from cmslap.ops.dispatch import REFERENCE, choose, folds, note
from cmslap.ops.operation import OPERATIONS, Arguments, Operation
from cmslap.ops.registration import call, reference_value


def conv2d_lrelu(
    x: Tensor,  # [N, Cin, H, W]
    weight: Tensor,  # [Cout, Cin, 3, 3]
    bias: Tensor | None = None,  # [Cout]
    skip: Tensor | None = None,  # [N, Cout, H, W]
    negative_slope: float = 0.2,
) -> Tensor:  # [N, Cout, H, W]
    """φ(W ⋆ x + b + skip): 3×3 convolution, padding 1, with its skip and LeakyReLU (slope 1: none, 0: ReLU)."""
    return _call("conv2d_lrelu", x, weight, bias, skip, negative_slope)


def recursive_embedding(
    u: Tensor,  # [N, C, H, W]
    weights: Tensor | Sequence[Tensor],  # [D, C, C, 3, 3], or D weights
    biases: Tensor | Sequence[Tensor],  # [D, C], or D biases
    recursions: int,
    negative_slope: float = 0.2,
    recompute: bool = False,
) -> Tensor:  # [N, C, H, W]
    """φ(h_R) of the recursion h_0 = u, h_r = (conv ∘ φ)^D(h_{r-1}) + u: D convolutions, R times, source skip.

    ``recompute`` keeps one activation a recursion for the backward pass instead of one a convolution.
    """
    return _call("recursive_embedding", u, weights, biases, recursions, negative_slope, recompute)


def dense_recursion(
    u: Tensor,  # [N, C, H, W]
    depthwise1: Tensor,  # [C, 1, 3, 3]
    pointwise1: Tensor,  # [G, C, 1, 1]
    bias1: Tensor,  # [G]
    depthwise2: Tensor,  # [C + G, 1, 3, 3]
    pointwise2: Tensor,  # [G, C + G, 1, 1]
    bias2: Tensor,  # [G]
    pointwise3: Tensor,  # [C, C + 2G, 1, 1]
    bias3: Tensor,  # [C]
    recursions: int,
    negative_slope: float = 0.0,
) -> Tensor:  # [N, C, H, W]
    """x_R of the recursion x_0 = u, x_r = x + P₃ [x, a, b] with a = φ(P₁ D₁ x), b = φ(P₂ D₂ [x, a]), x = x_{r-1}.

    The light-weight residual dense block, D depthwise 3×3 and P pointwise, R times with the same parameters.
    """
    parameters = depthwise1, pointwise1, bias1, depthwise2, pointwise2, bias2, pointwise3, bias3
    return _call("dense_recursion", u, *parameters, recursions, negative_slope)


def dense_network(
    image: Tensor,  # [N, 1, H, W]
    head_weight: Tensor,  # [C, 1, 3, 3]
    head_bias: Tensor,  # [C]
    depthwise1: Tensor,  # [C, 1, 3, 3]
    pointwise1: Tensor,  # [G, C, 1, 1]
    bias1: Tensor,  # [G]
    depthwise2: Tensor,  # [C + G, 1, 3, 3]
    pointwise2: Tensor,  # [G, C + G, 1, 1]
    bias2: Tensor,  # [G]
    pointwise3: Tensor,  # [C, C + 2G, 1, 1]
    bias3: Tensor,  # [C]
    tail_weight: Tensor,  # [S, C, 3, 3]
    tail_bias: Tensor,  # [S]
    recursions: int,
    negative_slope: float = 0.0,
) -> Tensor:  # [N, S, H, W]
    """W_tail ⋆ x_R + b_tail of the :func:`dense_recursion` that begins with u = W_head ⋆ I + b_head.

    For inference: no feature map exists. Kernels have no gradient of it; a network in training calls its parts.
    """
    block = depthwise1, pointwise1, bias1, depthwise2, pointwise2, bias2, pointwise3, bias3
    ends = head_weight, head_bias, *block, tail_weight, tail_bias
    return _call("dense_network", image, *ends, recursions, negative_slope)


def tied_conv_transpose2d(
    a: Tensor,  # [N, Cout, H, W]
    weight: Tensor,  # [Cout, Cin, 3, 3], a convolution's as it lies
    bias: Tensor | None = None,  # [Cin]
) -> Tensor:  # [N, Cin, 2H, 2W]
    """2× upsampling with a convolution's own weight: transposed convolution, stride 2, cropped at the end."""
    return _call("tied_conv_transpose2d", a, weight, bias)


def lapsrn_level(
    u: Tensor,  # [N, C, H, W]
    weights: Tensor | Sequence[Tensor],  # [D, C, C, 3, 3], or D weights
    biases: Tensor | Sequence[Tensor],  # [D, C], or D biases
    shared_conv: int | None,
    upsample_bias: Tensor,  # [C]
    recursions: int,
    negative_slope: float = 0.2,
    recompute: bool = False,
    upsample_weight: Tensor | None = None,  # [C, C, 3, 3] when shared_conv is None
) -> Tensor:  # [N, C, 2H, 2W]
    """Features of one pyramid level: recursive embedding, then 2× upsampling that reads conv ``shared_conv``'s weight.

    Convolutions count from 1. With ``shared_conv`` None the upsampling has a weight of its own, ``upsample_weight``.
    """
    return _call(
        "lapsrn_level",
        u,
        weights,
        biases,
        shared_conv,
        upsample_bias,
        recursions,
        negative_slope,
        recompute,
        upsample_weight,
    )


def residual_head(
    f: Tensor,  # [N, C, 2H, 2W]
    image: Tensor,  # [N, 1, H, W]
    residual_weight: Tensor,  # [1, C, 3, 3]
    residual_bias: Tensor,  # [1]
    image_weight: Tensor,  # [1, 1, 4, 4]
) -> Tensor:  # [N, 1, 2H, 2W]
    """I' = K ⋆ᵀ I + (W_res ⋆ f + b_res): the upsampled image plus the sub-band residual."""
    return _call("residual_head", f, image, residual_weight, residual_bias, image_weight)


def lapsrn_last_level(
    u: Tensor,  # [N, C, H, W]
    image: Tensor,  # [N, 1, H, W]
    weights: Tensor | Sequence[Tensor],  # [D, C, C, 3, 3], or D weights
    biases: Tensor | Sequence[Tensor],  # [D, C], or D biases
    shared_conv: int | None,
    upsample_bias: Tensor,  # [C]
    recursions: int,
    residual_weight: Tensor,  # [1, C, 3, 3]
    residual_bias: Tensor,  # [1]
    image_weight: Tensor,  # [1, 1, 4, 4]
    negative_slope: float = 0.2,
    recompute: bool = False,
    upsample_weight: Tensor | None = None,  # [C, C, 3, 3] when shared_conv is None
) -> Tensor:  # [N, 1, 2H, 2W]
    """I' of a level whose features nobody else needs: :func:`residual_head` of :func:`lapsrn_level`.

    Without gradients a backend may fold upsampling and residual convolution into one, so that the features at twice
    the resolution never exist. Otherwise this is those two operations.
    """
    whole, level, head = (OPERATIONS[name] for name in ("lapsrn_last_level", "lapsrn_level", "residual_head"))
    options = (shared_conv, upsample_bias, recursions, residual_weight, residual_bias, image_weight, negative_slope)
    arguments = prepare(whole, (u, image, weights, biases, *options, recompute, upsample_weight))
    of_level = level.of(arguments)
    backend = choose(level, of_level, needs_gradients(level, of_level))
    if folds(arguments, backend):
        return _run(whole, arguments, False, backend)
    f = _run(level, of_level, needs_gradients(level, of_level), backend)
    return _run_best(head, head.of({**arguments, "f": f}))


def _call(name: str, *values: object) -> Tensor:
    operation = OPERATIONS[name]
    return _run_best(operation, prepare(operation, values))


def _run_best(operation: Operation, arguments: Arguments) -> Tensor:
    needs_grad = needs_gradients(operation, arguments)
    return _run(operation, arguments, needs_grad, choose(operation, arguments, needs_grad))


def _run(operation: Operation, arguments: Arguments, needs_grad: bool, backend: Backend) -> Tensor:
    """One call, its arguments prepared and its backend chosen."""
    note(operation, backend)
    if backend is REFERENCE:
        return reference_value(operation, arguments)
    return call(operation, arguments, needs_grad, backend)
