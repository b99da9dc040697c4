"""One call's arguments: stacked, in the active autocast's dtype, and checked against the operation's table.

A mistake ends in one line that names the argument.
"""

import itertools
import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from cmslap.errors import UserError
from cmslap.ops.operation import Arguments, Operation, extent, fits

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
# Asked beforehand, since PyTorch's compiler before 2.11 does not trace the question.
AUTOCAST_DEVICES = [device for device in ("cpu", "cuda", "mps", "xpu") if torch.amp.is_autocast_available(device)]


class ArgumentError(UserError, ValueError):
    """An argument an operation can't take."""


def prepare(operation: Operation, args: Sequence[object], kwargs: Mapping[str, object]) -> Arguments:
    """One call's arguments as backends take them. Raises ArgumentError, and TypeError for those it has no place for."""
    try:
        bound = operation.bind(*args, **kwargs)
    except TypeError:
        operation.reference(*args, **kwargs)  # fails, too, and says it in the words for a function
        raise
    arguments = dict(zip(operation.arguments, bound, strict=True))
    for name in operation.stacked:
        if isinstance(arguments[name], list | tuple):
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
        raise _wrong(name, "one tensor or a sequence of tensors of one shape", f"{value!r:.60}")
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
        _check_integer("recursions", arguments["recursions"], 1)
    if "negative_slope" in arguments:
        _check_slope(arguments["negative_slope"])
    if "shared_conv" in arguments:
        _check_upsampling_weight(arguments)


def _check_tensors(operation: Operation, arguments: Arguments) -> None:
    sizes: dict[str, int] = {}
    first_name, features_name = operation.activation_name, operation.features_name
    for name, dimensions in operation.dimensions.items():
        tensor = arguments[name]
        if tensor is None and name in operation.optional:
            continue
        if not isinstance(tensor, Tensor):
            kind = "None" if tensor is None else type(tensor).__name__
            raise _wrong(name, f"a tensor [{_commas(operation.shapes[name])}]", kind)
        learnt = len(sizes)
        if not fits(tensor.shape, dimensions, sizes):
            known = dict(itertools.islice(sizes.items(), learnt))  # without what this argument says
            raise _wrong(name, _expected(operation, name, known), list(tensor.shape))
        if tensor.numel() == 0:
            raise ArgumentError(f"{name} must have at least one element, got {list(tensor.shape)}")
        if name == first_name:
            device = tensor.device
        if tensor.device != device:
            raise _wrong(name, f"on {device} as {first_name} is", tensor.device)
        dtype, like = tensor.dtype, operation.dtypes_of[name]
        if name == features_name and dtype not in DTYPES:
            raise _wrong(name, "float32, bfloat16, float16 or float64", _plain(dtype))
        if dtype != arguments[like].dtype:
            raise _wrong(name, f"{_plain(arguments[like].dtype)} as {like} is", _plain(dtype))
    for name in operation.images[:1]:
        features, image = arguments[features_name].dtype, arguments[name].dtype
        if image != features and (image != torch.float32 or features == torch.float64):
            also = "" if features in (torch.float32, torch.float64) else ", or float32"
            raise _wrong(name, f"{_plain(features)} as {features_name} is{also}", _plain(image))


def _expected(operation: Operation, name: str, known: dict[str, int]) -> str:
    """The shape an argument must have, with the sizes of its dimensions that the arguments before it fixed."""
    named = [
        f"{text}={extent(dimension, known)}"
        for text, dimension in zip(operation.shapes[name].split(), operation.dimensions[name], strict=True)
        if not text.isdecimal() and all(part in known for part in re.findall("[A-Za-z]+", text))
    ]
    return f"[{_commas(operation.shapes[name])}]" + (f" with {', '.join(named)}" if named else "")


def _check_integer(name: str, value: object, low: int, high: int | None = None) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < low or (high is not None and value > high):
        raise _wrong(
            name, f"an integer {f'of at least {low}' if high is None else f'from {low} to {high}'}", repr(value)
        )


def _check_slope(value: object) -> None:
    # φ must keep signs, as backward reads them off the activated values.
    if isinstance(value, bool) or not isinstance(value, int | float) or not value >= 0:
        raise _wrong("negative_slope", "a number of at least 0", repr(value))


def _check_upsampling_weight(arguments: Arguments) -> None:
    shared_conv, weight = arguments["shared_conv"], arguments["upsample_weight"]
    if (shared_conv is None) == (weight is None):
        came = "neither" if weight is None else "both"
        raise ArgumentError(f"exactly one of shared_conv and upsample_weight must be given, got {came}")
    if shared_conv is not None:
        _check_integer("shared_conv", shared_conv, 1, arguments["weights"].shape[0])


def _wrong(name: str, accepted: str, came: object) -> ArgumentError:
    return ArgumentError(f"{name} must be {accepted}, got {came}")


def _commas(shape: str) -> str:
    return shape.replace(" ", ", ")


def _plain(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
