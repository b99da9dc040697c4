"""Reads graph nodes: which are convolutions, activations, additions and crops, however the user wrote them."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.parameter import is_lazy

from cmslap.compiler.heuristics import MIN_CHANNELS, few_channels
from cmslap.compiler.tracing import has_hooks, is_pytorchs

CONVOLUTIONS = (torch.conv2d, torch.conv_transpose2d)
RELUS = (F.relu, F.relu_, torch.relu, torch.relu_, "relu", "relu_")
LEAKY_RELUS = (F.leaky_relu, F.leaky_relu_)
ADDITIONS = (operator.add, operator.iadd, torch.add, "add", "add_")
IN_PLACE_OPERATORS = {
    operator.iadd: operator.add,
    operator.isub: operator.sub,
    operator.imul: operator.mul,
    operator.itruediv: operator.truediv,
}
IN_PLACE = {
    *IN_PLACE_OPERATORS,
    *(operator.ifloordiv, operator.imod, operator.ipow, operator.iand, operator.ior, operator.ixor, operator.imatmul),
}


@dataclass(frozen=True)
class Convolution:
    """A convolution, transposed or not, in a graph."""

    node: fx.Node
    module: str  # the path of the module it is, or whose kernel it reads
    weight: str  # the path of its kernel
    bias: str | None
    transposed: bool
    kernel: str  # "3×3 64→64"
    objection: str | None  # why no operation does what it does

    @property
    def input(self) -> fx.Node:
        return self.node.args[0] if self.node.args else self.node.kwargs["input"]


@dataclass(frozen=True)
class Activation:
    input: fx.Node
    negative_slope: float
    in_place: bool


@dataclass(frozen=True)
class Addition:
    operands: tuple[fx.Node, fx.Node]
    in_place: bool  # changes the first operand


def module_of(node: fx.Node, root: nn.Module) -> nn.Module | None:
    return root.get_submodule(node.target) if node.op == "call_module" else None


def convolution(node: fx.Node, root: nn.Module) -> Convolution | None:
    """The convolution that ``node`` is, with or without an objection to fusing it; None for anything else."""
    module = module_of(node, root)
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
        return _module_convolution(node, module)
    if node.op == "call_function" and node.target in CONVOLUTIONS:
        return _function_convolution(node, root)
    return None


def _module_convolution(node: fx.Node, module: nn.Conv2d | nn.ConvTranspose2d) -> Convolution:
    transposed = isinstance(module, nn.ConvTranspose2d)
    bias = f"{node.target}.bias"
    geometry = {name: getattr(module, name) for name in ("stride", "padding", "dilation", "groups")}
    if transposed:
        geometry["output_padding"] = module.output_padding
    objection = _special(module, node) or _objection(module.weight, transposed, **geometry)
    path = f"{node.target}.weight"
    return Convolution(node, node.target, path, bias, transposed, _kernel(module.weight, transposed), objection)


def _special(module: nn.Module, node: fx.Node) -> str | None:
    """Why a module is not what its class says."""
    if has_hooks(module):
        return "it has hooks"
    if type(module) not in (nn.Conv2d, nn.ConvTranspose2d):
        return f"it is a {type(module).__name__}"
    if module.padding_mode != "zeros":
        return f"padding mode {module.padding_mode}"
    if len(node.args) != 1 or node.kwargs:
        return "it is called with more than the image"
    return None


def _function_convolution(node: fx.Node, root: nn.Module) -> Convolution | None:
    transposed = node.target is torch.conv_transpose2d
    arguments = _bind(node, _TRANSPOSED_ARGUMENTS if transposed else _ARGUMENTS)
    weight, bias = arguments.pop("weight"), arguments.pop("bias")
    if not isinstance(weight, fx.Node) or weight.op != "get_attr" or getattr(bias, "op", "get_attr") != "get_attr":
        return Convolution(node, node.name, "", None, transposed, "", "its kernel is computed in forward()")
    kernel = attribute(root, weight.target)
    module = weight.target.removesuffix("weight").removesuffix(".")
    objection = _objection(kernel, transposed, **arguments)
    bias = None if bias is None else bias.target
    return Convolution(node, module, weight.target, bias, transposed, _kernel(kernel, transposed), objection)


_ARGUMENTS = {"weight": None, "bias": None, "stride": 1, "padding": 0, "dilation": 1, "groups": 1}
_TRANSPOSED_ARGUMENTS = {
    "weight": None,
    "bias": None,
    "stride": 1,
    "padding": 0,
    "output_padding": 0,
    "groups": 1,
    "dilation": 1,
}


def _bind(node: fx.Node, parameters: dict[str, object]) -> dict[str, Any]:
    """The arguments after the image, by name."""
    given = dict(zip(("input", *parameters), node.args, strict=False)) | node.kwargs
    return {name: given.get(name, default) for name, default in parameters.items()}


def _objection(
    weight: Tensor,
    transposed: bool,
    *,
    stride: object,
    padding: object,
    dilation: object,
    groups: object,
    output_padding: object = 0,
) -> str | None:
    """Why a convolution of this geometry is left to PyTorch."""
    if is_lazy(weight):
        return "its shape is not known yet"
    expected = {"stride": 2 if transposed else 1, "padding": 0 if transposed else 1, "dilation": 1, "groups": 1}
    given = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    if weight.dim() != 4 or tuple(weight.shape[2:]) != (3, 3):
        return "only 3×3 kernels are"
    for name, value in given.items():
        if not _is(value, expected[name]) and not (name == "padding" and value == "same" and not transposed):
            return f"{name} {_text(value)}; only {expected[name]} is"
    if not _is(output_padding, 0):
        return f"output_padding {_text(output_padding)}; only 0, cropped at the end, is"
    if not weight.is_floating_point():
        return f"{weight.dtype}"
    if few_channels(weight):
        return f"fewer than {MIN_CHANNELS} channels: PyTorch is as fast"
    return None


def _is(value: object, number: int) -> bool:
    return value in (number, (number,), (number, number), [number, number]) and not isinstance(value, bool)


def _text(value: object) -> str:
    return "×".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _kernel(weight: Tensor, transposed: bool) -> str:
    if is_lazy(weight):
        return ""
    out, into, *taps = weight.shape
    return f"{_text(taps)} {f'{out}→{into}' if transposed else f'{into}→{out}'}"


def activation(node: fx.Node, root: nn.Module) -> Activation | None:
    """ReLU or LeakyReLU as a module, function or method."""
    module = module_of(node, root)
    if module is not None:
        if type(module) not in (nn.ReLU, nn.LeakyReLU) or has_hooks(module):
            return None
        slope, in_place = getattr(module, "negative_slope", 0.0), module.inplace
    elif node.op not in ("call_function", "call_method"):
        return None
    elif node.target in RELUS:
        slope, in_place = 0.0, _is_in_place(node)
    elif node.target in LEAKY_RELUS:
        slope, in_place = _bind(node, {"negative_slope": 0.01})["negative_slope"], _is_in_place(node)
    else:
        return None
    if not isinstance(slope, int | float) or slope < 0 or not node.args or not isinstance(node.args[0], fx.Node):
        return None
    return Activation(node.args[0], float(slope), in_place)


def addition(node: fx.Node) -> Addition | None:
    """The sum of two values of the graph."""
    if node.op not in ("call_function", "call_method") or node.target not in ADDITIONS:
        return None
    if len(node.args) != 2 or node.kwargs or not all(isinstance(operand, fx.Node) for operand in node.args):
        return None
    return Addition(node.args, node.target in (operator.iadd, "add_"))


def crop(node: fx.Node) -> tuple[object, object] | None:
    """Rows and columns that ``x[..., :rows, :columns]`` keeps, as a slice or a negative padding."""
    if node.target is F.pad:
        padding = node.args[1] if len(node.args) > 1 else node.kwargs.get("pad")
        return (-1, -1) if tuple(padding) == (0, -1, 0, -1) else None
    if node.target is not operator.getitem or not isinstance(node.args[1], tuple):
        return None
    *before, rows, columns = node.args[1]
    whole = all(index is Ellipsis or index == slice(None) for index in before)
    if not whole or not (before == [Ellipsis] or len(before) == 2):
        return None
    if not all(isinstance(s, slice) and s.start in (None, 0) and s.step in (None, 1) for s in (rows, columns)):
        return None
    return None if rows.stop is None or columns.stop is None else (rows.stop, columns.stop)


def changed_in_place(node: fx.Node, root: nn.Module) -> list[fx.Node]:
    """The values that running ``node`` may change."""
    if node.op == "call_module":
        return _changed_by_module(node, root)
    if node.op not in ("call_function", "call_method"):
        return []
    changed: list[fx.Node] = []
    fx.map_arg(node.kwargs.get("out"), changed.append)
    if _is_in_place(node) or node.target is operator.setitem:
        fx.map_arg(node.args[:1] or node.all_input_nodes, changed.append)
    return changed


def _changed_by_module(node: fx.Node, root: nn.Module) -> list[fx.Node]:
    module = module_of(node, root)
    unknown = not is_pytorchs(module) or has_hooks(module)
    return node.all_input_nodes if unknown or getattr(module, "inplace", False) else []


def _is_in_place(node: fx.Node) -> bool:
    """Whether a function or method changes its first argument."""
    if isinstance(node.target, str):
        name = node.target
    else:
        name = getattr(node.target, "__name__", "")
    trailing = name.endswith("_") and not name.endswith("__")
    return trailing or node.target in IN_PLACE or node.kwargs.get("inplace", False) is not False


def asks_size(node: fx.Node) -> bool:
    """Whether a node reads what a tensor is like, not what is in it."""
    if node.op == "call_method":
        return node.target in ("size", "dim")
    return node.target is getattr and node.args[1] in ("shape", "ndim", "dtype", "device")


def out_of_place(node: fx.Node) -> Callable[..., object] | str | None:
    """What computes the same into new memory."""
    if node.op == "call_method" and node.target.endswith("_") and hasattr(Tensor, node.target[:-1]):
        return node.target[:-1]
    return IN_PLACE_OPERATORS.get(node.target) if node.op == "call_function" else None


def attribute(root: nn.Module, path: str) -> Tensor:
    value: Any = root
    for name in path.split("."):
        value = getattr(value, name)
    return value
