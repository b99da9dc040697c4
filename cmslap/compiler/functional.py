"""A Dynamo graph as ATen operations without mutation or aliasing, before autograd and autocast act on it."""

from collections.abc import Sequence

import torch
from torch import Tensor, fx
from torch._functorch._aot_autograd.schemas import OutputType, ViewAndMutationMeta
from torch._functorch.aot_autograd import _aot_export_function, create_functional_call
from torch._ops import HigherOrderOperator
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from cmslap.compiler.nodes import aten, insert
from cmslap.ops.arguments import AUTOCAST_DEVICES

FUNCTORCH = ("torch._C._functorch", "torch._functorch.predispatch", "torch._functorch.vmap")


class Unfit(Exception):  # noqa: N818 (a finding, not an error)
    """A graph that has no functional form, or one that would mean something else; the message says why."""


def functionalize(gm: fx.GraphModule, inputs: Sequence[object]) -> fx.GraphModule:
    """The same computation of the same inputs; what it does to them happens at the end.

    Every node's ``meta["val"]`` is its fake value. Raises Unfit.
    """
    _check_before(gm, inputs)
    try:
        call = create_functional_call(gm, [], 0)  # which passes on where each node comes from
        functional, found, *_ = _aot_export_function(call, tuple(inputs), pre_dispatch=True, keep_input_mutations=True)
    except Exception as error:  # whatever the export refuses, which differs between versions of PyTorch
        reason = str(error).strip().partition("\n")[0]
        raise Unfit(f"it has no functional form ({type(error).__name__}: {reason})") from error
    _check_after(found)
    graph = functional.graph
    first = next(node for node in graph.nodes if node.op != "placeholder")
    for written in graph.find_nodes(op="call_function", target=aten.copy_.default):
        target, new = written.args
        copied = insert(first, aten.clone.default, target)  # what is kept for backward must not change
        target.replace_all_uses_with(copied)
        copied.args, written.args = (target,), (target, new)
    functional.meta.update(gm.meta)
    return functional


def _check_before(gm: fx.GraphModule, inputs: Sequence[object]) -> None:
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


def _check_after(found: ViewAndMutationMeta) -> None:
    if found.tokens:
        raise Unfit("it holds operators whose effects have an order")
    changed = {i: each for i, each in enumerate(found.input_info) if each.mutates_data}
    if any(each.requires_grad for each in changed.values()):
        raise Unfit("it changes an input or a parameter that needs gradients")
    if any(each.output_type == OutputType.alias_of_input and each.base_idx in changed for each in found.output_info):
        raise Unfit("it returns a view of an input that it changes")
