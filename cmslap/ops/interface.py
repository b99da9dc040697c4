"""The operations as users call them: check the arguments, choose the backend, run.

Each has the signature, and the documentation, of its definition in reference.py. The reference runs inline, so that
``torch.compile`` and double backward see through it; every other backend runs behind the operators of registration.py.
"""

import functools
from collections.abc import Callable
from typing import ParamSpec

from torch import Tensor

from cmslap.ops import reference
from cmslap.ops.arguments import needs_gradients, prepare
from cmslap.ops.backend import Backend
from cmslap.ops.dispatch import REFERENCE, choose, folds, note
from cmslap.ops.operation import OPERATIONS, Arguments, Operation
from cmslap.ops.registration import call, reference_value

P = ParamSpec("P")
_RAISES = """

    Raises:
        ArgumentError: a shape, dtype, device or number that does not fit, which it names.
        BackendError: the backend that is forced can't run this call.
    """


def _run_best(operation: Operation, arguments: Arguments) -> Tensor:
    needs_grad = needs_gradients(operation, arguments)
    return _run(operation, arguments, needs_grad, choose(operation, arguments, needs_grad))


def _run(operation: Operation, arguments: Arguments, needs_grad: bool, backend: Backend) -> Tensor:
    """One call, its arguments prepared and its backend chosen."""
    note(operation, backend)
    if backend is REFERENCE:
        return reference_value(operation, arguments)
    return call(operation, arguments, needs_grad, backend)


def _run_last_level(whole: Operation, arguments: Arguments) -> Tensor:
    level, head = OPERATIONS["lapsrn_level"], OPERATIONS["residual_head"]
    of_level = level.of(arguments)
    needs_grad = needs_gradients(level, of_level)
    backend = choose(level, of_level, needs_grad)
    if folds(arguments, backend):
        return _run(whole, arguments, False, backend)
    f = _run(level, of_level, needs_grad, backend)
    return _run_best(head, head.of({**arguments, "f": f}))


def _public(
    definition: Callable[P, Tensor], run: Callable[[Operation, Arguments], Tensor] = _run_best
) -> Callable[P, Tensor]:
    operation = OPERATIONS[definition.__name__]

    @functools.wraps(definition)
    def operate(*args: P.args, **kwargs: P.kwargs) -> Tensor:
        return run(operation, prepare(operation, args, kwargs))

    operate.__module__ = __name__
    operate.__doc__ = f"{definition.__doc__.rstrip()}{_RAISES}"
    return operate


conv2d_lrelu = _public(reference.conv2d_lrelu)
recursive_embedding = _public(reference.recursive_embedding)
dense_recursion = _public(reference.dense_recursion)
dense_network = _public(reference.dense_network)
tied_conv_transpose2d = _public(reference.tied_conv_transpose2d)
lapsrn_level = _public(reference.lapsrn_level)
residual_head = _public(reference.residual_head)
lapsrn_last_level = _public(reference.lapsrn_last_level, _run_last_level)
