"""Says which backend runs a call and why the others do not."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from cmslap.ops import interface
from cmslap.ops.checks import ArgumentError
from cmslap.ops.choice import BACKENDS, REFERENCE, choose, forced, objection_by_default
from cmslap.ops.operation import OPERATIONS


@dataclass(frozen=True)
class Explanation:
    """What :func:`explain` found; ``print`` it."""

    operation: str
    backend: str  # that runs the call
    gradients: str | None  # the backend whose backward kernel runs, None for a call that needs no gradients
    others: dict[str, str]  # backend -> why it does not run the call

    def __str__(self) -> str:
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
    chosen = choose(OPERATIONS[name], arguments, needs_grad)
    others = {}
    for backend in BACKENDS:
        if backend is not chosen:
            reason = objection_by_default(backend, OPERATIONS[name], arguments, needs_grad)
            others[backend.name] = reason or f"{chosen.name} is {'forced' if forced() else 'preferred'}"
    has_kernel = name in chosen.backward
    gradients = (chosen.name if has_kernel else REFERENCE.name) if needs_grad else None
    return Explanation(name, chosen.name, gradients, others)
