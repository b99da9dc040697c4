"""A graph on its way, and the replacing of nodes by an operator of ``cmslap.ops``."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import fx

from cmslap.compiler.layout import CHANNELS_LAST
from cmslap.compiler.patterns import Convolution, aten, skip, value
from cmslap.ops.dispatch import choose
from cmslap.ops.operation import OPERATIONS


@dataclass(frozen=True)
class Match:
    """A convolution of a graph with what follows it: a sum and an activation, or a crop."""

    convolution: Convolution
    nodes: list[fx.Node]
    total: fx.Node | None = None  # the sum with the skip
    negative_slope: float = 1.0  # of the activation, 1 for none

    @property
    def skip(self) -> fx.Node | None:
        return None if self.total is None else skip(self.total, self.convolution.node)

    @property
    def text(self) -> str:
        """Such as "conv 3×3 64→64 + skip + ReLU"."""
        if self.convolution.transposed:
            return f"2× upsampling {self.convolution.kernel}"
        parts = [f"conv {self.convolution.kernel}"]
        if self.total is not None:
            parts.append("skip")
        if self.negative_slope != 1.0:
            parts.append("LeakyReLU" if self.negative_slope else "ReLU")
        return " + ".join(parts)


@dataclass
class Rewriting:
    """A functional graph, and whether gradients of it will be asked for."""

    graph: fx.Graph
    needs_grad: bool
    names: Mapping[str, str]  # modules' paths by their id
    _modes: dict[fx.Node, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for node in self.graph.nodes:
            switches = node.target is torch._C._set_grad_enabled
            self._modes[node] = len(self._modes) if switches else self._modes.get(node.prev, 0)

    def same_mode(self, *nodes: fx.Node) -> bool:
        """Whether gradients are recorded for all of the nodes, or for none."""
        return len({self._modes[node] for node in nodes}) == 1

    def replace(self, nodes: list[fx.Node], name: str, given: dict[str, object]) -> fx.Node:
        """Put the operator ``name`` in the place of ``nodes``, whose last has its value."""
        operation, last = OPERATIONS[name], nodes[-1]
        given = {key: given[key] for key in operation.arguments}
        fakes = {key: value(each) if isinstance(each, fx.Node) else each for key, each in given.items()}
        backend = choose(operation, fakes, self.needs_grad)
        image, *others = given.values()
        options = (self.needs_grad, backend.name) if operation.saves else (backend.name,)
        with self.graph.inserting_before(last):
            image = self.graph.call_function(aten.contiguous.default, (image,), CHANNELS_LAST)
            call = self.graph.call_function(getattr(torch.ops.cmslap, name).default, (image, *others, *options))
            if operation.saves:
                call = self.graph.call_function(operator.getitem, (call, 0))
        return self.put(call, nodes)

    def put(self, call: fx.Node, nodes: list[fx.Node]) -> fx.Node:
        """Let ``call`` stand for ``nodes``, whose last has its value."""
        last = nodes[-1]
        call.meta.update(last.meta)
        self._modes[call] = self._modes[last]
        last.replace_all_uses_with(call)
        for node in reversed(nodes):
            self.graph.erase_node(node)
        return call

    def path(self, node: fx.Node) -> str:
        """Of the module a node comes from."""
        *_, (key, (path, _)) = node.meta.get("nn_module_stack", {}).items() or [("", ("", ""))]
        return self.names.get(key.partition("@")[0], path.removeprefix("L['self']").removeprefix("."))
