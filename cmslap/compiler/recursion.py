"""Finds recursive blocks in a rewritten graph: D convolutions run R times, each time with the skip from their source.

Their kernels are stacked once a forward pass, so that all gradients of the block meet in one buffer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from torch import Tensor, fx, nn

from cmslap.compiler import calls
from cmslap.compiler.aliasing import changed_between
from cmslap.compiler.patterns import activation, asks_size, attribute


@dataclass(frozen=True)
class Recursion:
    """φ(u), and the R·D convolutions of calls.conv2d_lrelu after it."""

    start: fx.Node
    convolutions: list[fx.Node]
    depth: int

    @property
    def recursions(self) -> int:
        return len(self.convolutions) // self.depth

    @property
    def weights(self) -> list[str]:
        """Paths of the block's D kernels."""
        return [node.args[1].target for node in self.convolutions[: self.depth]]


def find(graph: fx.Graph, root: nn.Module) -> Iterator[Recursion]:
    for node in graph.nodes:
        activated = activation(node, root)
        if activated is not None and not activated.in_place and activated.negative_slope != 1.0:
            chain = list(_chain(node, activated.input, activated.negative_slope))
            depth = next((i for i, conv in enumerate(chain, 1) if conv.args[3] is activated.input), 0)
            repeated = _repetitions(chain, depth, root) if depth else 0
            if repeated > 1 and _square(chain[:depth], root):
                recursion = Recursion(node, chain[: repeated * depth], depth)
                if _keeps_source(recursion, root):
                    yield recursion


def _chain(start: fx.Node, source: fx.Node, slope: float) -> Iterator[fx.Node]:
    """The convolutions that follow one another, nobody else reading what lies between."""
    node = start
    while len(node.users) == 1:
        (user,) = node.users
        if user.target is not calls.conv2d_lrelu or user.args[0] is not node or user.args[4] != slope:
            return
        if user.args[3] is not None and user.args[3] is not source:
            return
        yield user
        node = user


def _repetitions(chain: list[fx.Node], depth: int, root: nn.Module) -> int:
    """How often the chain runs through its first ``depth`` convolutions, skips included."""

    def key(conv: fx.Node) -> tuple[object, ...]:
        return *_parameters(conv, root), conv.args[3]

    keys = [key(conv) for conv in chain]
    count = 0
    while keys[count * depth : (count + 1) * depth] == keys[:depth]:
        count += 1
    return count


def _parameters(conv: fx.Node, root: nn.Module) -> tuple[int, int | None]:
    """Which kernel and bias a convolution has."""
    _, weight, bias, *_ = conv.args
    return id(attribute(root, weight.target)), None if bias is None else id(attribute(root, bias.target))


def _keeps_source(recursion: Recursion, root: nn.Module) -> bool:
    """Whether u stays the same: it is read where the recursion ends, and by backward."""
    return not changed_between(recursion.start, None, [recursion.start.args[0]], set(), root)


def _square(block: list[fx.Node], root: nn.Module) -> bool:
    """Whether all kernels are [C, C, 3, 3]."""
    shapes = {tuple(attribute(root, conv.args[1].target).shape) for conv in block}
    return len(shapes) == 1 and all(shape[0] == shape[1] for shape in shapes)


class Blocks:
    """The blocks of one graph: recursions over the same kernels share their stack."""

    def __init__(self, graph: fx.Graph, root: nn.Module) -> None:
        self.graph, self.root = graph, root
        self._blocks: dict[tuple[tuple[int, int | None], ...], fx.Node] = {}

    def rewrite(self, recursion: Recursion) -> tuple[fx.Node, list[fx.Node]]:
        """Replace a recursion, and the upsampling that alone reads it, by one call; the call and what it replaces."""
        block, last = self._block(recursion), recursion.convolutions[-1]
        slope = last.args[4]
        for user in list(last.users):
            if asks_size(user):  # it is that of u, too
                user.replace_input_with(last, recursion.start.args[0])
        upsampling = next(iter(last.users))
        if len(last.users) == 1 and upsampling.target is calls.conv_transpose2d and self._fits(recursion, upsampling):
            _, weight, bias, *size = upsampling.args
            options = (recursion.recursions, slope, self._shared_conv(recursion, weight.target), weight, bias, *size)
            return self._replace(recursion, upsampling, calls.lapsrn_level, (block, *options))
        return self._replace(recursion, last, calls.recursive_embedding, (block, recursion.recursions, slope))

    def _replace(
        self, recursion: Recursion, last: fx.Node, function: Callable[..., Tensor], arguments: tuple[object, ...]
    ) -> tuple[fx.Node, list[fx.Node]]:
        with self.graph.inserting_before(last):
            call = self.graph.call_function(function, (recursion.start.args[0], *arguments))
        last.replace_all_uses_with(call)
        replaced = [*recursion.convolutions, *([] if last is recursion.convolutions[-1] else [last])]
        for node in reversed([recursion.start, *replaced]):
            self.graph.erase_node(node)
        return call, replaced

    def _block(self, recursion: Recursion) -> fx.Node:
        """The node that holds the block's parameters, before anything that reads it."""
        first = recursion.convolutions[: recursion.depth]
        key = tuple(_parameters(conv, self.root) for conv in first)
        if key not in self._blocks:
            with self.graph.inserting_before(recursion.start):
                weights = [self.graph.get_attr(conv.args[1].target) for conv in first]
                biases = [None if conv.args[2] is None else self.graph.get_attr(conv.args[2].target) for conv in first]
                self._blocks[key] = self.graph.call_function(calls.Block, (weights, biases))
        return self._blocks[key]

    def _fits(self, recursion: Recursion, upsampling: fx.Node) -> bool:
        shapes = {self._parameter(path).shape for path in (upsampling.args[1].target, recursion.weights[0])}
        return len(shapes) == 1

    def _shared_conv(self, recursion: Recursion, weight: str) -> int | None:
        kernels = [id(self._parameter(path)) for path in recursion.weights]
        kernel = id(self._parameter(weight))
        return kernels.index(kernel) + 1 if kernel in kernels else None

    def _parameter(self, path: str) -> Tensor:
        return attribute(self.root, path)
