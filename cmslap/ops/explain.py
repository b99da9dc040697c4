"""Says which backend runs a call and why the others do not."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, replace

from torch import Tensor

from cmslap.ops import interface
from cmslap.ops.checks import ArgumentError
from cmslap.ops.dispatch import BACKENDS, REFERENCE, choose, forced, objection_by_default
from cmslap.ops.operation import OPERATIONS, Arguments


@dataclass(frozen=True)
class Explanation:
    """What :func:`explain` found; ``print`` it."""

    operation: str
    backend: str  # that runs the call
    gradients: str | None  # the backend whose backward kernel runs, None for a call that needs no gradients
    others: dict[str, str]  # backend -> why it does not run the call
    steps: tuple[Explanation, ...] = ()  # the operations it runs as, if not as one; the fields above are the first's

    def __str__(self) -> str:
        if self.steps:
            names = " and ".join(step.operation for step in self.steps)
            return "\n".join([f"{self.operation} runs as {names}", *map(str, self.steps)])
        gradients = "" if self.gradients is None else f", gradients by {self.gradients}"
        lines = [f"{self.operation} runs on {self.backend}{gradients}"]
        return "\n".join(lines + [f"  not {name}: {reason}" for name, reason in self.others.items()])


def explain(operation: str | Callable[..., Tensor], *args: object, **kwargs: object) -> Explanation:
    """Which backend would run ``operation(*args, **kwargs)`` here and now, and why no other.

    ``operation`` is one of this package's or its name. Raises what the call would: ArgumentError, BackendError.

    >>> print(cmslap.ops.explain("tied_conv_transpose2d", a, weight))
    """
    name = operation if isinstance(operation, str) else getattr(operation, "__name__", None)
    if name not in OPERATIONS:
        raise ArgumentError(f"operation must be one of {', '.join(OPERATIONS)}, got {operation!r}")
    bound = inspect.signature(getattr(interface, name)).bind(*args, **kwargs)
    bound.apply_defaults()
    arguments, needs_grad = interface.prepare(OPERATIONS[name], bound.arguments.values())
    if name == "lapsrn_last_level" and not interface.runs_folded(arguments, needs_grad):
        n, channels, height, width = arguments["u"].shape
        features = arguments["u"].new_empty(1).expand(n, channels, 2 * height, 2 * width)  # takes no memory
        steps = (
            _explain("lapsrn_level", arguments, needs_grad),
            _explain("residual_head", {**arguments, "f": features}, needs_grad),
        )
        return replace(steps[0], operation=name, steps=steps)
    return _explain(name, arguments, needs_grad)


def _explain(name: str, arguments: Arguments, needs_grad: bool) -> Explanation:
    """The explanation of a checked call; ``arguments`` may have more than the operation's."""
    operation = OPERATIONS[name]
    arguments = {argument: arguments[argument] for argument in operation.arguments}
    chosen = choose(operation, arguments, needs_grad)
    others = {}
    for backend in BACKENDS:
        if backend is not chosen:
            reason = objection_by_default(backend, operation, arguments, needs_grad)
            others[backend.name] = reason or f"{chosen.name} is {'forced' if forced() else 'preferred'}"
    has_kernel = name in chosen.backward
    gradients = (chosen.name if has_kernel else REFERENCE.name) if needs_grad else None
    return Explanation(name, chosen.name, gradients, others)
