"""Memory formats: the operators want images in channels_last memory, and leave them there.

What reads memory as it lies, and the caller, get the format that PyTorch's own operations would have given them.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, fx
from torch._ops import OpOverload

from cmslap.compiler.nodes import aten, insert

STRIDED = (aten.as_strided.default, aten.as_strided_scatter.default)


def pin(graph: fx.Graph) -> None:
    """Say where a memory format matters, before the graph is rewritten."""
    for node in list(graph.nodes):
        foreign = isinstance(node.target, OpOverload) and node.target.namespace not in ("aten", "prims")
        if node.target is aten.view.default:
            node.target = aten.reshape.default  # which serves any
        elif node.op == "output" or node.target in STRIDED or foreign:
            for image in node.all_input_nodes:
                format = _format(image)
                if format is not None:
                    _lay(image, node, format)


def spread(nodes: Iterable[fx.Node]) -> None:
    """Give nodes, in their graph's order, their first argument in channels_last memory."""
    laid: dict[fx.Node, fx.Node] = {}
    for node in nodes:
        image = node.args[0]
        if image in laid:
            node.replace_input_with(image, laid[image])
        else:
            laid[image] = _lay(image, node, torch.channels_last)


def _lay(image: fx.Node, user: fx.Node, format: torch.memory_format) -> fx.Node:
    laid = insert(user, aten.contiguous.default, image, memory_format=format)
    user.replace_input_with(image, laid)
    return laid


def _format(node: fx.Node) -> torch.memory_format | None:
    """The memory format of an image that the graph computes."""
    image = node.meta.get("val")
    if node.op != "call_function" or not isinstance(image, Tensor) or image.dim() != 4:
        return None
    formats = (torch.contiguous_format, torch.channels_last)
    return next((format for format in formats if image.is_contiguous(memory_format=format)), None)
