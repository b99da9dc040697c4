"""Finds recursive blocks: D convolutions run R times, each time with the skip from their source.

Their kernels are stacked once a forward pass, so that all gradients of the block meet in one buffer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

from torch import fx

from cmslap.compiler.patterns import aten, negative_slope, only_user, value
from cmslap.compiler.report import Fused
from cmslap.compiler.rewriting import Match, Rewriting


@dataclass(frozen=True)
class Recursion:
    """φ(u), the R·D convolutions after it, and the upsampling that alone reads their result."""

    start: fx.Node
    convolutions: list[Match]
    depth: int
    upsampling: Match | None

    @property
    def source(self) -> fx.Node:
        return self.start.args[0]

    @property
    def recursions(self) -> int:
        return len(self.convolutions) // self.depth

    @property
    def block(self) -> list[tuple[fx.Node, fx.Node | None]]:
        """The D kernels and biases."""
        return [_parameters(match) for match in self.convolutions[: self.depth]]

    @property
    def matches(self) -> list[Match]:
        return [*self.convolutions, *([] if self.upsampling is None else [self.upsampling])]


def find(work: Rewriting, matches: Sequence[Match]) -> Iterator[Recursion]:
    by_first = {match.nodes[0]: match for match in matches}
    for start in list(work.graph.nodes):
        slope = negative_slope(start)
        chain = [] if slope in (None, 1.0) else list(_chain(work, start, slope, by_first))
        depth = next((i for i, match in enumerate(chain, 1) if match.skip is not None), 0)
        count = _repetitions(chain, depth) if depth else 0
        if count > 1 and _square(chain[:depth]):
            convolutions = chain[: count * depth]
            after = by_first.get(only_user(convolutions[-1].nodes[-1]))
            upsamples = after is not None and after.convolution.transposed and work.same_mode(start, after.nodes[0])
            fits = upsamples and value(after.convolution.weight).shape == value(chain[0].convolution.weight).shape
            yield Recursion(start, convolutions, depth, after if fits else None)


def _chain(work: Rewriting, start: fx.Node, slope: float, by_first: dict[fx.Node, Match]) -> Iterator[Match]:
    """The convolutions that follow one another, nobody else reading what lies between."""
    node, source = start, start.args[0]
    while (match := by_first.get(only_user(node))) is not None and not match.convolution.transposed:
        if match.convolution.image is not node or match.negative_slope != slope:
            return
        if match.skip not in (None, source) or not work.same_mode(start, match.nodes[0]):
            return
        yield match
        node = match.nodes[-1]


def _repetitions(chain: list[Match], depth: int) -> int:
    """How often the chain runs through its first ``depth`` convolutions, skips included."""
    keys = [(*_parameters(match), match.skip) for match in chain]
    count = 0
    while keys[count * depth : (count + 1) * depth] == keys[:depth]:
        count += 1
    return count


def _parameters(match: Match) -> tuple[fx.Node, fx.Node | None]:
    return match.convolution.weight, match.convolution.bias


def _square(block: list[Match]) -> bool:
    """Whether all kernels are [C, C, 3, 3]."""
    shapes = {tuple(value(match.convolution.weight).shape) for match in block}
    return len(shapes) == 1 and all(shape[0] == shape[1] for shape in shapes)


class Blocks:
    """The blocks of one graph: recursions over the same kernels share their stack."""

    def __init__(self, work: Rewriting) -> None:
        self.work = work
        self._order = {node: index for index, node in enumerate(work.graph.nodes)}
        self._stacks: dict[tuple[tuple[fx.Node, fx.Node | None], ...], tuple[fx.Node, fx.Node]] = {}

    def fuse(self, found: Recursion) -> Fused:
        """Replace a recursion by one operator."""
        weights, biases = self._stack(found.block)
        given = {"u": found.source, "weights": weights, "biases": biases, "recompute": False}
        given |= {"recursions": found.recursions, "negative_slope": found.convolutions[0].negative_slope}
        name = "recursive_embedding" if found.upsampling is None else "lapsrn_level"
        if found.upsampling is not None:
            given |= self._upsampling(found)
        modules = dict.fromkeys(self.work.path(match.nodes[0]) for match in found.matches)
        self.work.replace([found.start, *(node for match in found.matches for node in match.nodes)], name, given)
        text = f"{found.recursions} recursions of {found.depth} convolutions, source skip"
        return Fused(name, tuple(modules), text)

    def _stack(self, block: list[tuple[fx.Node, fx.Node | None]]) -> tuple[fx.Node, fx.Node]:
        """[D, C, C, 3, 3] and [D, C], made as soon as all they consist of is there."""
        if tuple(block) not in self._stacks:
            weights, biases = zip(*block, strict=True)
            parts = [node for node in (*weights, *biases) if node is not None]
            with self._after(parts):
                biases = [self._or_zeros(bias, weight) for weight, bias in block]
                self._stacks[tuple(block)] = self._stacked(weights), self._stacked(biases)
        return self._stacks[tuple(block)]

    def _after(self, nodes: list[fx.Node]) -> AbstractContextManager[None]:
        place = max(nodes, key=self._order.__getitem__).next
        while place.op == "placeholder":
            place = place.next
        return self.work.graph.inserting_before(place)

    def _or_zeros(self, bias: fx.Node | None, weight: fx.Node) -> fx.Node:
        if bias is not None:
            return bias
        zeros = self.work.graph.call_function(aten.new_zeros.default, (weight, [value(weight).shape[1]]))
        zeros.meta["val"] = value(weight).new_zeros(value(weight).shape[1])
        return zeros

    def _stacked(self, nodes: Sequence[fx.Node]) -> fx.Node:
        stack = self.work.graph.call_function(aten.stack.default, (list(nodes),))
        stack.meta["val"] = value(nodes[0]).new_empty((len(nodes), *value(nodes[0]).shape))
        return stack

    def _upsampling(self, found: Recursion) -> dict[str, object]:
        """A level's arguments besides those of its recursion."""
        convolution, kernels = found.upsampling.convolution, [weight for weight, _ in found.block]
        with self._after([convolution.weight, *([] if convolution.bias is None else [convolution.bias])]):
            bias = self._or_zeros(convolution.bias, convolution.weight)
        if convolution.weight in kernels:
            return {
                "shared_conv": kernels.index(convolution.weight) + 1,
                "upsample_bias": bias,
                "upsample_weight": None,
            }
        return {"shared_conv": None, "upsample_bias": bias, "upsample_weight": convolution.weight}
