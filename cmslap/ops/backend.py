"""What a backend is.

A backend is one file of this folder with one :class:`Backend` object, listed in dispatch.py. It says where its kernels
are and which calls they serve; everything else (checks, fake tensors, autograd, autocast) happens once for all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torch import Tensor

from cmslap.ops.operation import Arguments, Operation


@dataclass(frozen=True)
class Backend:
    """Kernels of one kind.

    Attributes:
        name: what ``CMSLAP_BACKEND`` and :func:`use_backend` call it.
        missing: why it can't be used in this installation, or None.
        unsupported: ``(operation, arguments) -> reason or None``, for operations it has a forward kernel of. Read
            from devices, dtypes and shapes alone, as ``torch.compile`` traces it.
        forward: kernels by operation name, ``kernel(**arguments) -> output``, or for an operation that saves
            activations ``kernel(**arguments, save=bool) -> (output, saved or None)``.
        backward: kernels by operation name, ``kernel(grad, output, saved, wanted, **arguments) -> gradients``:
            ``wanted`` is the tuple of names of the tensor arguments to differentiate for, ``gradients`` a dict by
            those names. ``output`` and ``saved`` are None where the operation does not keep them. Any dtype and
            memory format will do; the caller casts to the argument's.
        saved_shape: ``(operation, arguments) -> shape`` of ``saved``: a contiguous tensor of the activations' dtype
            whose content is this backend's own affair.
        only_forced: why it runs only where the user forces it, or None.
    """

    name: str
    missing: str | None = None
    unsupported: Callable[[Operation, Arguments], str | None] = lambda operation, arguments: None
    forward: Mapping[str, Callable[..., Tensor | tuple[Tensor, Tensor | None]]] = field(default_factory=dict)
    backward: Mapping[str, Callable[..., dict[str, Tensor]]] = field(default_factory=dict)
    saved_shape: Callable[[Operation, Arguments], tuple[int, ...]] | None = None
    only_forced: str | None = None

    def objection(self, operation: Operation, arguments: Arguments) -> str | None:
        """Why this backend can't run the forward pass of a checked call, or None."""
        if self.missing is not None:
            return self.missing
        if operation.name not in self.forward:
            return f"no {operation.name} kernel"
        return self.unsupported(operation, arguments)


def saved_maps(recursions: int, recompute: bool, weights: Tensor) -> int:
    """How many activations a recursive embedding keeps: the input of every convolution, or of every recursion."""
    return recursions * (1 if recompute else weights.shape[0])


def saved_shape(operation: Operation, arguments: Arguments) -> tuple[int, ...]:
    """[maps, N, H, W, C]; a level also keeps what it upsamples."""
    n, channels, height, width = arguments["u"].shape
    maps = saved_maps(*(arguments[name] for name in ("recursions", "recompute", "weights")))
    return maps + (operation.name == "lapsrn_level"), n, height, width, channels
