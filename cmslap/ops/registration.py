"""The operations as PyTorch operators, ``torch.ops.cmslap.*``: schema, kernel, fake, autograd, autocast.

Each operation of the table becomes two operators. ``<op>(<arguments>, backend)`` takes the reference's arguments, all
of them and in order; ``recursive_embedding`` and ``lapsrn_level`` also take ``save``, before ``backend``, and return
``(output, saved)``. ``<op>_backward(grad, output, saved, <arguments>, wanted, backend)`` runs that backend's backward
kernel and returns the gradients of the tensor arguments that ``wanted`` marks, in the table's order. Where the backend
that ran forward has no backward kernel, and for second derivatives, the gradient is that of the reference.

``backend`` names the backend, or is "" for the best one where and when the operator runs: an exported program may run
on another machine. A compiled graph must name it, since the graph is what PyTorch's compile caches go by, and a
graph that saves one backend's activations can't run another's kernels.

Whichever backend runs, results and gradients have the same dtype and memory format, so that fake tensors can say them
in advance.
"""

import functools
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.autograd.function import FunctionCtx
from torch.nn import Parameter

from cmslap.ops.arguments import ArgumentError, cast, check, is_autocast
from cmslap.ops.backend import Backend, Call
from cmslap.ops.dispatch import BackendError, choose, named
from cmslap.ops.operation import OPERATIONS, Arguments, Operation, memory_format

_library = torch.library.Library("cmslap", "DEF")
_PLAIN = {Tensor, Parameter, type(None), bool, int, float}  # the types of arguments that nobody traces


def call(operation: Operation, arguments: Arguments, save: bool, backend: Backend) -> Tensor:
    """Run a checked call: through the dispatcher where somebody there may watch it, else without that detour."""
    if is_watched(arguments):
        name = "" if torch.compiler.is_exporting() else backend.name
        options = (save, name) if operation.saves else (name,)
        result = getattr(torch.ops.cmslap, operation.name)(*arguments.values(), *options)
    elif save:
        keeps = operation.saves and operation.name in backend.backward
        result = _Gradient.apply(Call(operation, arguments, keeps), backend, *arguments.values())
    else:
        result = _REGISTERED[operation.name].run(Call(operation, arguments), backend)
    return result[0] if operation.saves else result


