"""A module's forward as a torch.fx graph, and what the graph takes for granted.

Tracing runs the user's Python once with symbolic tensors, so everything that Python decides is fixed. What could decide
otherwise at the next call is either recorded, so that :mod:`forward` can look before each call (attributes, submodules,
hooks), or makes the module untraceable (values and sizes of tensors, random numbers, grad mode, attributes it sets).
"""

from __future__ import annotations

import copy
import inspect
import operator
import random
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
ABSENT = inspect.Parameter.empty  # of an attribute or a default: a class, so it stays itself through pickle
_INTERNALS = frozenset(vars(nn.Module())) - {"training"}


class _Unfixed(TypeError):  # noqa: N818 (a finding, not an error)
    """Something a graph does not record; the message says what."""


class Untraceable(Exception):  # noqa: N818 (a finding, not an error)
    """A module whose forward can't be fixed in a graph; ``args`` are the module and why."""


@dataclass
class Assumptions:
    """What must still hold for a graph to mean what the module's forward means."""

    hooks: list[dict] = field(default_factory=list)  # of the modules the graph replaces; all must be empty
    children: list[tuple[nn.Module, list[nn.Module | None]]] = field(default_factory=list)
    attributes: list[tuple[nn.Module, str, object]] = field(default_factory=list)

    def replaces(self, module: nn.Module) -> None:
        """The graph does what ``module`` would: it must stay as it is."""
        self.hooks += [getattr(module, name) for name in HOOKS]
        self.attributes.append((module, "forward", vars(module).get("forward", ABSENT)))

    def hold(self) -> bool:
        return (
            not any(self.hooks)
            and all(list(module._modules.values()) == modules for module, modules in self.children)
            and all(module.__dict__.get(name, ABSENT) == value for module, name, value in self.attributes)
        )


@dataclass
class Trace:
    graph: fx.Graph
    assumptions: Assumptions
    leaves: list[nn.Module]  # modules the graph calls, in order


def trace(module: nn.Module, untraceable: set[nn.Module]) -> Trace:
    """Trace ``module.forward`` with every tensor argument symbolic and every other one at its default.

    Modules that are ``untraceable``, have hooks, or belong to PyTorch become calls. Raises Untraceable.
    """
    assumptions = Assumptions()
    tracer = _Tracer(untraceable, assumptions)
    before = _attributes(module)
    with recorded_reads(assumptions):
        try:
            with _drawing_nothing():
                graph = tracer.trace(module)
        except Exception as error:  # whatever the user's code raises when its tensors are symbolic
            raise Untraceable(tracer.culprit or module, _reason(error)) from error
        finally:
            changed = _undo(before)
    if changed:
        raise Untraceable(changed[0], "its forward() sets attributes")
    assumptions.children = list(_children(module, set(tracer.leaves)))
    return Trace(graph, assumptions, tracer.leaves)


def _children(module: nn.Module, leaves: set[nn.Module]) -> Iterator[tuple[nn.Module, list[nn.Module | None]]]:
    """The modules with submodules, down to those that are called, and these submodules."""
    if module not in leaves and module._modules:
        yield module, list(module._modules.values())
        for child in module.children():
            yield from _children(child, leaves)


def has_hooks(module: nn.Module) -> bool:
    return any(getattr(module, name) for name in HOOKS)


def is_pytorchs(module: nn.Module) -> bool:
    """Whether a module's class is one of torch.nn, whose code is known."""
    return type(module).__module__.startswith("torch.nn")


def defaults(forward: Callable[..., Any]) -> dict[str, object]:
    """The parameters of a forward but ``self``, and their defaults; ABSENT for those that take tensors."""
    parameters = list(inspect.signature(forward).parameters.values())[1:]
    if any(p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in parameters):
        raise _Unfixed("its forward() takes any number of arguments")
    if any(p.kind is p.KEYWORD_ONLY and p.default is ABSENT for p in parameters):
        raise _Unfixed("its forward() takes keywords only")
    return {p.name: p.default for p in parameters}


class _Proxy(fx.Proxy):
    """A symbolic tensor that knows in-place operators, and refuses to have its type asked by the user's code."""

    @property
    def __class__(self) -> type:  # read by isinstance(), which would say that no symbolic tensor is a Tensor
        asker = sys._getframe(1).f_globals.get("__name__", "")
        if not asker.startswith("torch.") and asker != __name__:
            raise _Unfixed("its forward() asks what type a tensor is")
        return type(self)


def _records(name: str) -> Callable[[fx.Proxy, object], fx.Proxy]:
    """``x += y`` as such: to torch.fx it is ``x = x + y``, which leaves other names of the tensor unchanged."""

    def in_place(self: fx.Proxy, other: object) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", getattr(operator, name), (self, other), {})

    return in_place


for _name in ("iadd", "isub", "imul", "itruediv", "ifloordiv", "imod", "ipow", "iand", "ior", "ixor", "imatmul"):
    setattr(_Proxy, f"__{_name}__", _records(_name))


