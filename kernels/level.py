"""A pyramid level's features, forward and backward, as one run of launches over NHWC maps.

With a_0 = φ(u), convolution k = 1 .. R·D makes a_k = φ(W ⋆ a_{k-1} + b [+ u where a recursion ends]); the level's
output is U(a_RD). Backward carries g_k, the gradient of the value that φ made a_k of: the data-gradient kernel's
epilogue multiplies by φ' as it writes, so no map of a gradient before φ' ever exists. The source skip hands u the sum
of the g_k of all recursions' ends, which the same epilogue adds up.

Launches for D convolutions and R recursions (D5R8 in brackets):
forward 3 + R·D [43]: packing, φ(u), the convolutions, U;
backward 13 + R·(D + 5) [93]: R·D data gradients, and a recursion one weight gradient of all its D convolutions and
four sums over the shares and tiles, a few percent of a map each; around them packing, the two gradients of U and its
bias's, and small copies and sums. ``recompute`` adds R·D [40] to backward.

No launch waits for the host and all memory comes from PyTorch's allocator, so a CUDA graph can capture either pass
once every kernel has run, and so been compiled and tuned, for that size class.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .conv import conv_lrelu, launch_conv, sums_rows
from .transposed_conv import transposed_conv, transposed_conv_data_gradient
from .weight_gradient import share_count, weight_gradient_shares


def embedding(
    u: Tensor,  # [N, H, W, C]
    weights: Tensor,  # packed [D, 9, C, C]
    biases: Tensor,  # [D, C]
    recursions: int,
    slope: float,
    saved: Tensor | None = None,  # [K, N, H, W, C], receives a_0, a_step, a_2·step, ... as far as it goes
    step: int = 1,
) -> Tensor:  # [N, H, W, C]
    """a_RD = φ(h_R)."""
    depth = weights.shape[0]

    def room(k: int) -> Tensor:
        kept = saved is not None and k % step == 0 and k // step < saved.shape[0]
        return saved[k // step] if kept else torch.empty_like(u)

    a = torch.ops.aten.leaky_relu.out(u, slope, out=room(0))
    for k in range(1, recursions * depth + 1):
        d = (k - 1) % depth
        a = conv_lrelu(a, weights[d], biases[d], u if d == depth - 1 else None, slope, out=room(k))
    return a


def embedding_gradient(
    grad: Tensor,  # [N, H, W, C], g_RD
    grad_sum: Tensor,  # [C], float32, its sum over pixels
    saved: Tensor,  # [K, N, H, W, C], as embedding left it
    weights: Tensor,  # packed [D, 9, C, C]
    biases: Tensor,  # [D, C]
    recursions: int,
    slope: float,
    step: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of u [N, H, W, C], and in float32 of the packed weights [D, 9, C, C] and of the biases [D, C]."""
    depth, channels, shape = weights.shape[0], grad.shape[-1], grad.shape
    grads = grad.new_empty(depth, *shape)  # of one recursion's convolutions
    grads[-1] = grad
    float32 = {"dtype": torch.float32, "device": grad.device}
    grad_weights = torch.zeros(depth, 9, channels, channels, **float32)
    grad_biases = torch.zeros(depth, channels, **float32)
    grad_biases[-1] = grad_sum
    shares = torch.empty(depth, share_count(grads.shape, channels, grad.device), *grad_weights.shape[1:], **float32)
    sums = torch.zeros(depth, sums_rows(shape, grad.dtype), channels, **float32)
    skip = grad
    del grad  # so that its memory goes with ``skip``
    for r in reversed(range(recursions)):
        inputs = saved[r * depth : (r + 1) * depth] if step == 1 else _recompute(saved[r], weights, biases, slope)
        for d in reversed(range(1, depth)):
            below = {"saved": inputs[d], "out": grads[d - 1], "sums": sums[d - 1]}
            launch_conv(grads[d], weights[d], shape, slope, flipped=True, **below)
        grad_weights += weight_gradient_shares(grads, inputs, 1, shares).sum(1)
        first, total = grads[0], torch.empty_like(skip)
        if depth == 1:
            grads = torch.empty_like(grads)  # the launch below must not write what it reads
        # What the first convolution reads is where the recursion before ended, or φ(u); u's skip joins there.
        below = {"out": grads[-1], "sums": sums[-1]} if r > 0 else {}
        below |= {"saved": inputs[0], "skip": skip, "total": total}
        launch_conv(first, weights[0], shape, slope, flipped=True, **below)
        written = depth if r > 0 else depth - 1
        grad_biases[:written].add_(sums[:written].sum(1))
        skip = total
    return skip, grad_weights, grad_biases


def _recompute(a: Tensor, weights: Tensor, biases: Tensor, slope: float) -> Tensor:  # [D, N, H, W, C]
    """The inputs of a recursion's convolutions, from the first of them."""
    inputs = a.new_empty(weights.shape[0], *a.shape)
    inputs[0].copy_(a)
    for d in range(1, weights.shape[0]):
        conv_lrelu(inputs[d - 1], weights[d - 1], biases[d - 1], None, slope, out=inputs[d])
    return inputs


def level(
    u: Tensor,  # [N, H, W, C]
    weights: Tensor,  # packed [D, 9, C, C]
    biases: Tensor,  # [D, C]
    upsample_weight: Tensor,  # packed [9, C, C], one of ``weights`` where it is shared
    upsample_bias: Tensor,  # [C]
    recursions: int,
    slope: float,
    saved: Tensor | None = None,  # as in embedding
    step: int = 1,
) -> Tensor:  # [N, 2H, 2W, C]
    """U(φ(h_R)) + b."""
    a = embedding(u, weights, biases, recursions, slope, saved, step)
    return transposed_conv(a, upsample_weight, upsample_bias)


def level_gradient(
    grad: Tensor,  # [N, 2H, 2W, C]
    saved: Tensor,  # [K, N, H, W, C], the last of them a_RD
    weights: Tensor,  # packed [D, 9, C, C]
    biases: Tensor,  # [D, C]
    upsample_weight: Tensor,  # packed [9, C, C]
    recursions: int,
    slope: float,
    step: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of u, and in float32 of the packed weights, biases, packed upsampling weight and its bias."""
    upsample = weight_gradient_shares(saved[-1:], grad[None], 2).sum(1)[0]
    last = transposed_conv_data_gradient(grad, upsample_weight, saved[-1], slope)
    block = embedding_gradient(*last, saved, weights, biases, recursions, slope, step)
    return *block, upsample, grad.sum((0, 1, 2), dtype=torch.float32)
