"""Says which backend runs a call and why the others do not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from torch import Tensor

from cmslap.ops.arguments import ArgumentError, needs_gradients, prepare
from cmslap.ops.dispatch import BACKENDS, REFERENCE, choose, folds, forced, named, objection, objection_by_default
from cmslap.ops.operation import OPERATIONS, Arguments, Operation


@dataclass(frozen=True)
class Explanation:
    """What :func:`explain` found; ``print`` it."""

    operation: str
    backend: str | None  # that runs the call; None where the forced one can't, and the call would be a BackendError
    gradients: str | None  # the backend whose backward kernel runs, None for a call that needs no gradients
    others: dict[str, str]  # backend -> why it does not run the call
    steps: tuple[Explanation, ...] = ()  # the operations it runs as, if not as one; the fields above are the first's

    def __str__(self) -> str:
        if self.steps:
            names = " and ".join(step.operation for step in self.steps)
            return "\n".join([f"{self.operation} runs as {names}", *map(str, self.steps)])
        gradients = "" if self.gradients is None else f", gradients by {self.gradients}"
        lines = [
            f"{self.operation} runs on {self.backend}{gradients}" if self.backend else f"{self.operation} can't run"
        ]
        return "\n".join(lines + [f"  not {name}: {reason}" for name, reason in self.others.items()])


def explain(operation: str | Callable[..., Tensor], *args: object, **kwargs: object) -> Explanation:
    """Which backend would run ``operation(*args, **kwargs)`` here and now, and why no other.

    ``operation`` is one of this package's or its name. Raises ArgumentError as the call would, and BackendError where
    the forced backend does not exist; one that can't serve the call is an answer.

    >>> print(cmslap.ops.explain("tied_conv_transpose2d", a, weight))
    """
    name = operation if isinstance(operation, str) else getattr(operation, "__name__", None)
    if name not in OPERATIONS:
        raise ArgumentError(f"operation must be one of {', '.join(OPERATIONS)}, got {operation!r}")
    operation = OPERATIONS[name]
    arguments = prepare(operation, args, kwargs)
    if name != "lapsrn_last_level":
        return _explain(operation, arguments)
    level = _explain(OPERATIONS["lapsrn_level"], arguments)
    if level.backend is not None and folds(arguments, named(level.backend, "backend")):
        return _explain(operation, arguments)
    n, channels, height, width = arguments["u"].shape
    features = arguments["u"].new_empty(1).expand(n, channels, 2 * height, 2 * width)  # takes no memory
    steps = level, _explain(OPERATIONS["residual_head"], {**arguments, "f": features})
    return replace(level, operation=name, steps=steps)


def _explain(operation: Operation, arguments: Arguments) -> Explanation:
    """The explanation of a checked call; ``arguments`` may have more than the operation's."""
    arguments = operation.of(arguments)
    needs_grad = needs_gradients(operation, arguments)
    chosen = named(forced(), "CMSLAP_BACKEND") if forced() else choose(operation, arguments, needs_grad)
    refused = objection(chosen, operation, arguments)
    others = {}
    for backend in BACKENDS:
        if backend is not chosen or refused:
            reason = objection_by_default(backend, operation, arguments, needs_grad)
            others[backend.name] = reason or f"{chosen.name} is {'forced' if forced() else 'preferred'}"
    if refused:
        return Explanation(operation.name, None, None, others)
    has_kernel = operation.name in chosen.backward
    gradients = (chosen.name if has_kernel else REFERENCE.name) if needs_grad else None
    return Explanation(operation.name, chosen.name, gradients, others)
