"""Memory formats: the operators want images in channels_last memory, and leave them there.

What reads memory as it lies, and the caller, get the format that PyTorch's own operations would have given them.
"""

from __future__ import annotations

import torch
from torch import Tensor, fx
from torch._ops import OpOverload

from cmslap.compiler.patterns import CONVOLUTIONS, aten, value

CHANNELS_LAST = {"memory_format": torch.channels_last}
STRIDED = (aten.as_strided.default, aten.as_strided_scatter.default)


def pin(graph: fx.Graph) -> None:
    """Say where a memory format matters, before the graph is rewritten."""
    for node in list(graph.nodes):
        if node.target is aten.view.default:
            node.target = aten.reshape.default  # which serves any
        elif node.op == "output" or node.target in STRIDED or _is_foreign(node.target):
            for image in node.all_input_nodes:
                format = _format(image)
                if format is not None:
                    with graph.inserting_before(node):
                        pinned = graph.call_function(aten.contiguous.default, (image,), {"memory_format": format})
                    pinned.meta.update(image.meta)
                    node.replace_input_with(image, pinned)


def spread(graph: fx.Graph) -> None:
    """Give the convolutions left to PyTorch images in channels_last memory too, which on CPUs they are faster on."""
    laid: dict[fx.Node, fx.Node] = {}
    for node in list(graph.nodes):
        if node.target in CONVOLUTIONS and value(node).dim() == 4 and value(node).device.type == "cpu":
            image = node.args[0]
            if image not in laid:
                with graph.inserting_before(node):
                    laid[image] = graph.call_function(aten.contiguous.default, (image,), CHANNELS_LAST)
                laid[image].meta.update(image.meta)
            node.replace_input_with(image, laid[image])


def _is_foreign(target: object) -> bool:
    return isinstance(target, OpOverload) and target.namespace not in ("aten", "prims")


def _format(node: fx.Node) -> torch.memory_format | None:
    """The memory format of an image that the graph computes."""
    image = node.meta.get("val")
    if node.op != "call_function" or not isinstance(image, Tensor) or image.dim() != 4:
        return None
    formats = (torch.contiguous_format, torch.channels_last)
    return next((format for format in formats if image.is_contiguous(memory_format=format)), None)
