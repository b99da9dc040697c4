"""Random calls of every operation, for the tests of this folder."""

import random

import torch

from cmslap.ops.operation import OPERATIONS, extent

NAMES = tuple(OPERATIONS)


def sizes() -> dict[str, int]:
    """Small sizes that are no multiple of anything, down to 1."""
    return {name: random.choice([1, 2, 3, 5, 7, 9]) for name in ("N", "C", "Cin", "Cout", "D", "G", "S", "H", "W")}


def random_call(
    name: str, dtype: torch.dtype = torch.float32, requires_grad: bool = False, optional: bool = True, **given: int
) -> dict:
    """Arguments by name, in order. ``optional`` also gives the tensors that may be left out."""
    operation, dimensions = OPERATIONS[name], {**sizes(), **given}

    def tensor(argument: str) -> torch.Tensor:
        shape = [extent(dimension, dimensions) for dimension in operation.dimensions[argument]]
        scale = 1.0 if len(shape) < 4 or argument in ("x", "u", "a", "f", "image", "skip") else (9 * shape[-3]) ** -0.5
        return (scale * torch.randn(shape, dtype=torch.float64)).to(dtype).requires_grad_(requires_grad)

    arguments = {}
    for argument in operation.arguments:
        if argument in operation.shapes:
            arguments[argument] = tensor(argument) if optional or argument not in operation.optional else None
        elif argument == "recursions":
            arguments[argument] = given.get("R", random.choice([1, 2, 3]))
        elif argument == "negative_slope":
            arguments[argument] = random.choice([0.0, 0.2, 1.0])
        elif argument == "recompute":
            arguments[argument] = False
    if "shared_conv" in operation.arguments:
        tied = not optional or random.random() < 0.5
        arguments["shared_conv"] = random.randint(1, dimensions["D"]) if tied else None
        if tied:
            arguments["upsample_weight"] = None
        arguments = {argument: arguments[argument] for argument in operation.arguments}
    return arguments


def tensors(arguments: dict) -> list[torch.Tensor]:
    return [value for value in arguments.values() if isinstance(value, torch.Tensor)]


def convert(arguments: dict, **to) -> dict:
    """The arguments with every tensor converted, as ``Tensor.to`` does."""
    return {name: v.to(**to) if isinstance(v, torch.Tensor) else v for name, v in arguments.items()}


def relative_error(result: torch.Tensor, expected: torch.Tensor) -> float:
    return ((result.double() - expected).norm() / expected.norm().clamp_min(1e-30)).item()


def assert_gradients_close(gradients: list, expected: list, grad: torch.Tensor) -> None:
    """Each within 1e-4 of the float64 one, where ``grad`` is the output's gradient.

    What nearly cancels (a bias of a network with one channel) is a sum of terms that ``grad`` is the measure of.
    """
    for gradient, exact in zip(gradients, expected, strict=True):
        assert (gradient.double() - exact).norm() <= 1e-4 * exact.norm() + 1e-5 * grad.double().norm()
