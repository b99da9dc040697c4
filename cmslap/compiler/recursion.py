"""Recursive blocks: D convolutions run R times, each time with the skip from their source.

Their kernels are stacked once a forward pass, so that all gradients of the block meet in one buffer.
"""

from collections.abc import Iterator, Sequence

from torch import fx

from cmslap.compiler.nodes import aten, become, insert, negative_slope, only_user, value
from cmslap.ops import reference

Parameters = tuple[fx.Node, fx.Node | None]  # a kernel and its bias


def fuse(graph: fx.Graph) -> None:
    """Make one node of each recursion, together with the upsampling that alone reads its result."""
    stacks: dict[tuple[Parameters, ...], tuple[fx.Node, fx.Node]] = {}  # which levels with the same kernels share
    for start in list(graph.nodes):
        slope = negative_slope(start)
        chain = [] if slope in (None, 1.0) else list(_chain(start, slope))
        depth = next((i for i, node in enumerate(chain, 1) if node.kwargs["skip"] is not None), 0)
        block = tuple((node.kwargs["weight"], node.kwargs["bias"]) for node in chain[:depth])
        recursions = _repetitions(chain, depth) if depth else 0
        if recursions > 1 and len({size for weight, _ in block for size in value(weight).shape[:2]}) == 1:
            if block not in stacks:
                stacks[block] = _stack(block)
            weights, biases = stacks[block]
            given = {"u": start.args[0], "weights": weights, "biases": biases, "recursions": recursions}
            given |= {"negative_slope": slope, "recompute": False}
            _replace([start, *chain[: recursions * depth]], [weight for weight, _ in block], given)


def _chain(start: fx.Node, slope: float) -> Iterator[fx.Node]:
    """The convolutions that follow one another, nobody else reading what lies between."""
    source, node = start.args[0], start
    while (user := only_user(node)) is not None and user.target is reference.conv2d_lrelu:
        given = user.kwargs
        if given["x"] is not node or given["negative_slope"] != slope or given["skip"] not in (None, source):
            return
        yield (node := user)


def _repetitions(chain: list[fx.Node], depth: int) -> int:
    """How often the chain runs through its first ``depth`` convolutions, skips included."""
    keys = [[node.kwargs[name] for name in ("weight", "bias", "skip")] for node in chain]
    count = 0
    while keys[count * depth : (count + 1) * depth] == keys[:depth]:
        count += 1
    return count


def _stack(block: Sequence[Parameters]) -> tuple[fx.Node, fx.Node]:
    """[D, C, C, 3, 3] and [D, C], made as soon as all they consist of is there."""
    place = max(node for parameters in block for node in parameters if node is not None).next
    while place.op == "placeholder":
        place = place.next
    stacks = [weight for weight, _ in block], [_or_zeros(place, *parameters) for parameters in block]
    weights, biases = (insert(place, aten.stack.default, stack) for stack in stacks)
    return weights, biases


def _or_zeros(place: fx.Node, weight: fx.Node, bias: fx.Node | None) -> fx.Node:
    return bias or insert(place, aten.new_zeros.default, weight, [value(weight).shape[1]])


def _replace(nodes: list[fx.Node], kernels: list[fx.Node], given: dict[str, object]) -> None:
    *before, last = nodes
    after = only_user(last)
    upsamples = after is not None and after.target is reference.tied_conv_transpose2d and after.kwargs["a"] is last
    if not upsamples or value(after.kwargs["weight"]).shape != value(kernels[0]).shape:
        become(last, reference.recursive_embedding, before, **given)
        return
    weight, bias = after.kwargs["weight"], after.kwargs["bias"]
    given["upsample_bias"] = _or_zeros(after, weight, bias)
    given["shared_conv"] = kernels.index(weight) + 1 if weight in kernels else None
    given["upsample_weight"] = None if weight in kernels else weight
    become(after, reference.lapsrn_level, nodes, **given)
