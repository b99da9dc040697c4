"""Fuses convolutions of a functional ATen graph with what they are multiplied by, added to and activated with.

First, node by node, in the definitions of ``ops.reference``; these then become the operators that do the work.
"""

import operator
from collections.abc import Mapping

import torch
from torch import Tensor, fx

from cmslap.compiler import layout, recursion
from cmslap.compiler.eligibility import MIN_CHANNELS, crop, objection, objection_to_size
from cmslap.compiler.nodes import (
    CONVOLUTIONS,
    TRANSPOSED,
    arguments,
    aten,
    become,
    has_shape,
    insert,
    mark_grad_modes,
    negative_slope,
    only_user,
    value,
)
from cmslap.compiler.report import Fused, Skipped
from cmslap.compiler.slopes import prelu
from cmslap.ops import reference
from cmslap.ops.dispatch import choose
from cmslap.ops.operation import OPERATIONS


def fuse(graph: fx.Graph, needs_grad: bool, names: Mapping[str, str]) -> tuple[list[Fused], list[Skipped]]:
    """Rewrite a graph as far as it goes; what was fused, and the convolutions that are left as they were."""
    layout.pin(graph)
    mark_grad_modes(graph)
    for node in list(graph.nodes):
        if node.target in (*CONVOLUTIONS, TRANSPOSED):
            node.meta["modules"] = [_path(node, names)]
            _convolution(node, needs_grad)
        elif node.target is aten.mul.Tensor:
            _factor(node)
        elif node.target is aten.add.Tensor:
            _sum(node)
        elif node.target is aten.prelu.default and value(node).device.type == "cpu":
            node.target = prelu
        elif negative_slope(node) is not None:
            _activation(node, needs_grad)
    recursion.fuse(graph)
    return _finish(graph, needs_grad)


def _convolution(node: fx.Node, needs_grad: bool) -> None:
    if node.target in CONVOLUTIONS:
        _compose_pair(node.args[0], node, needs_grad)
    node.meta["objection"] = objection(node, needs_grad)
    if node.meta["objection"] is not None:
        return
    image, weight, bias, *_ = arguments(node).values()
    if node.target is TRANSPOSED:
        *cuts, last = crop(node)
        become(last, reference.tied_conv_transpose2d, [node, *cuts], a=image, weight=weight, bias=bias)
    else:
        become(node, reference.conv2d_lrelu, [], x=image, weight=weight, bias=bias, skip=None, negative_slope=1.0)


def _compose_pair(first: fx.Node, second: fx.Node, needs_grad: bool) -> None:
    """Make one 3×3 convolution of a 3×1 one and the 1×3 one after it, or the other way round, where that pays."""
    if first.target not in CONVOLUTIONS or only_user(first) is not second:
        return
    pair = [arguments(node) for node in (first, second)]
    plain = all(given[name] in (1, [1, 1]) for given in pair for name in ("stride", "dilation", "groups"))
    same = all(value(node).shape[2:] == value(node.args[0]).shape[2:] for node in (first, second))
    (middle, into, *taps), (out, _, *others) = (value(given["weight"]).shape for given in pair)
    # A bias between them would stop at the border of the image, where the second pads with zeros.
    if not plain or not same or pair[0]["bias"] is not None or sorted((taps, others)) != [[1, 3], [3, 1]]:
        return
    image, composed = pair[0]["input"], value(pair[0]["weight"]).new_empty(out, into, 3, 3)
    # Where what lies between is narrow, the pair multiplies less.
    if middle < max(MIN_CHANNELS, min(out, into)) or objection_to_size(value(image), composed, needs_grad):
        return
    # W[o, i, k, l] = Σₘ B[o, m, k, l] A[m, i, k, l], where A or B has but one k, and the other but one l
    factors = [given["weight"] for given in reversed(pair)]
    weight = insert(second, aten.einsum.default, "omkl,mikl->oikl", factors)
    second.target, second.args = aten.conv2d.default, (image, weight, pair[1]["bias"], [1, 1], [1, 1])
    second.graph.erase_node(first)


def _is_open(convolution: object, user: fx.Node) -> bool:
    """Whether it is one of ours without activation, and read by ``user`` alone."""
    ours = isinstance(convolution, fx.Node) and convolution.target is reference.conv2d_lrelu
    return ours and convolution.kwargs["negative_slope"] == 1.0 and only_user(convolution) is user


def _factor(node: fx.Node) -> None:
    """Multiply kernel and bias, in place of the image, where a convolution's result is multiplied by a number."""
    convolution, number = node.args
    if not _is_open(convolution, node) or convolution.kwargs["skip"] is not None or isinstance(number, fx.Node):
        return
    given = dict(convolution.kwargs)
    for name in ("weight", "bias"):
        given[name] = given[name] and insert(node, aten.mul.Tensor, given[name], number)
    become(node, reference.conv2d_lrelu, [convolution], **given)


