"""Nodes of a functional ATen graph: what they compute, who reads them, and how one takes the place of several."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.experimental.symbolic_shapes import statically_known_true, sym_eq
from torch.fx.operator_schemas import normalize_function

aten = torch.ops.aten
CONVOLUTIONS = (aten.conv2d.default, aten.conv2d.padding)
TRANSPOSED = aten.conv_transpose2d.input


def value(node: fx.Node) -> Any:  # noqa: ANN401 (a fake tensor, mostly)
    return node.meta["val"]


def insert(place: fx.Node, target: Callable[..., object], *args: object, **kwargs: object) -> fx.Node:
    """A new node before ``place``, with its fake value."""
    with place.graph.inserting_before(place):
        node = place.graph.call_function(target, args, kwargs)
    node.meta["val"] = target(*fx.node.map_arg(args, value), **kwargs)
    return node


def become(node: fx.Node, definition: Callable[..., Tensor], replaced: Sequence[fx.Node], **given: object) -> None:
    """Let ``node`` compute an operation's ``definition`` instead of what it and those ``replaced`` before it did."""
    node.meta["modules"] = [path for each in (*replaced, node) for path in each.meta.get("modules", ())]
    node.target, node.args, node.kwargs = definition, (), given
    for each in reversed(replaced):
        node.graph.erase_node(each)


def arguments(node: fx.Node) -> dict[str, Any]:
    """All of an operator's arguments by name, defaults included."""
    return normalize_function(node.target, node.args, node.kwargs, normalize_to_only_use_kwargs=True).kwargs


def has_shape(node: fx.Node, shape: tuple[int, ...]) -> bool:
    """Whether the value of ``node`` has this shape, whatever sizes vary."""
    return statically_known_true(sym_eq(tuple(value(node).shape), tuple(shape)))


def mark_grad_modes(graph: fx.Graph) -> None:
    mode = 0
    for node in graph.nodes:
        mode += node.target is torch._C._set_grad_enabled
        node.meta["grad_mode"] = mode


def only_user(node: fx.Node) -> fx.Node | None:
    """The one node that reads ``node``, where gradients are recorded for both or for neither."""
    user = next(iter(node.users)) if len(node.users) == 1 else None
    return user if user is not None and user.meta.get("grad_mode") == node.meta.get("grad_mode") else None


def negative_slope(node: fx.Node) -> float | None:
    """The slope of a ReLU or LeakyReLU; None for anything else."""
    if node.target not in (aten.relu.default, aten.leaky_relu.default):
        return None
    slope = arguments(node).get("negative_slope", 0.0)
    slope = float(value(slope) if isinstance(slope, fx.Node) else slope)  # a symbolic one is fixed, with a guard
    return slope if slope >= 0 else None
