"""Rewrites a traced graph: convolutions with what follows them become calls of :mod:`calls`."""

from __future__ import annotations

from dataclasses import dataclass

from torch import fx, nn

from cmslap.compiler import calls, layout, recursion
from cmslap.compiler.aliasing import changed_between, changed_later, changed_parameters, leaves, storage
from cmslap.compiler.patterns import (
    Activation,
    Addition,
    Convolution,
    activation,
    addition,
    attribute,
    convolution,
    crop,
    module_of,
    out_of_place,
)
from cmslap.compiler.report import Fused, Skipped
from cmslap.compiler.tracing import Trace, recorded_reads

ACTIVATION_NAMES = {0.0: "ReLU"}
OPERATIONS = {
    calls.conv2d_lrelu: "conv2d_lrelu",
    calls.conv_transpose2d: "tied_conv_transpose2d",
    calls.recursive_embedding: "recursive_embedding",
    calls.lapsrn_level: "lapsrn_level",
}


@dataclass(frozen=True)
class Match:
    """A convolution of a graph with what follows it: a sum and an activation, or a crop."""

    convolution: Convolution
    addition: fx.Node | None = None
    activation: fx.Node | None = None
    added: Addition | None = None
    activated: Activation | None = None
    crop: fx.Node | None = None

    @property
    def nodes(self) -> list[fx.Node]:
        nodes = (self.convolution.node, self.addition, self.activation, self.crop)
        return [node for node in nodes if node is not None]

    @property
    def skip(self) -> fx.Node | None:
        if self.addition is None:
            return None
        first, second = self.addition.args
        return second if first is self.convolution.node else first

    @property
    def text(self) -> str:
        """Such as "conv 3×3 64→64 + skip + ReLU"."""
        if self.crop is not None:
            return f"2× upsampling {self.convolution.kernel}"
        parts = [f"conv {self.convolution.kernel}"]
        if self.addition is not None:
            parts.append("skip")
        if self.activated is not None:
            parts.append(ACTIVATION_NAMES.get(self.activated.negative_slope, "LeakyReLU"))
        return " + ".join(parts)


def fuse(traced: Trace, root: nn.Module) -> tuple[list[Fused], list[Skipped]]:
    """Rewrite a graph as far as it goes; what was fused, and what is left as it was."""
    graph = traced.graph
    with recorded_reads(traced.guards):
        matches, left = _find(graph, root)
        fused = {_rewrite(graph, match): match for match in matches}
        for node in (node for match in matches for node in match.nodes):
            _assume(traced, node, root)
        rows = _fuse_recursions(traced, root, fused)
    rows += [
        Fused(OPERATIONS[node.target], (match.convolution.module,), match.text, 1) for node, match in fused.items()
    ]
    for node in graph.find_nodes(op="get_attr"):
        if not node.users:
            graph.erase_node(node)
    if rows:
        layout.keep(graph, root)
    return rows, left


def _find(graph: fx.Graph, root: nn.Module) -> tuple[list[Match], list[Skipped]]:
    """What can be fused in a graph, and the convolutions that can't be."""
    matches: list[Match] = []
    left: list[Skipped] = []
    changed = changed_parameters(graph, root)
    taken: set[fx.Node] = set()
    for node in graph.nodes:
        found = convolution(node, root)
        if found is None:
            continue
        match = None if found.objection else _match(found, taken, root)
        reason = found.objection or _changed_kernel(found, changed, root) or _hazard(match, root)
        if reason is None:
            matches.append(match)
            taken.update(match.nodes)
        else:
            left.append(Skipped(found.module, f"conv {found.kernel}", reason))
    return matches, left


def _match(found: Convolution, taken: set[fx.Node], root: nn.Module) -> Match:
    """The convolution with as much of its epilogue as there is and no other match has."""
    user = _only_user(found.node)
    if found.transposed:
        return Match(found, crop=user if user is not None and crop(user) else None)
    added = None if user is None or user in taken else _skip(user, found.node, root)
    sum_node = user if added else None
    if added:
        user = _only_user(user)
    activated = None if user is None or user in taken else activation(user, root)
    if activated is not None and not _keeps_result(activated) and leaves(user, root):
        activated = None
    return Match(found, sum_node, user if activated else None, added, activated)