def is_watched(arguments: Arguments) -> bool:
    """Whether compilers, tracers, transforms, dispatch modes or subclasses of tensors have to see a call."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return True
    if torch._C._are_functorch_transforms_active() or torch._C._len_torch_dispatch_stack():
        return True
    return not _PLAIN.issuperset(map(type, arguments.values()))


class _Gradient(torch.autograd.Function):
    """A call and its gradient without the dispatcher: what register_autograd makes, a third of its time."""

    @staticmethod
    def forward(ctx: FunctionCtx, call: Call, backend: Backend, *arguments: object) -> Tensor | tuple[Tensor, Tensor]:
        ctx.registered = _REGISTERED[call.operation.name]
        output = ctx.registered.run(call, backend)
        ctx.registered.save_for_backward(ctx, call, backend, output)
        return output

    @staticmethod
    def backward(ctx: FunctionCtx, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        return None, None, *ctx.registered.gradients(ctx, ctx.needs_input_grad[2:], grads[0])


class _Registered:
    """The kernels of one operation's two operators."""

    def __init__(self, operation: Operation) -> None:
        self.operation = operation

    def register(self) -> None:
        name, schema = self.operation.name, self.operation.schema
        if self.operation.saves:
            _library.define(f"{name}({schema}, bool save, str backend) -> (Tensor output, Tensor saved)")
        else:
            _library.define(f"{name}({schema}, str backend) -> Tensor")
        _library.define(
            f"{name}_backward(Tensor grad, Tensor? output, Tensor? saved, {schema}, bool[] wanted, str backend)"
            " -> Tensor[]"
        )
        _library.impl(name, self.forward, "CompositeExplicitAutograd")
        _library.impl(f"{name}_backward", self.backward, "CompositeExplicitAutograd")
        torch.library.register_fake(f"cmslap::{name}", self.fake_forward, lib=_library)
        torch.library.register_fake(f"cmslap::{name}_backward", self.fake_backward, lib=_library)
        torch.library.register_autograd(
            f"cmslap::{name}",
            self.autograd_backward,
            setup_context=lambda ctx, inputs, output: self.save_for_backward(ctx, *self.split(inputs), output),
            lib=_library,
        )
        for device in ("cpu", "cuda"):
            _library.impl(name, functools.partial(self.autocast, device), f"Autocast{device.upper()}")

    def check(self, arguments: Sequence[object]) -> None:
        """What cmslap.ops has checked, callers of the operators have not; kernels would write out of bounds."""
        check(self.operation, dict(zip(self.operation.arguments, arguments, strict=False)))
        if forward_ad._current_level >= 0:  # PyTorch would take the derivative for zero
            raise BackendError(
                f"torch.ops.cmslap.{self.operation.name}, which compiled graphs call, has no forward-mode derivative; "
                f"cmslap.ops.{self.operation.name} has, uncompiled"
            )

    def split(self, inputs: Sequence[object]) -> tuple[Call, Backend]:
        arguments = dict(zip(self.operation.arguments, inputs, strict=False))
        save = self.operation.saves and inputs[-2]
        backend = named(inputs[-1], "backend") if inputs[-1] else choose(self.operation, arguments, needs_grad=save)
        return Call(self.operation, arguments, save and self.operation.name in backend.backward), backend

    def forward(self, *inputs: object) -> Tensor | tuple[Tensor, Tensor]:
        self.check(inputs)
        return self.run(*self.split(inputs))

    def run(self, call: Call, backend: Backend) -> Tensor | tuple[Tensor, Tensor]:
        output = backend.forward[self.operation.name](call)
        output = _like(output, call.activation, self.operation.result_dtype(call.arguments))
        if not self.operation.saves:
            return output
        return output, call.saved.to(output.dtype) if call.save else output.new_empty(0)

    def fake_forward(self, *inputs: object) -> Tensor | tuple[Tensor, Tensor]:
        call, backend = self.split(inputs)
        output = self.operation.empty_output(call.arguments)
        if not self.operation.saves:
            return output
        return output, output.new_empty(backend.saved_shape(call) if call.save else 0)

    def save_for_backward(
        self, ctx: FunctionCtx, call: Call, backend: Backend, output: Tensor | tuple[Tensor, Tensor]
    ) -> None:
        arguments = call.arguments
        output, saved = output if self.operation.saves else (output, None)
        ctx.set_materialize_grads(False)
        if saved is not None:
            ctx.mark_non_differentiable(saved)
        ctx.backend = backend
        ctx.options = {name: value for name, value in arguments.items() if name not in self.operation.shapes}
        # Without activation its signs do not matter, and the user may change the output in place.
        kept = output if self.operation.keeps_output and arguments["negative_slope"] != 1.0 else None
        ctx.save_for_backward(kept, saved, *(arguments[name] for name in self.operation.shapes))

    def autograd_backward(self, ctx: FunctionCtx, grad: Tensor | None, _: None = None) -> tuple[Tensor | None, ...]:
        gradients = self.gradients(ctx, ctx.needs_input_grad, grad)
        return *gradients, *([None] * (len(ctx.needs_input_grad) - len(gradients)))

    def gradients(self, ctx: FunctionCtx, needs_grad: Sequence[bool], grad: Tensor | None) -> list[Tensor | None]:
        """Of the arguments, those that are needed, from what :meth:`save_for_backward` kept."""
        output, saved, *tensors = ctx.saved_tensors
        arguments = {**ctx.options, **dict(zip(self.operation.shapes, tensors, strict=True))}
        needs = dict(zip(self.operation.arguments, needs_grad, strict=False))
        wanted = [name for name in self.operation.shapes if needs[name]]
        gradients: dict[str, Tensor] = {}
        kept = not self.operation.saves or saved.numel() > 0
        has_kernel = kept and self.operation.name in ctx.backend.backward
        if grad is None:
            pass
        elif not has_kernel or torch.is_grad_enabled():  # the latter: create_graph
            gradients = reference_gradients(self.operation, arguments, grad, wanted)
        else:
            if self.operation.keeps_output and output is None:
                layout = memory_format(self.operation.activation(arguments))
                output = grad = grad.contiguous(memory_format=layout)  # any tensor of its shape does
            if "skip" in wanted and arguments["negative_slope"] == 1.0:
                gradients["skip"] = grad
                wanted.remove("skip")
            call = Call(self.operation, arguments, grad=grad, output=output, saved=saved, wanted=wanted)
            gradients |= dict(zip(wanted, self.differentiate(call, ctx.backend), strict=True))
        return [gradients.get(name) for name in self.operation.arguments]

    def split_backward(self, inputs: Sequence[object]) -> Call:
        grad, output, saved, *rest = inputs
        arguments = dict(zip(self.operation.arguments, rest, strict=False))
        wanted = [name for name, mask in zip(self.operation.shapes, inputs[-2], strict=True) if mask]
        return Call(self.operation, arguments, grad=grad, output=output, saved=saved, wanted=wanted)

    def differentiate(self, call: Call, backend: Backend) -> list[Tensor]:
        """The gradients that are wanted, with the same detour as forward or without."""
        if not is_watched({"grad": call.grad, **call.arguments}):
            return self.run_backward(call, backend)
        mask = [name in call.wanted for name in self.operation.shapes]
        inputs = (call.arguments[name] for name in self.operation.arguments)
        operator = getattr(torch.ops.cmslap, f"{self.operation.name}_backward")
        return operator(call.grad, call.output, call.saved, *inputs, mask, backend.name)

    def backward(self, *inputs: object) -> list[Tensor]:
        call = self.split_backward(inputs)
        backend = named(inputs[-1], "backend")
        self.check_backward(call, backend)
        return self.run_backward(call, backend)

    def run_backward(self, call: Call, backend: Backend) -> list[Tensor]:
        gradients = backend.backward[self.operation.name](call)
        return [_like(gradients[name], call.arguments[name], call.arguments[name].dtype) for name in call.wanted]

    def check_backward(self, call: Call, backend: Backend) -> None:
        """What a backward kernel reads besides the arguments must be as the forward pass makes it."""
        self.check(tuple(call.arguments.values()))
        shape = self.operation.output_shape(call.arguments)
        for name, tensor in (("grad", call.grad), ("output", call.output)):
            if tensor is not None and list(tensor.shape) != shape:
                raise ArgumentError(f"{name} must be {shape} as the result is, got {list(tensor.shape)}")
        if self.operation.saves and call.saved is not None:
            saved = tuple(backend.saved_shape(call))
            if tuple(call.saved.shape) != saved:
                raise ArgumentError(f"saved must be {list(saved)}, got {list(call.saved.shape)}")

    def fake_backward(self, *inputs: object) -> list[Tensor]:
        call = self.split_backward(inputs)
        wanted = [call.arguments[name] for name in call.wanted]
        return [torch.empty_like(tensor, memory_format=memory_format(tensor)) for tensor in wanted]

    def autocast(self, device: str, *inputs: object) -> Tensor | tuple[Tensor, Tensor]:
        arguments = dict(zip(self.operation.arguments, inputs, strict=False))
        options = inputs[len(arguments) :]
        arguments = cast(self.operation, arguments, device)
        with torch._C._ExcludeDispatchKeyGuard(torch._C.DispatchKeySet(f"Autocast{device.upper()}")):
            return getattr(torch.ops.cmslap, self.operation.name)(*arguments.values(), *options)