class _Tracer(fx.Tracer):
    proxy_buffer_attributes = True

    def __init__(self, untraceable: set[nn.Module], assumptions: Assumptions) -> None:
        super().__init__()
        self.untraceable, self.assumptions = untraceable, assumptions
        self.leaves: list[nn.Module] = []
        self.inside: list[nn.Module] = []  # the submodules whose forward is running, outermost first
        self.culprit: nn.Module | None = None  # the innermost one that raised
        self.modes = _modes()

    def create_args_for_root(
        self, root_fn: Callable[..., Any], is_module: bool, concrete_args: dict[str, Any] | None = None
    ) -> tuple[Callable[..., Any], list[Any]]:
        """Placeholders for the arguments without default; the others keep theirs."""
        tensors = [name for name, default in defaults(root_fn).items() if default is ABSENT]
        return root_fn, [self.root, *(self.create_proxy("placeholder", name, (), {}) for name in tensors)]

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        foreign = isinstance(m, torch.jit.ScriptModule) or "forward" in vars(m)
        leaf = super().is_leaf_module(m, module_qualified_name)
        return leaf or foreign or m in self.untraceable or has_hooks(m)

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:  # noqa: ANN401 (whatever it returns)
        if self.is_leaf_module(m, self.path_of_module(m)):
            self.leaves.append(m)
            return super().call_module(m, forward, args, kwargs)
        self.assumptions.replaces(m)
        self.inside.append(m)
        try:
            with _drawing_nothing():
                return super().call_module(m, forward, args, kwargs)
        except Exception:
            self.culprit = self.culprit or self.inside[-1]
            raise
        finally:
            self.inside.pop()

    def create_arg(self, a: Any) -> fx.node.Argument:  # noqa: ANN401
        if type(a) is not _Proxy and isinstance(a, Tensor) and not isinstance(a, nn.Parameter):
            raise _Unfixed("its forward() uses tensors that are neither inputs, parameters nor buffers")
        return super().create_arg(a)

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:  # noqa: ANN401
        if _modes() != self.modes:
            raise _Unfixed("part of its forward() runs in a mode of its own (no_grad, autocast, checkpoint)")
        return super().create_node(*args, **kwargs)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)


def _modes() -> tuple[object, ...]:
    """What a ``with`` may change and a graph does not record."""
    devices = [device for device in ("cpu", "cuda") if torch.is_autocast_enabled(device)]
    return (
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        [(device, torch.get_autocast_dtype(device)) for device in devices],
        torch._C._autograd._top_saved_tensors_default_hooks(True),
    )


def _random_state() -> int:
    legacy = np.random.get_state()
    return hash((random.getstate(), legacy[1].tobytes(), legacy[2], torch.get_rng_state().numpy().tobytes()))


@contextmanager
def _drawing_nothing() -> Iterator[None]:
    before = _random_state()
    yield
    if _random_state() != before:
        raise _Unfixed("its forward() draws random numbers that do not depend on its inputs")


@contextmanager
def recorded_reads(assumptions: Assumptions) -> Iterator[None]:
    """Record every plain attribute of a module that is read meanwhile: a number, a flag, a list of such."""
    seen = {(id(module), name) for module, name, _ in assumptions.attributes}

    def read(module: nn.Module, name: str) -> object:
        value = object.__getattribute__(module, name)
        own = name in object.__getattribute__(module, "__dict__") and name not in _INTERNALS
        if own and (id(module), name) not in seen and _is_plain(value):
            seen.add((id(module), name))
            assumptions.attributes.append((module, name, copy.copy(value)))
        return value

    nn.Module.__getattribute__ = read
    try:
        yield
    finally:
        del nn.Module.__getattribute__


def _is_plain(value: object) -> bool:
    if isinstance(value, list | tuple | set):
        return all(map(_is_plain, value))
    if isinstance(value, dict):
        return all(map(_is_plain, value.values()))
    return value is None or isinstance(value, bool | int | float | str)


_CONTAINERS = (list, dict, set, OrderedDict)
_Attributes = dict[nn.Module, dict[str, tuple[object, object]]]


def _attributes(root: nn.Module) -> _Attributes:
    """Every attribute of every module below ``root``, and what was in those that are containers."""
    return {
        module: {
            name: (value, copy.copy(value) if type(value) in _CONTAINERS else None)
            for name, value in vars(module).items()
        }
        for module in root.modules()
    }


def _undo(before: _Attributes) -> list[nn.Module]:
    """Give every module its attributes back; the modules that had changed."""
    changed = []
    for module, attributes in before.items():
        for value, contents in attributes.values():
            if contents is not None and not _same_contents(value, contents):
                changed.append(module)
                value.clear()
                value.extend(contents) if isinstance(value, list) else value.update(contents)
        values = {name: value for name, (value, _) in attributes.items()}
        if not _same_contents(vars(module), values):
            changed.append(module)
            vars(module).clear()
            vars(module).update(values)
    return changed


def _same_contents(a: Any, b: Any) -> bool:  # noqa: ANN401 (two containers of one type)
    if isinstance(a, dict):
        return list(map(id, a)) == list(map(id, b)) and list(map(id, a.values())) == list(map(id, b.values()))
    return list(map(id, a)) == list(map(id, b))


def _reason(error: Exception) -> str:
    if isinstance(error, fx.proxy.TraceError):
        return "its forward() decides by the values or sizes of tensors"
    if isinstance(error, _Unfixed):
        return str(error)
    return f"its forward() can't be traced: {' '.join(str(error).split())[:120] or type(error).__name__}"
