"""Reads nodes of a functional ATen graph: which are convolutions, activations, sums and crops."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.experimental.symbolic_shapes import statically_known_true

from cmslap.compiler import heuristics

aten = torch.ops.aten
CONVOLUTIONS = (aten.conv2d.default, aten.conv2d.padding)
TRANSPOSED = aten.conv_transpose2d.input
ACTIVATIONS = (aten.relu.default, aten.leaky_relu.default)


@dataclass(frozen=True)
class Convolution:
    """A convolution, transposed or not."""

    node: fx.Node
    objection: str | None  # why no operation does what it does, or should

    @property
    def image(self) -> fx.Node:
        return arguments(self.node)["input"]

    @property
    def weight(self) -> fx.Node:
        return arguments(self.node)["weight"]

    @property
    def bias(self) -> fx.Node | None:
        return arguments(self.node)["bias"]

    @property
    def transposed(self) -> bool:
        return self.node.target is TRANSPOSED

    @property
    def kernel(self) -> str:
        """Such as "3×3 64→64"."""
        out, into, *taps = value(self.weight).shape
        return f"{_text(taps)} {f'{out}→{into}' if self.transposed else f'{into}→{out}'}"


def value(node: fx.Node) -> Any:  # noqa: ANN401 (a fake tensor, mostly)
    return node.meta["val"]


def arguments(node: fx.Node) -> dict[str, Any]:
    """All of an operator's arguments by name, defaults included."""
    schema = node.target._schema.arguments
    given = dict(zip((argument.name for argument in schema), node.args, strict=False)) | node.kwargs
    return {argument.name: given.get(argument.name, argument.default_value) for argument in schema}


def shares_memory(result: object, node: fx.Node) -> bool:
    """Whether ``result`` is a node whose value is, or views, that of ``node``."""
    values = [each.meta.get("val") if isinstance(each, fx.Node) else None for each in (result, node)]
    if not all(isinstance(each, Tensor) for each in values):
        return False
    first, second = (each.untyped_storage()._cdata for each in values)
    return first == second


def only_user(node: fx.Node) -> fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def convolution(node: fx.Node, needs_grad: bool) -> Convolution | None:
    """The convolution that ``node`` is, with or without an objection to fusing it; None for anything else."""
    if node.op != "call_function" or node.target not in (*CONVOLUTIONS, TRANSPOSED):
        return None
    given = arguments(node)
    image, weight = value(given["input"]), value(given["weight"])
    return Convolution(node, _objection(node, given) or heuristics.objection(image, weight, needs_grad))


def _objection(node: fx.Node, given: dict[str, Any]) -> str | None:
    """Why a convolution of this geometry is left to PyTorch."""
    transposed = node.target is TRANSPOSED
    image, weight = value(given["input"]), value(given["weight"])
    if tuple(weight.shape[2:]) != (3, 3):
        return "only 3×3 kernels are"
    expected = {"stride": 2 if transposed else 1, "padding": 0 if transposed else 1, "dilation": 1, "groups": 1}
    for name, number in expected.items():
        if not _is(given[name], number) and not (given[name] == "same" and not transposed):
            return f"{name} {_text(given[name])}; only {number} is"
    if transposed and crop(node) is None:
        return "its result is not cropped at the end to twice the size"
    if image.dim() != 4:
        return "it takes images without a batch dimension"
    if weight.dtype != image.dtype:
        return f"a {image.dtype} image and a {weight.dtype} kernel"
    return None


def _is(given: object, number: int) -> bool:
    numbers = given if isinstance(given, list | tuple) else [given]
    return all(each == number for each in numbers)


def _text(given: object) -> str:
    return "×".join(map(str, given)) if isinstance(given, list | tuple) else str(given)


def asymmetric_pair(node: fx.Node) -> tuple[fx.Node, fx.Node] | None:
    """A 3×1 convolution without bias and the 1×3 one after it, or the other way round: a 3×3 convolution in two."""
    second = only_user(node)
    if second is None or node.target not in CONVOLUTIONS or second.target not in CONVOLUTIONS:
        return None
    first, then = arguments(node), arguments(second)
    shapes = [tuple(value(given["weight"]).shape[2:]) for given in (first, then)]
    # A bias between them would stop at the border of the image, where the second pads with zeros.
    if first["bias"] is not None or then["input"] is not node or sorted(shapes) != [(1, 3), (3, 1)]:
        return None
    plain = all(_is(given[name], 1) for given in (first, then) for name in ("stride", "dilation", "groups"))
    same = (value(given["input"]).shape[2:] == value(n).shape[2:] for given, n in ((first, node), (then, second)))
    return (node, second) if plain and all(same) else None


def negative_slope(node: fx.Node | None) -> float | None:
    """The slope of a ReLU or LeakyReLU; None for anything else."""
    if node is None or node.target not in ACTIVATIONS:
        return None
    slope = arguments(node).get("negative_slope", 0.0)
    slope = float(value(slope) if isinstance(slope, fx.Node) else slope)  # a symbolic one is fixed, with a guard
    return slope if slope >= 0 else None


def skip(total: fx.Node | None, term: fx.Node) -> fx.Node | None:
    """What ``total`` adds to ``term``, if it is the sum of two images of one shape and dtype."""
    if total is None or total.target is not aten.add.Tensor:
        return None
    first, second, alpha = arguments(total).values()
    other = second if first is term else first
    if alpha != 1 or first is second or not isinstance(other, fx.Node) or not isinstance(value(other), Tensor):
        return None
    a, b = value(term), value(other)
    return other if a.dtype == b.dtype and a.device == b.device and _same_shape(a.shape, b.shape) else None


def crop(node: fx.Node) -> list[fx.Node] | None:
    """The slices, or negative padding, that leave 2H×2W of a transposed convolution's (2H+1)×(2W+1)."""
    n, _, height, width = value(arguments(node)["input"]).shape
    wanted = (n, value(node).shape[1], 2 * height, 2 * width)
    nodes = []
    while (user := only_user(node)) is not None and _cuts_the_end(user):
        nodes.append(user)
        if _same_shape(value(user).shape, wanted):
            return nodes
        node = user
    return None


def _cuts_the_end(node: fx.Node) -> bool:
    if node.target is aten.pad.default:
        return all(number == 0 for number in arguments(node)["pad"][::2])
    return node.target is aten.slice.Tensor and arguments(node)["start"] in (None, 0) and arguments(node)["step"] == 1


def _same_shape(a: tuple[Any, ...], b: tuple[Any, ...]) -> bool:
    return len(a) == len(b) and all(statically_known_true(x == y) for x, y in zip(a, b, strict=True))