def _keeps_result(activated: Activation) -> bool:
    """Whether PyTorch's own backward reads the result too, as an operation's does, so that nobody may change it."""
    return activated.in_place or activated.negative_slope == 0.0


def _only_user(node: fx.Node) -> fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def _skip(user: fx.Node, conv: fx.Node, root: nn.Module) -> Addition | None:
    """The sum of a convolution and something else, if ``user`` is one; in place only into the convolution's result."""
    found = addition(user)
    if found is None or found.operands[0] is found.operands[1] or (found.in_place and found.operands[0] is not conv):
        return None
    skip = found.operands[1] if found.operands[0] is conv else found.operands[0]
    # Backward of the operation reads the skip, that of a sum does not.
    return None if changed_between(user, None, [skip], {user}, root) else found


def _changed_kernel(found: Convolution, changed: set[int], root: nn.Module) -> str | None:
    paths = [found.weight] if found.bias is None else [found.weight, found.bias]
    parameters = [attribute(root, path) for path in paths]
    if any(parameter is not None and storage(parameter) in changed for parameter in parameters):
        return "its parameters are changed in forward()"
    return None


def _hazard(match: Match, root: nn.Module) -> str | None:
    """Why running the nodes of a match as one, where its last stands, would not be the same."""
    if match.convolution.transposed and match.crop is None:
        return "its result is not cropped at the end to twice the size"
    nodes, last = match.nodes, match.nodes[-1]
    if changed_between(nodes[0], last, [match.convolution.input], nodes, root):
        return "its input is changed in place before its activation"
    if match.skip is not None and changed_between(match.addition, last, [match.skip], nodes, root):
        return "its skip is changed in place before its activation"
    if match.activated is not None and _keeps_result(match.activated) and _only_user(last) is not None:
        return None
    # Backward reads the result, and where several nodes do, some may see a copy of it in another layout.
    while changes := changed_later(last, root):
        change = changes[0]
        if _only_user(last) is not change or change.args[0] is not last or out_of_place(change) is None:
            return "its result may be changed in place later"
        change.target = out_of_place(change)
    return None


def _rewrite(graph: fx.Graph, match: Match) -> fx.Node:
    """Replace the nodes of a match by a call."""
    found, last = match.convolution, match.nodes[-1]
    with graph.inserting_before(last):
        weight = graph.get_attr(found.weight)
        bias = None if found.bias is None else graph.get_attr(found.bias)
        kernel = (found.input, weight, bias)
        if match.crop is not None:
            call = graph.call_function(calls.conv_transpose2d, (*kernel, *crop(match.crop)))
        else:
            slope = match.activated.negative_slope if match.activated else 1.0
            in_place = (bool(match.added and match.added.in_place), bool(match.activated and match.activated.in_place))
            call = graph.call_function(calls.conv2d_lrelu, (*kernel, match.skip, slope, *in_place))
    last.replace_all_uses_with(call)
    for node in reversed(match.nodes):
        graph.erase_node(node)
    return call


def _fuse_recursions(traced: Trace, root: nn.Module, fused: dict[fx.Node, Match]) -> list[Fused]:
    """Rewrite recursive blocks of calls in ``fused``, which leave it."""
    blocks = recursion.Blocks(traced.graph, root)
    rows = []
    for found in list(recursion.find(traced.graph, root)):
        _assume(traced, found.start, root)
        call, replaced = blocks.rewrite(found)
        modules = dict.fromkeys(fused.pop(node).convolution.module for node in replaced)
        text = f"{found.recursions} recursions of {found.depth} convolutions, source skip"
        rows.append(Fused(OPERATIONS[call.target], tuple(modules), text, 1))
    return rows


def _assume(traced: Trace, node: fx.Node, root: nn.Module) -> None:
    """A replaced node's module must stay as it is."""
    module = module_of(node, root)
    if module is not None:
        traced.guards.replaces(module)
