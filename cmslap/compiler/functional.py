"""A Dynamo graph as ATen operations without mutation or aliasing, before autograd and autocast act on it."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, fx
from torch._functorch.aot_autograd import aot_export_module
from torch._ops import HigherOrderOperator
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from cmslap.compiler.patterns import shares_memory
from cmslap.ops.arguments import AUTOCAST_DEVICES

FUNCTORCH = ("torch._C._functorch", "torch._functorch.predispatch", "torch._functorch.vmap")


class Unfit(Exception):  # noqa: N818 (a finding, not an error)
    """A graph that has no functional form, or one that would mean something else; the message says why."""


def functionalize(gm: fx.GraphModule, inputs: Sequence[object]) -> fx.GraphModule:
    """The same computation with the same placeholders; what it does to its inputs happens at the end.

    Every node's ``meta["val"]`` is its fake value. Raises Unfit.
    """
    _check(gm, inputs)
    try:
        functional, signature = aot_export_module(gm, inputs, trace_joint=False, pre_dispatch=True)
    except Exception as error:  # whatever the export refuses, which differs between versions of PyTorch
        reason = str(error).strip().partition("\n")[0]
        raise Unfit(f"it has no functional form ({type(error).__name__}: {reason})") from error
    lifted = signature.inputs_to_parameters | signature.inputs_to_buffers
    mutated = signature.buffers_to_mutate | signature.parameters_to_mutate | signature.user_inputs_to_mutate
    placeholders = functional.graph.find_nodes(op="placeholder")
    given = [node.name for node in placeholders if node.name not in lifted]
    needing = {name for name, value in zip(given, inputs, strict=True) if getattr(value, "requires_grad", False)}
    needing |= {name for name, path in lifted.items() if operator.attrgetter(path)(gm).requires_grad}
    names = {path: name for name, path in lifted.items()}
    changed = [names.get(name, name) for name in mutated.values()]
    if needing.intersection(changed):  # the fake values of the export no longer say what needs gradients
        raise Unfit("it changes an input or a parameter that needs gradients")
    _apply_mutations(functional.graph, {node.name: node for node in placeholders}, changed)
    _restore_placeholders(functional, placeholders, gm, lifted)
    functional.meta.update(gm.meta)
    functional.recompile()
    return functional


def _check(gm: fx.GraphModule, inputs: Sequence[object]) -> None:
    """Refuse what the export would take and get wrong."""
    if any(torch.is_autocast_enabled(device) for device in AUTOCAST_DEVICES):
        raise Unfit("autocast is on; in half precision PyTorch's own are as fast")
    if any(isinstance(value, Tensor) and is_traceable_wrapper_subclass(value) for value in inputs):
        raise Unfit("an argument is of a subclass of Tensor")
    for node in gm.graph.nodes:
        if isinstance(node.target, HigherOrderOperator):  # a checkpoint, cond, an autograd.Function
            raise Unfit(f"it holds {node.target}")
        if node.target is torch.amp.autocast_mode._enter_autocast and node.args[2]:
            raise Unfit("it turns autocast on")
        if getattr(node.target, "__module__", None) in FUNCTORCH:
            raise Unfit("it uses torch.func")


def _apply_mutations(graph: fx.Graph, placeholders: dict[str, fx.Node], mutated: list[str]) -> None:
    """Write the first outputs to the inputs they stand for, instead of returning them."""
    (output,) = graph.find_nodes(op="output")
    values, results = output.args[0][: len(mutated)], list(output.args[0][len(mutated) :])
    for value, name in zip(values, mutated, strict=True):
        target = placeholders[name]
        if any(result is not value and shares_memory(result, value) for result in results):
            raise Unfit("it returns a view of an input that it changes")
        with graph.inserting_before(_first_call(graph)):  # what is kept for backward must not change
            copied = graph.call_function(torch.ops.aten.clone.default, (target,))
        copied.meta["val"] = target.meta["val"]
        target.replace_all_uses_with(copied, delete_user_cb=lambda user, copied=copied: user is not copied)
        with graph.inserting_before(output):
            written = graph.call_function(torch.ops.aten.copy_.default, (target, value))
        written.meta["val"] = value.meta["val"]
        results = [written if result is value else result for result in results]
    output.args = (tuple(results),)


def _first_call(graph: fx.Graph) -> fx.Node:
    return next(node for node in graph.nodes if node.op != "placeholder")


def _restore_placeholders(
    functional: fx.GraphModule, placeholders: list[fx.Node], gm: fx.GraphModule, lifted: Mapping[str, str]
) -> None:
    """Dynamo's own names and sources, which later stages read; tensors the graph held are its attributes again."""
    dynamos = iter(gm.graph.find_nodes(op="placeholder"))
    for node in placeholders:
        with functional.graph.inserting_before(node):
            if node.name in lifted:
                path = lifted[node.name]
                setattr(functional, path.replace(".", "_"), operator.attrgetter(path)(gm))
                new = functional.graph.get_attr(path.replace(".", "_"))
                new.meta.update(node.meta)
            else:
                new = functional.graph.node_copy(next(dynamos))
                new.meta["val"] = node.meta["val"]
        node.replace_all_uses_with(new)
        functional.graph.erase_node(node)
