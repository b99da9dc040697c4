"""Keeps channels_last memory inside: values go back to the user's own layout where other code may look at it.

The operations want channels_last images and return such, and PyTorch's functions below hand the layout on without
caring. Everything else (views, modules of the user's, the caller) gets what it would have got without us.
"""

from __future__ import annotations

import operator

import torch
import torch.nn.functional as F
from torch import fx, nn

from cmslap.compiler import calls
from cmslap.compiler.aliasing import changed_later
from cmslap.compiler.patterns import asks_size, module_of
from cmslap.compiler.tracing import has_hooks

OURS = (calls.conv2d_lrelu, calls.conv_transpose2d, calls.recursive_embedding, calls.lapsrn_level)
INDIFFERENT = {
    *(torch.conv2d, torch.conv_transpose2d, torch.cat, torch.add, torch.mul, torch.sub, torch.relu, torch.relu_),
    *(
        torch.sigmoid,
        torch.tanh,
        torch.pixel_shuffle,
        F.relu,
        F.leaky_relu,
        F.relu_,
        F.leaky_relu_,
        F.interpolate,
        F.pad,
    ),
    *(operator.add, operator.sub, operator.mul, operator.truediv, operator.neg),
    *(operator.iadd, operator.isub, operator.imul, operator.itruediv),
    *("add", "sub", "mul", "div", "neg", "sigmoid", "tanh", "relu", "add_", "mul_", "relu_", "clamp"),
}
INDIFFERENT_MODULES = (
    *(nn.Conv2d, nn.ConvTranspose2d, nn.ReLU, nn.LeakyReLU, nn.PReLU, nn.Sigmoid, nn.Tanh, nn.BatchNorm2d, nn.Identity),
    *(nn.AvgPool2d, nn.MaxPool2d, nn.AdaptiveAvgPool2d, nn.Upsample, nn.PixelShuffle),
)


def keep(graph: fx.Graph, root: nn.Module) -> None:
    """Insert the conversions."""
    # The values that may lie in channels_last memory because of us, and the image and kernel that decide without us.
    ours: dict[fx.Node, tuple[fx.Node, fx.Node]] = {}
    for node in list(graph.nodes):
        inputs = [value for value in node.all_input_nodes if value in ours]
        if inputs and (node.target in OURS or _is_indifferent(node, root)):
            ours[node] = ours[inputs[0]]
        elif node.target in OURS:
            ours[node] = _origin(node.args[0], root), _kernel(node)
        elif not asks_size(node):
            for value in inputs:
                _convert(graph, node, value, *ours[value])
        if node in ours and len(node.users) > 1 and changed_later(node, root):
            _convert_at_once(graph, node, *ours.pop(node))  # all see the changes, so all must see one copy


def _origin(image: fx.Node, root: nn.Module) -> fx.Node:
    """Where the layout of a value comes from."""
    while _is_indifferent(image, root) and len(image.all_input_nodes) == 1:
        image = image.all_input_nodes[0]
    return image


def _kernel(node: fx.Node) -> fx.Node:
    if node.target in (calls.recursive_embedding, calls.lapsrn_level):
        return node.args[1].args[0][0]
    return node.args[1]


def _is_indifferent(node: fx.Node, root: nn.Module) -> bool:
    if node.op == "call_module":
        module = module_of(node, root)
        return type(module) in INDIFFERENT_MODULES and not has_hooks(module)
    return node.op in ("call_function", "call_method") and node.target in INDIFFERENT


def _convert_at_once(graph: fx.Graph, value: fx.Node, image: fx.Node, weight: fx.Node) -> None:
    with graph.inserting_before(value.next):
        converted = graph.call_function(calls.users_layout, (value, image, graph.get_attr(weight.target)))
    value.replace_all_uses_with(converted, delete_user_cb=lambda user: user is not converted)


def _convert(graph: fx.Graph, node: fx.Node, value: fx.Node, inputs: fx.Node, weight: fx.Node) -> None:
    with graph.inserting_before(node):
        path = graph.get_attr(weight.target)
        converted = graph.call_function(calls.users_layout, (value, inputs, path))
    node.replace_input_with(value, converted)