def _sum(node: fx.Node) -> None:
    """Let a convolution add its skip, or overwrite its result with the sum where it is left to PyTorch."""
    first, second, alpha = arguments(node).values()
    if alpha != 1 or first is second:
        return
    for convolution, other in ((first, second), (second, first)):
        if _is_open(convolution, node) and convolution.kwargs["skip"] is None and _is_image_like(other, convolution):
            become(node, reference.conv2d_lrelu, [convolution], **{**convolution.kwargs, "skip": other})
            return
    if first.target in CONVOLUTIONS and only_user(first) is node and _is_image_like(second, first):
        node.target = aten.add_.Tensor


def _is_image_like(node: object, other: fx.Node) -> bool:
    """Whether ``node`` is a tensor of the shape, dtype and device of ``other``."""
    if not isinstance(node, fx.Node) or not isinstance(value(node), Tensor):
        return False
    a, b = value(node), value(other)
    return a.dtype == b.dtype and a.device == b.device and has_shape(node, b.shape)


def _activation(node: fx.Node, needs_grad: bool) -> None:
    """Let a convolution activate its result, or overwrite it where it is left to PyTorch."""
    slope, image = negative_slope(node), node.args[0]
    if image.target in CONVOLUTIONS and only_user(image) is node:
        node.target = aten.relu_.default if node.target is aten.relu.default else aten.leaky_relu_.default
    # Where backward would read the result, which the caller may change, PyTorch's own, which reads the input, stays.
    elif _is_open(image, node) and not (slope and needs_grad and _leaves(node)):
        become(node, reference.conv2d_lrelu, [image], **{**image.kwargs, "negative_slope": slope})


def _leaves(node: fx.Node) -> bool:
    """Whether the caller gets the value of a node, or a view of it."""
    results = [value(result) for result in node.graph.output_node().all_input_nodes]
    storages = [result.untyped_storage()._cdata for result in results if isinstance(result, Tensor)]
    return value(node).untyped_storage()._cdata in storages


def _finish(graph: fx.Graph, needs_grad: bool) -> tuple[list[Fused], list[Skipped]]:
    """Put operators in the place of the definitions; what was fused, and what was not."""
    fused, left, laid = [], [], []
    for node in list(graph.nodes):
        if node.target in (*CONVOLUTIONS, TRANSPOSED):
            text = f"conv {_kernel(node.args[1], node.target is TRANSPOSED)}"
            left.append(Skipped(*node.meta["modules"], text, node.meta["objection"]))
            if node.target is not TRANSPOSED and value(node).dim() == 4 and value(node).device.type == "cpu":
                laid.append(node)  # on CPUs PyTorch's own are faster on channels_last memory, too
        elif "modules" in node.meta:
            fused.append(Fused(node.target.__name__, tuple(dict.fromkeys(node.meta["modules"])), _text(node)))
            laid.append(_lower(node, needs_grad))
    layout.spread(laid)
    graph.eliminate_dead_code()
    return fused, left


def _lower(node: fx.Node, needs_grad: bool) -> fx.Node:
    """Put an operator of ``torch.ops.cmslap`` in the place of a definition; its node."""
    operation = OPERATIONS[node.target.__name__]
    given = operation.of(node.kwargs)
    backend = choose(operation, fx.node.map_arg(given, value), needs_grad)
    target = getattr(torch.ops.cmslap, operation.name).default
    if not operation.saves:
        node.target, node.args, node.kwargs = target, (*given.values(), backend.name), {}
        return node
    call = insert(node, target, *given.values(), needs_grad, backend.name)
    node.target, node.args, node.kwargs = operator.getitem, (call, 0), {}
    return call


def _text(node: fx.Node) -> str:
    """Such as "conv 3×3 64→64 + skip + ReLU"."""
    given = node.kwargs
    if "recursions" in given:
        return f"{given['recursions']} recursions of {value(given['weights']).shape[0]} convolutions, source skip"
    if node.target is reference.tied_conv_transpose2d:
        return f"2× upsampling {_kernel(given['weight'], transposed=True)}"
    activation = {1.0: "", 0.0: " + ReLU"}.get(given["negative_slope"], " + LeakyReLU")
    return f"conv {_kernel(given['weight'])}{' + skip' * (given['skip'] is not None)}{activation}"


def _kernel(weight: fx.Node, transposed: bool = False) -> str:
    """Such as "3×3 64→64"."""
    out, into, height, width = value(weight).shape
    return f"{height}×{width} {f'{out}→{into}' if transposed else f'{into}→{out}'}"


def _path(node: fx.Node, names: Mapping[str, str]) -> str:
    """Of the module a node comes from."""
    *_, (key, (path, _)) = node.meta.get("nn_module_stack", {}).items() or [("", ("", ""))]
    return names.get(key.partition("@")[0], path.removeprefix("L['self']").removeprefix("."))
