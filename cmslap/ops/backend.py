"""What a backend is, and what it is called with.

A backend is one file of this folder with one :class:`Backend` object, listed in dispatch.py. It says where its kernels
are and which calls they serve; everything else (checks, fake tensors, autograd, autocast) happens once for all.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from cmslap.ops.operation import Arguments, Operation

# The operations with kernels, forward and backward, in every backend but the reference.
NAMES = ("conv2d_lrelu", "recursive_embedding", "tied_conv_transpose2d", "lapsrn_level", "residual_head")


class Call:
    """One checked call of an operation: its arguments are attributes, by their names.

    ``upsample_weight`` is the weight that the upsampling reads, also where that is convolution ``shared_conv``'s.

    Attributes:
        operation, arguments: what is called, with what, as it came.
        activation: the argument whose device and memory format results follow.
        save: whether backward will need activations; the forward kernel then leaves them in ``saved``.
        saved: the activations kept for backward, None where there are none.
        output: of forward, for backward; None where the operation does not keep it.
        grad: the gradient of the output, for backward.
        wanted: the names of the tensor arguments to differentiate for.
    """

    def __init__(
        self,
        operation: Operation,
        arguments: Arguments,
        save: bool = False,
        grad: Tensor | None = None,
        output: Tensor | None = None,
        saved: Tensor | None = None,
        wanted: Sequence[str] = (),
    ) -> None:
        self.__dict__.update(arguments)
        self.operation, self.arguments, self.activation = operation, arguments, operation.activation(arguments)
        self.save, self.saved, self.output, self.grad, self.wanted = save, saved, output, grad, wanted
        if arguments.get("shared_conv") is not None:
            self.upsample_weight = self.shared_part(self.weights)

    def shared_part(self, weights: Tensor) -> Tensor:
        """What the upsampling shares of ``weights``, or of a buffer that lies as they do."""
        return weights[self.shared_conv - 1]

    def wanting(self, *names: str) -> list[str]:
        """Those of ``names`` that are wanted."""
        return [name for name in names if name in self.wanted]

    def new_saved(self, dtype: torch.dtype, empty: Callable[..., Tensor] = torch.empty) -> Tensor | None:
        """``saved``, as memory for what backward will need; None where it will need nothing."""
        if self.save:
            self.saved = empty(saved_shape(self), dtype=dtype, device=self.u.device)
        return self.saved

    def zeros(self, *names: str, empty: Callable[..., Tensor] = torch.empty) -> dict[str, Tensor]:
        """Float32 buffers to add up the gradients of parameters in; a shared weight's two gradients go to one place."""
        buffers: dict[str, Tensor] = {}
        for name in names:
            if name == "upsample_weight" and self.shared_conv is not None:
                buffers[name] = self.shared_part(buffers["weights"])
            else:
                shape = getattr(self, name).shape
                buffers[name] = empty(shape, dtype=torch.float32, device=self.activation.device).zero_()
        return buffers


def saved_shape(call: Call) -> tuple[int, ...]:
    """Of what backward needs.

    [maps, N, H, W, C]: the input of every convolution, or of every recursion; of a level also what it upsamples. Of a
    dense recursion [R, N, H + 2, W + 2, C + 2G]: each [x, a, b], its parts padded to whole vectors, with a margin.
    """
    n, channels, height, width = call.u.shape
    if call.operation.name == "dense_recursion":
        channels, growth = (-(-count // 16) * 16 for count in (channels, call.bias1.shape[0]))
        return call.recursions, n, height + 2, width + 2, channels + 2 * growth
    maps = call.recursions * (1 if call.recompute else call.weights.shape[0])
    return maps + int(call.operation.name == "lapsrn_level"), n, height, width, channels


@dataclass(frozen=True)
class Backend:
    """Kernels of one kind.

    Attributes:
        name: what ``CMSLAP_BACKEND`` and :func:`use_backend` call it.
        missing: why it can't be used in this installation, or None.
        unsupported: ``(operation, arguments) -> reason or None``, for operations it has a forward kernel of. Read
            from devices, dtypes and shapes alone, as ``torch.compile`` traces it.
        forward: kernels by operation name, ``kernel(call) -> output``.
        backward: kernels by operation name, ``kernel(call) -> gradients``: a dict by the names of arguments, those
            in ``call.wanted`` at least. Any dtype and memory format will do here and in forward; the caller casts.
        saved_shape: ``call -> shape`` of ``saved``: a contiguous tensor of the activations' dtype whose content is this
            backend's own affair.
        only_forced: why it runs only where the user forces it, or None.
    """

    name: str
    missing: str | None = None
    unsupported: Callable[[Operation, Arguments], str | None] = lambda operation, arguments: None
    forward: Mapping[str, Callable[[Call], Tensor]] = field(default_factory=dict)
    backward: Mapping[str, Callable[[Call], dict[str, Tensor]]] = field(default_factory=dict)
    saved_shape: Callable[[Call], tuple[int, ...]] = saved_shape
    only_forced: str | None = None