def reference_value(operation: Operation, arguments: Arguments) -> Tensor:
    """What the reference makes of arguments that are in their dtypes already: autocast would also round the image."""
    device = operation.activation(arguments).device.type
    if not is_autocast(device):
        return operation.reference(**arguments)
    with torch.autocast(device, enabled=False):
        return operation.reference(**arguments)


def reference_gradients(
    operation: Operation, arguments: Arguments, grad: Tensor, wanted: Sequence[str]
) -> dict[str, Tensor]:
    """The reference's gradients for ``wanted``; differentiable themselves when grad mode is on."""
    create_graph = torch.is_grad_enabled()

    def fresh(name: str) -> Tensor:  # a node of its own, even where one tensor is given as two arguments
        tensor = arguments[name]
        return tensor.view_as(tensor) if create_graph else tensor.detach().requires_grad_()

    with torch.enable_grad():
        inputs = {name: fresh(name) for name in wanted}
        output = operation.reference(**{**arguments, **inputs})
        gradients = torch.autograd.grad(output, list(inputs.values()), grad, create_graph=create_graph)
    return dict(zip(wanted, gradients, strict=True))


def _like(result: Tensor, argument: Tensor, dtype: torch.dtype) -> Tensor:
    if result.dtype != dtype:
        result = result.to(dtype)
    return result.contiguous(memory_format=memory_format(argument))


_REGISTERED = {name: _Registered(operation) for name, operation in OPERATIONS.items()}
for _registered in _REGISTERED.values():
    _registered.register()
