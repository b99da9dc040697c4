"""The operations as data: their arguments, how these are shaped, and what backward needs.

Argument checks, schemas, fake tensors and gradients (interface.py, registration.py) are all read from this table.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cmslap.ops import reference

Arguments = dict[str, Any]  # one call's arguments by name, in the order of the reference's signature


@dataclass
class Operation:
    """One operation.

    A shape is a string of sizes: numbers, named dimensions ("C"), or twice one ("2H") or a sum ("C+2G") of those that
    an argument before has named. ``shapes`` has the tensor arguments; the first of them is the activation whose dtype,
    device and memory format the result takes.

    ``images`` are the arguments that make the image, which the features only correct: they may be float32 where
    the features are shorter, autocast leaves them alone, and the result has their dtype. (A bfloat16 has 8 bits, as
    many as a pixel: rounding the image costs more PSNR than rounding all features.)
    """

    reference: Callable[..., Tensor]  # whose signature is the operation's
    shapes: dict[str, str]
    output: str
    saves: bool = False  # forward also returns the activated maps that backward needs
    keeps_output: bool = False  # backward also reads the output: its signs, as φ keeps them, unless the slope is 1
    images: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        self.name = self.reference.__name__
        self.dimensions = {name: parsed(shape) for name, shape in self.shapes.items()}
        parameters = inspect.signature(self.reference).parameters
        self.arguments = tuple(parameters)
        types = (parameter.annotation.replace(" | None", "?") for parameter in parameters.values())
        self.schema = ", ".join(map(" ".join, zip(types, parameters, strict=True)))  # of the arguments: "Tensor u, ..."
        self.optional = tuple(name for name in self.shapes if parameters[name].default is None)
        self.activation_name = next(iter(self.shapes))
        # The first tensor argument that is no image, whose dtype all others take.
        self.features_name = next(name for name in self.shapes if name not in self.images)

    def of(self, arguments: Arguments) -> Arguments:
        """This operation's among the arguments of a larger one."""
        return {name: arguments[name] for name in self.arguments}

    def activation(self, arguments: Arguments) -> Tensor:
        return arguments[self.activation_name]

    def result_dtype(self, arguments: Arguments) -> torch.dtype:
        return (arguments[self.images[0]] if self.images else self.activation(arguments)).dtype

    def output_shape(self, arguments: Arguments) -> list[int]:
        """The shape of a checked call's result."""
        sizes: dict[str, int] = {}
        for name, dimensions in self.dimensions.items():
            if arguments[name] is not None:
                fits(arguments[name].shape, dimensions, sizes)
        return [extent(dimension, sizes) for dimension in parsed(self.output)]

    def empty_output(self, arguments: Arguments) -> Tensor:
        """Memory for the result of a checked call."""
        activation = self.activation(arguments)
        return torch.empty(
            self.output_shape(arguments),
            dtype=self.result_dtype(arguments),
            device=activation.device,
            memory_format=memory_format(activation),
        )


Dimension = int | str | tuple[tuple[int, str], ...]  # a size, a name, or factors and names, whose products to sum


def parsed(shape: str) -> tuple[Dimension, ...]:
    """Each dimension: "C C+2G 3" is "C", ((1, "C"), (2, "G")) and 3."""

    def one(dimension: str) -> Dimension:
        if dimension.isalpha() or dimension.isdecimal():
            return dimension if dimension.isalpha() else int(dimension)
        return tuple((int(factor or 1), named) for factor, named in re.findall(r"(\d*)([A-Za-z]+)", dimension))

    return tuple(map(one, shape.split()))


def extent(dimension: Dimension, sizes: dict[str, int]) -> int:
    if isinstance(dimension, tuple):
        return sum(factor * sizes[named] for factor, named in dimension)
    return sizes[dimension] if isinstance(dimension, str) else dimension


def fits(shape: Sequence[int], dimensions: tuple[Dimension, ...], sizes: dict[str, int]) -> bool:
    """Whether a shape has these dimensions, given the sizes by their names; learns those of new names."""
    if len(shape) != len(dimensions):
        return False
    for dimension, size in zip(dimensions, shape, strict=True):  # a loop of plain steps, as every call comes here
        if (sizes.setdefault(dimension, size) if isinstance(dimension, str) else extent(dimension, sizes)) != size:
            return False
    return True


def memory_format(tensor: Tensor) -> torch.memory_format:
    """channels_last for a tensor that lies so, else contiguous: what results and gradients follow."""
    if tensor.ndim == 4 and tensor.is_contiguous(memory_format=torch.channels_last):
        return torch.channels_last
    return torch.contiguous_format


_BLOCK = {"u": "N C H W", "weights": "D C C 3 3", "biases": "D C"}
_LEVEL = {**_BLOCK, "upsample_bias": "C", "upsample_weight": "C C 3 3"}
_DENSE_BLOCK = {
    "depthwise1": "C 1 3 3",
    "pointwise1": "G C 1 1",
    "bias1": "G",
    "depthwise2": "C+G 1 3 3",
    "pointwise2": "G C+G 1 1",
    "bias2": "G",
    "pointwise3": "C C+2G 1 1",
    "bias3": "C",
}
_HEAD = {"residual_weight": "1 C 3 3", "residual_bias": "1", "image_weight": "1 1 4 4"}

OPERATIONS = {
    operation.name: operation
    for operation in (
        Operation(
            reference.conv2d_lrelu,
            {"x": "N Cin H W", "weight": "Cout Cin 3 3", "bias": "Cout", "skip": "N Cout H W"},
            output="N Cout H W",
            keeps_output=True,
        ),
        Operation(
            reference.recursive_embedding,
            _BLOCK,
            output="N C H W",
            saves=True,
            keeps_output=True,
        ),
        Operation(
            reference.dense_recursion,
            {"u": "N C H W", **_DENSE_BLOCK},
            output="N C H W",
            saves=True,
        ),
        Operation(
            reference.dense_network,
            {
                "image": "N 1 H W",
                "head_weight": "C 1 3 3",
                "head_bias": "C",
                **_DENSE_BLOCK,
                "tail_weight": "S C 3 3",
                "tail_bias": "S",
            },
            output="N S H W",
            images=("image", "head_weight", "head_bias"),
        ),
        Operation(
            reference.tied_conv_transpose2d,
            {"a": "N Cout H W", "weight": "Cout Cin 3 3", "bias": "Cin"},
            output="N Cin 2H 2W",
        ),
        Operation(
            reference.lapsrn_level,
            _LEVEL,
            output="N C 2H 2W",
            saves=True,
        ),
        Operation(
            reference.residual_head,
            {"image": "N 1 H W", "f": "N C 2H 2W", **_HEAD},
            output="N 1 2H 2W",
            images=("image", "image_weight"),
        ),
        Operation(
            reference.lapsrn_last_level,
            {**_LEVEL, "image": "N 1 H W", **_HEAD},
            output="N 1 2H 2W",
            images=("image", "image_weight"),
        ),
    )
}
