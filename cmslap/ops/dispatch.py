"""Which backend runs a call: the best that serves it, or the one the user forces; and what a device computes in."""

import functools
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.autograd import forward_ad

from cmslap.errors import UserError
from cmslap.ops.arguments import needs_gradients, prepare
from cmslap.ops.backend import Backend, Call
from cmslap.ops.cpu import CPU, missing_bfloat16
from cmslap.ops.cuda import CUDA
from cmslap.ops.operation import OPERATIONS, Arguments, Operation
from cmslap.ops.triton_backend import TRITON


def _reference(call: Call) -> Tensor:
    return call.operation.reference(**call.arguments)


REFERENCE = Backend("reference", forward=dict.fromkeys(OPERATIONS, _reference))

BACKENDS = (CUDA, TRITON, CPU, REFERENCE)  # best first

_forced: str | None = os.environ.get("CMSLAP_BACKEND") or None
_preferred: str | None = None
_ran: dict[str, set[str]] = {}  # while one is preferred: the backends that ran, by operation


class BackendError(UserError, RuntimeError):
    """A forced backend that does not exist or can't serve the call."""


@contextmanager
def use_backend(name: str | None) -> Iterator[None]:
    """Force the backend ``name`` for every call inside the ``with``, in all threads; outranks ``CMSLAP_BACKEND``.

    With None the best that serves a call runs it, whatever is forced outside.
    A forced backend that can't serve a call raises BackendError. One without a backward kernel takes its gradients
    from the reference.
    """
    global _forced
    if name is not None:
        named(name, "backend")
    before, _forced = _forced, name
    try:
        yield
    finally:
        _forced = before


@contextmanager
def prefer_backend(name: str) -> Iterator[dict[str, set[str]]]:
    """Inside the ``with``, in all threads, ``name`` runs every call it can, with its gradient; others run the rest.

    Yields the names of the backends that ran, by operation. A forced backend outranks the preferred one.
    """
    global _preferred, _ran
    named(name, "backend")
    before, _preferred, _ran = (_preferred, _ran), name, {}
    try:
        yield _ran
    finally:
        _preferred, _ran = before


def forced() -> str | None:
    """The name of the forced backend, None where the best one is free to run."""
    return _forced


def choose(operation: Operation, arguments: Arguments, needs_grad: bool) -> Backend:
    """The backend that runs a checked call."""
    if _forced is not None:
        backend = named(_forced, "CMSLAP_BACKEND")
        reason = objection(backend, operation, arguments)
        if reason is not None:
            raise BackendError(f"backend {backend.name} can't run this {operation.name}: {reason}")
        return backend
    if _preferred is not None:
        backend = named(_preferred, "backend")
        if (objection(backend, operation, arguments) or _no_gradient(backend, operation, needs_grad)) is None:
            return backend
    for backend in BACKENDS:
        if backend.missing or backend.only_forced:
            continue
        if objection_by_default(backend, operation, arguments, needs_grad) is None:
            if backend is REFERENCE and CPU.missing and not torch.compiler.is_compiling():
                _warn_that_it_is_slow(CPU.missing)
            return backend
    raise AssertionError("the reference serves every call")


def is_fused(operation: Callable[..., Tensor], *args: object, **kwargs: object) -> bool:
    """Whether a call with these arguments runs as one kernel: no feature map inside it takes memory.

    Not where the forced backend can't run it: asked before an autocast shortens the features, that is no mistake.
    """
    operation = OPERATIONS[operation.__name__]
    arguments = prepare(operation, args, kwargs)
    first = OPERATIONS["lapsrn_level"] if operation.name == "lapsrn_last_level" else operation
    try:
        backend = choose(first, first.of(arguments), needs_gradients(first, arguments))
    except BackendError:
        return False
    return backend is not REFERENCE and (first is operation or folds(arguments, backend))


def folds(arguments: Arguments, backend: Backend) -> bool:
    """Whether a checked call of ``lapsrn_last_level`` is one kernel, where ``backend`` runs the level."""
    whole = OPERATIONS["lapsrn_last_level"]
    return backend is not REFERENCE and whole.name in backend.forward and not needs_gradients(whole, arguments)


@functools.cache  # once
def _warn_that_it_is_slow(missing: str) -> None:
    warnings.warn(f"{missing}; PyTorch's own operations run instead, on a CPU several times slower", stacklevel=2)


def note(operation: Operation, backend: Backend) -> None:
    """Remember for :func:`prefer_backend` that ``backend`` runs a call."""
    if _preferred is not None:
        _ran.setdefault(operation.name, set()).add(backend.name)


def objection(backend: Backend, operation: Operation, arguments: Arguments) -> str | None:
    """Why ``backend`` can't run a checked call here and now, or None."""
    if backend is not REFERENCE and _is_transformed():
        return "torch.func's transforms and forward-mode derivatives go through the definition"
    if backend.missing is not None:
        return backend.missing
    if operation.name not in backend.forward:
        return f"no {operation.name} kernel"
    return backend.unsupported(operation, arguments)


def _is_transformed() -> bool:
    """Whether the call is to be differentiated or mapped in a way that the operators don't know, eagerly."""
    if torch.compiler.is_compiling():
        return False
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def objection_by_default(backend: Backend, operation: Operation, arguments: Arguments, needs_grad: bool) -> str | None:
    """Why ``backend`` is not chosen unless forced: it can't run the call, should not, or would not run its gradient."""
    reason = objection(backend, operation, arguments) or backend.only_forced
    return reason or _no_gradient(backend, operation, needs_grad)


def _no_gradient(backend: Backend, operation: Operation, needs_grad: bool) -> str | None:
    if needs_grad and backend is not REFERENCE and operation.name not in backend.backward:
        return f"no {operation.name} backward kernel, and this call needs gradients"
    return None


def named(name: str, source: str) -> Backend:
    """The backend called ``name``; ``source`` says in the error who asked for it."""
    for backend in BACKENDS:
        if backend.name == name:
            return backend
    raise BackendError(f"{source} must be one of {', '.join(backend.name for backend in BACKENDS)}, got {name!r}")


def missing_arithmetic(dtype: torch.dtype, device: torch.device) -> str | None:
    """Why ``device`` does not multiply numbers of ``dtype`` but would convert them back and forth, or None."""
    if dtype == torch.float32:
        return None
    if device.type == "cuda":
        native = dtype == torch.float16 or torch.cuda.get_device_capability(device) >= (8, 0)
        return None if native else f"{torch.cuda.get_device_name(device)} has no bfloat16"
    return "there are no float16 kernels for a CPU" if dtype == torch.float16 else missing_bfloat16()
