"""Which values of a graph share memory, so that fusing moves nothing past an in-place operation it depends on."""

from __future__ import annotations

import operator
from collections.abc import Collection

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from cmslap.compiler import patterns

# Functions and methods whose result is new memory; of anything else the result may be, or view, its inputs.
NEW_MEMORY = {
    *(
        torch.conv2d,
        torch.conv_transpose2d,
        torch.cat,
        torch.add,
        torch.mul,
        torch.sub,
        F.interpolate,
        F.relu,
        F.leaky_relu,
    ),
    *(operator.add, operator.sub, operator.mul, operator.truediv, operator.neg, torch.sigmoid, torch.tanh, torch.relu),
    *("add", "sub", "mul", "div", "neg", "sigmoid", "tanh", "relu", "mean", "sum", "clone", "size"),
}
NEW_MEMORY_MODULES = (
    *(nn.Conv2d, nn.ConvTranspose2d, nn.Linear, nn.ReLU, nn.LeakyReLU, nn.PReLU, nn.Sigmoid, nn.Tanh, nn.BatchNorm2d),
    *(nn.AdaptiveAvgPool2d, nn.AvgPool2d, nn.MaxPool2d, nn.Upsample, nn.PixelShuffle),
)


def sources(node: fx.Node, root: nn.Module) -> set[fx.Node | str]:
    """Where the memory of a value may come from: nodes that made it, or "inputs"."""
    found: set[fx.Node | str] = set()
    pending, seen = [node], set()
    while pending:
        value = pending.pop()
        if value in seen:
            continue
        seen.add(value)
        if value.op == "placeholder":
            found.add("inputs")  # the caller may give one tensor as two arguments
        else:
            found.add(value)
            if not _is_new(value, root):
                pending += value.all_input_nodes
    return found


def _is_new(node: fx.Node, root: nn.Module) -> bool:
    if node.op == "call_module":
        module = patterns.module_of(node, root)
        return type(module) in NEW_MEMORY_MODULES and not patterns.changed_in_place(node, root)
    if node.op not in ("call_function", "call_method"):
        return False
    return node.target in NEW_MEMORY and not patterns.changed_in_place(node, root)


def changed_between(
    first: fx.Node, last: fx.Node | None, values: list[fx.Node], own: Collection[fx.Node], root: nn.Module
) -> bool:
    """Whether a node from ``first`` up to ``last`` (None: the end), none of ``own``, may change one of ``values``."""
    kept = set().union(*(sources(value, root) for value in values))
    node = first
    while node is not last and node.op != "root":
        if node not in own:
            for changed in patterns.changed_in_place(node, root):
                if kept & sources(changed, root):
                    return True
        node = node.next
    return False


def changed_later(node: fx.Node, root: nn.Module) -> list[fx.Node]:
    """The nodes after ``node`` that may change its value in place."""
    later = []
    user = node.next
    while user.op != "root":
        if any(node in sources(changed, root) for changed in patterns.changed_in_place(user, root)):
            later.append(user)
        user = user.next
    return later


def leaves(node: fx.Node, root: nn.Module) -> bool:
    """Whether the caller may get the value of ``node``, and do with it as he likes."""
    (result,) = node.graph.find_nodes(op="output")
    return any(node in sources(value, root) for value in result.all_input_nodes)


def changed_parameters(graph: fx.Graph, root: nn.Module) -> set[int]:
    """The memory of the parameters and buffers that a graph may change in place, as :func:`storage` names it."""
    changed = (value for node in graph.nodes for value in patterns.changed_in_place(node, root))
    found = {source for value in changed for source in sources(value, root)} - {"inputs"}
    return {storage(patterns.attribute(root, source.target)) for source in found if source.op == "get_attr"}


def storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata
