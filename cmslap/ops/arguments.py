"""One call's arguments: stacked, in the active autocast's dtype, and checked against the operation's table.

A mistake ends in one line that names the argument.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from cmslap.errors import UserError
from cmslap.ops.operation import Arguments, Operation, extent, fits

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
# Asked beforehand, since PyTorch's compiler before 2.11 does not trace the question.
AUTOCAST_DEVICES = [device for device in ("cpu", "cuda", "mps", "xpu") if torch.amp.is_autocast_available(device)]


class ArgumentError(UserError, ValueError):
    """An argument an operation can't take."""


def prepare(operation: Operation, values: Iterable[object]) -> Arguments:
    """One call's arguments as backends take them. Raises ArgumentError."""
    arguments = dict(zip(operation.arguments, values, strict=True))
    for name in ("weights", "biases"):
        if isinstance(arguments.get(name), list | tuple):
            arguments[name] = _stack(name, arguments[name])
    activation = operation.activation(arguments)
    if isinstance(activation, Tensor) and is_autocast(activation.device.type):
        arguments = cast(operation, arguments, activation.device.type)
    check(operation, arguments)
    return arguments


def needs_gradients(operation: Operation, arguments: Arguments) -> bool:
    if not torch.is_grad_enabled():
        return False
    for name in operation.shapes:  # a loop of plain steps, as every call comes here
        tensor = arguments[name]
        if tensor is not None and tensor.requires_grad:
            return True
    return False


def _stack(name: str, value: Sequence[object]) -> Tensor:
    """D weights or biases given one by one, as one tensor."""
    if not value or any(not isinstance(tensor, Tensor) or tensor.shape != value[0].shape for tensor in value):
        raise ArgumentError(f"{name} must be one tensor or a sequence of tensors of one shape, got {value!r:.60}")
    return torch.stack(tuple(value))


def is_autocast(device: str) -> bool:
    """Whether an autocast is active for a type of device."""
    return device in AUTOCAST_DEVICES and torch.is_autocast_enabled(device)


def cast(operation: Operation, arguments: Arguments, device: str) -> Arguments:
    """The arguments in the dtype of that device's autocast, but for images and float64."""
    dtype = torch.get_autocast_dtype(device)

    def one(value: object) -> object:
        fits = isinstance(value, Tensor) and value.is_floating_point() and value.device.type == device
        return value.to(dtype) if fits and value.dtype != torch.float64 else value

    return {name: value if name in operation.images else one(value) for name, value in arguments.items()}


def check(operation: Operation, arguments: Arguments) -> None:
    """Raise ArgumentError for the first argument that does not fit."""
    _check_tensors(operation, arguments)
    if "recursions" in arguments:
        _check_integer("recursions", arguments["recursions"], 1, None)
    if "negative_slope" in arguments:
        _check_slope(arguments["negative_slope"])
    if "shared_conv" in arguments:
        _check_upsampling_weight(arguments)


def _check_tensors(operation: Operation, arguments: Arguments) -> None:
    sizes: dict[str, int] = {}
    first_name, features_name = operation.activation_name, operation.features_name
    for name, shape in operation.shapes.items():
        tensor = arguments[name]
        if tensor is None and name in operation.optional:
            continue
        if not isinstance(tensor, Tensor):
            raise ArgumentError(f"{name} must be a tensor [{_commas(shape)}], got {_kind(tensor)}")
        _check_shape(operation, name, tensor, sizes)
        if name != first_name:
            _check_device(name, tensor, first_name, arguments[first_name])
        if name not in operation.images:
            _check_dtype(name, tensor, features_name, arguments[features_name])
    if operation.images:
        _check_image_dtypes(operation.images, arguments, features_name)


def _check_shape(operation: Operation, name: str, tensor: Tensor, sizes: dict[str, int]) -> None:
    """Compare with the dimensions known from the arguments before, and learn the new ones."""
    learnt = len(sizes)
    if not fits(tensor.shape, operation.dimensions[name], sizes):
        known = dict(itertools.islice(sizes.items(), learnt))  # without what this argument says
        named = [
            f"{text}={extent(dimension, known)}"
            for text, dimension in zip(operation.shapes[name].split(), operation.dimensions[name], strict=True)
            if not text.isdecimal() and all(part in known for part in re.findall("[A-Za-z]+", text))
        ]
        where = f" with {', '.join(named)}" if named else ""
        raise ArgumentError(f"{name} must be [{_commas(operation.shapes[name])}]{where}, got {list(tensor.shape)}")
    if tensor.numel() == 0:
        raise ArgumentError(f"{name} must have at least one element, got {list(tensor.shape)}")


def _check_dtype(name: str, tensor: Tensor, first_name: str, first: Tensor) -> None:
    if tensor.dtype not in DTYPES:
        raise ArgumentError(f"{name} must be float32, bfloat16, float16 or float64, got {_plain(tensor.dtype)}")
    if tensor.dtype != first.dtype:
        raise ArgumentError(f"{name} must be {_plain(first.dtype)} as {first_name} is, got {_plain(tensor.dtype)}")


def _check_image_dtypes(images: tuple[str, ...], arguments: Arguments, features_name: str) -> None:
    first_name, *others = images
    dtype, features = arguments[first_name].dtype, arguments[features_name].dtype
    if dtype != features and (dtype != torch.float32 or features == torch.float64):
        also = "" if features in (torch.float32, torch.float64) else ", or float32"
        raise ArgumentError(f"{first_name} must be {_plain(features)} as {features_name} is{also}, got {_plain(dtype)}")
    for name in others:
        _check_dtype(name, arguments[name], first_name, arguments[first_name])


def _check_device(name: str, tensor: Tensor, first_name: str, first: Tensor) -> None:
    if tensor.device != first.device:
        raise ArgumentError(f"{name} must be on {first.device} as {first_name} is, got {tensor.device}")


def _check_integer(name: str, value: object, low: int, high: int | None) -> None:
    accepted = f"an integer of at least {low}" if high is None else f"an integer from {low} to {high}"
    if isinstance(value, bool) or not isinstance(value, int) or value < low or (high is not None and value > high):
        raise ArgumentError(f"{name} must be {accepted}, got {value!r}")


def _check_slope(value: object) -> None:
    # φ must keep signs, as backward reads them off the activated values.
    if isinstance(value, bool) or not isinstance(value, int | float) or not value >= 0:
        raise ArgumentError(f"negative_slope must be a number of at least 0, got {value!r}")


def _check_upsampling_weight(arguments: Arguments) -> None:
    shared_conv, weight = arguments["shared_conv"], arguments["upsample_weight"]
    if (shared_conv is None) == (weight is None):
        came = "neither" if weight is None else "both"
        raise ArgumentError(f"exactly one of shared_conv and upsample_weight must be given, got {came}")
    if shared_conv is not None:
        _check_integer("shared_conv", shared_conv, 1, arguments["weights"].shape[0])


def _commas(shape: str) -> str:
    return shape.replace(" ", ", ")


def _plain(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _kind(value: object) -> str:
    return "None" if value is None else type(value).__name__
