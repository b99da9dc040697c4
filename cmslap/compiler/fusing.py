"""Fuses convolutions of a functional ATen graph with what follows them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from torch import fx

from cmslap.compiler import heuristics, layout, recursion
from cmslap.compiler.patterns import (
    CONVOLUTIONS,
    Convolution,
    arguments,
    asymmetric_pair,
    aten,
    convolution,
    crop,
    negative_slope,
    only_user,
    shares_memory,
    skip,
    value,
)
from cmslap.compiler.report import Fused, Skipped
from cmslap.compiler.rewriting import Match, Rewriting
from cmslap.compiler.slopes import prelu


def fuse(graph: fx.Graph, needs_grad: bool, names: Mapping[str, str]) -> tuple[list[Fused], list[Skipped]]:
    """Rewrite a graph as far as it goes; what was fused, and the convolutions that are left as they were."""
    layout.pin(graph)
    work = Rewriting(graph, needs_grad, names)
    _compose_pairs(work)
    _fold_factors(work)
    matches, left = _find(work)
    recursions = list(recursion.find(work, matches))
    blocks = recursion.Blocks(work)
    rows = [blocks.fuse(found) for found in recursions]
    done = {id(match) for found in recursions for match in found.matches}
    rows += [_fuse(work, match) for match in matches if id(match) not in done]
    if rows:
        _reuse_memory(work)
        for node in graph.find_nodes(op="call_function", target=aten.prelu.default):
            node.target = prelu if value(node).device.type == "cpu" else node.target
        layout.spread(graph)
    graph.eliminate_dead_code()
    return rows, left


def _find(work: Rewriting) -> tuple[list[Match], list[Skipped]]:
    """What can be fused in a graph, and the convolutions that can't be."""
    matches: list[Match] = []
    left: list[Skipped] = []
    taken: set[fx.Node] = set()
    for node in work.graph.nodes:
        found = convolution(node, work.needs_grad)
        if found is not None and found.objection is not None:
            left.append(Skipped(work.path(node), f"conv {found.kernel}", found.objection))
        elif found is not None:
            matches.append(_match(work, found, taken))
            taken.update(matches[-1].nodes)
    return matches, left


def _match(work: Rewriting, found: Convolution, taken: set[fx.Node]) -> Match:
    """The convolution with as much of its epilogue as there is and no other match has."""
    if found.transposed:
        return Match(found, [found.node, *crop(found.node)])

    def follows(user: fx.Node | None) -> bool:
        return user is not None and user not in taken and work.same_mode(found.node, user)

    match, user = Match(found, [found.node]), only_user(found.node)
    if follows(user) and skip(user, found.node) is not None:
        match, user = replace(match, nodes=[found.node, user], total=user), only_user(user)
    slope = negative_slope(user) if follows(user) else None
    if slope and work.needs_grad and _leaves(user):
        return match  # backward would read the result, which the caller may change: PyTorch's own reads the input
    return match if slope is None else replace(match, nodes=[*match.nodes, user], negative_slope=slope)


def _leaves(node: fx.Node) -> bool:
    """Whether the caller gets the value of a node, or a view of it."""
    return any(shares_memory(result, node) for result in node.graph.output_node().all_input_nodes)


def _fuse(work: Rewriting, match: Match) -> Fused:
    """Replace one match by one operator."""
    found, row = match.convolution, Fused("conv2d_lrelu", (work.path(match.nodes[0]),), match.text)
    kernel = {"weight": found.weight, "bias": found.bias}
    if found.transposed:
        work.replace(match.nodes, "tied_conv_transpose2d", {"a": found.image, **kernel})
        return replace(row, operation="tied_conv_transpose2d")
    given = {"x": found.image, **kernel, "skip": match.skip, "negative_slope": match.negative_slope}
    work.replace(match.nodes, "conv2d_lrelu", given)
    return row


def _compose_pairs(work: Rewriting) -> None:
    """Make one 3×3 convolution of a 3×1 and a 1×3 one where that pays."""
    for node in list(work.graph.nodes):
        pair = asymmetric_pair(node)
        if pair is None or not work.same_mode(*pair):
            continue
        first, second = (arguments(each) for each in pair)
        image, kernels = first["input"], [value(given["weight"]) for given in (first, second)]
        composed = kernels[0].new_empty(kernels[1].shape[0], kernels[0].shape[1], 3, 3)
        # What lies between: the pair multiplies less.
        narrow = kernels[0].shape[0] < max(heuristics.MIN_CHANNELS, min(composed.shape[:2]))
        if narrow or heuristics.objection(value(image), composed, work.needs_grad) is not None:
            continue
        with work.graph.inserting_before(pair[1]):
            # W[o, i, k, l] = Σₘ B[o, m, k, l] A[m, i, k, l], where A or B has but one k, and the other but one l
            factors = [second["weight"], first["weight"]]
            weight = work.graph.call_function(aten.einsum.default, ("omkl,mikl->oikl", factors))
            weight.meta["val"] = composed
            call = work.graph.call_function(aten.conv2d.default, (image, weight, second["bias"], 1, 1))
        work.put(call, list(pair))


def _fold_factors(work: Rewriting) -> None:
    """Multiply kernel and bias, in place of the image, where a convolution's result is multiplied by a number."""
    for node in list(work.graph.nodes):
        found, product = convolution(node, work.needs_grad), only_user(node)
        if found is None or found.objection is not None or product is None or product.target is not aten.mul.Tensor:
            continue
        number = arguments(product)["other"]
        if not isinstance(number, int | float) or not work.same_mode(node, product):
            continue
        with work.graph.inserting_before(node):
            for name, parameter in (("weight", found.weight), ("bias", found.bias)):
                if parameter is not None:
                    scaled = work.graph.call_function(aten.mul.Tensor, (parameter, number))
                    scaled.meta["val"] = value(parameter)
                    node.update_arg(list(arguments(node)).index(name), scaled)
        product.replace_all_uses_with(node)
        work.graph.erase_node(product)


def _reuse_memory(work: Rewriting) -> None:
    """Let activations and sums overwrite the results of convolutions left to PyTorch, which nobody else reads."""
    in_place = {aten.relu.default: aten.relu_.default, aten.leaky_relu.default: aten.leaky_relu_.default}
    for node in work.graph.nodes:
        user = only_user(node) if node.target in CONVOLUTIONS else None
        if negative_slope(user) is not None and work.same_mode(node, user):
            user.target = in_place[user.target]
        elif skip(user, node) is not None and user.args[0] is node and work.same_mode(node, user):
            user.target = aten.add_.Tensor
