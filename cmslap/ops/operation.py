"""The operations as data: their arguments, how these are shaped, and what backward needs.

Argument checks, schemas, fake tensors and gradients (arguments.py, registration.py) are all read from this table.
"""

import inspect
import re
from collections import namedtuple
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cmslap.ops import reference

Arguments = dict[str, Any]  # one call's arguments by name, in the order of the reference's signature
_TENSOR = re.compile(r"Annotated\[Tensor, '(.+?)'\]")  # an annotation, as Python spells it


@dataclass
class Operation:
    """One operation, read off the signature of the function that defines it.

    There a tensor has its shape in its annotation: a string of sizes, which are numbers, named dimensions ("C"), or
    twice one ("2H") or a sum ("C+2G") of those that the activation or an argument before has named.

    ``images`` are the arguments that make the image, which the features only correct: they may be float32 where
    the features are shorter, autocast leaves them alone, and the result has their dtype. (A bfloat16 has 8 bits, as
    many as a pixel: rounding the image costs more PSNR than rounding all features.)
    """

    reference: Callable[..., Tensor]
    saves: bool = False  # forward also returns the activated maps that backward needs
    keeps_output: bool = False  # backward also reads the output: its signs, as φ keeps them, unless the slope is 1
    images: tuple[str, ...] = ()
    activation_name: str = ""  # whose device and memory format results take; the first tensor unless it is named

    def __post_init__(self) -> None:
        signature = inspect.signature(self.reference)
        kinds = {name: parameter.annotation for name, parameter in signature.parameters.items()}
        shapes = {name: found[1] for name, kind in kinds.items() if (found := _TENSOR.match(kind))}
        self.name, self.arguments = self.reference.__name__, tuple(kinds)
        self.activation_name = self.activation_name or next(iter(shapes))
        self.shapes = {self.activation_name: shapes.pop(self.activation_name), **shapes}
        self.dimensions = {name: parsed(shape) for name, shape in self.shapes.items()}
        self.stacked = [name for name, shape in self.shapes.items() if shape.startswith("D ")]
        self.output = parsed(_TENSOR.match(signature.return_annotation)[1])
        self.optional = tuple(name for name in self.shapes if signature.parameters[name].default is None)
        defaults = [each.default for each in signature.parameters.values() if each.default is not each.empty]
        self.bind = namedtuple(self.name, kinds, defaults=defaults)  # a call's arguments, as Python itself binds them
        self.features_name = next(name for name in self.shapes if name not in self.images)
        # Whose dtype each takes: the first tensor's that is no image, and images the first image's.
        self.dtypes_of = dict.fromkeys(self.shapes, self.features_name) | dict.fromkeys(self.images, *self.images[:1])
        # Of the arguments, for the dispatcher: "Tensor u, int? shared_conv".
        types = (_TENSOR.sub("Tensor", kind).replace(" | None", "?") for kind in kinds.values())
        self.schema = ", ".join(map(" ".join, zip(types, kinds, strict=True)))

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
        return [extent(dimension, sizes) for dimension in self.output]

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
        if isinstance(dimension, str):
            expected = sizes.setdefault(dimension, size)
        else:
            expected = dimension if isinstance(dimension, int) else extent(dimension, sizes)
        if size != expected:
            return False
    return True


def memory_format(tensor: Tensor) -> torch.memory_format:
    """channels_last for a tensor that lies so, else contiguous: what results and gradients follow."""
    if tensor.ndim == 4 and tensor.is_contiguous(memory_format=torch.channels_last):
        return torch.channels_last
    return torch.contiguous_format


OPERATIONS = {
    operation.name: operation
    for operation in (
        Operation(reference.conv2d_lrelu, keeps_output=True),
        Operation(reference.recursive_embedding, saves=True, keeps_output=True),
        Operation(reference.dense_recursion, saves=True),
        Operation(reference.dense_network, images=("image", "head_weight", "head_bias")),
        Operation(reference.tied_conv_transpose2d),
        Operation(reference.lapsrn_level, saves=True),
        Operation(reference.residual_head, images=("image", "image_weight"), activation_name="image"),
        Operation(reference.lapsrn_last_level, images=("image", "image_weight")),
    )
}
