"""A module's forward as a torch.fx graph, and what the graph takes for granted.

Tracing runs the user's Python once with symbolic tensors, so everything that Python decides is fixed. What could decide
otherwise at the next call is either recorded, so that :mod:`forward` can look before each call (attributes, submodules,
hooks), or makes the module untraceable (values, sizes and types of tensors, random numbers, modes, side effects,
objects whose changes could not be seen).
"""

from __future__ import annotations

import builtins
import copy
import dis
import enum
import functools
import inspect
import operator
import random
import sys
import types
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor, fx, nn

from cmslap.ops.registration import AUTOCAST_DEVICES

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
ABSENT = inspect.Parameter.empty  # of an attribute or a default: a class, so it stays itself through pickle
_UNRECORDED = frozenset(vars(nn.Module())) - {"training"} | {"forward"}  # looked at otherwise


class _Unfixed(TypeError):  # noqa: N818 (a finding, not an error)
    """Something a graph does not record; the message says what."""


class Untraceable(Exception):  # noqa: N818 (a finding, not an error)
    """A module whose forward can't be fixed in a graph; ``args`` are the module and why."""


class EquivalentForward:
    """A forward of an instance that does what its class's does."""


@dataclass
class Guards:
    """What must still hold for a graph to mean what the module's forward means."""

    hooks: list[dict] = field(default_factory=list)  # of the modules the graph replaces; all must be empty
    replaced: list[nn.Module] = field(default_factory=list)  # these; their forward must be that of their class
    children: list[tuple[nn.Module, list[nn.Module | None]]] = field(default_factory=list)
    attributes: list[tuple[nn.Module | type, str, object]] = field(default_factory=list)
    tensors: list[tuple[dict, str, bool]] = field(default_factory=list)  # parameters and buffers; whether absent
    constants: list[tuple[str, str, object]] = field(default_factory=list)  # global: module, name, value
    shared: list[tuple[dict, str, dict, str]] = field(default_factory=list)  # two names of one of them

    def replaces(self, module: nn.Module) -> None:
        """The graph does what ``module`` would: it must stay as it is."""
        self.hooks += [getattr(module, name) for name in HOOKS]
        self.replaced.append(module)

    def check(self) -> bool:
        """Runs at every call: loops, the quick comparison first."""
        if any(self.hooks):
            return False
        for module in self.replaced:
            forward = module.__dict__.get("forward")
            if forward is not None and not isinstance(forward, EquivalentForward):
                return False
        for module, modules in self.children:
            if list(module._modules.values()) != modules:
                return False
        for owner, name, value in self.attributes:
            now = owner.__dict__.get(name, ABSENT)
            if now is not value and now != value:
                return False
        return self._hold_outside()

    def _hold_outside(self) -> bool:
        """What few forwards look at."""
        for tensors, name, absent in self.tensors:
            if (tensors.get(name) is None) is not absent:
                return False
        for module, name, value in self.constants:
            if getattr(sys.modules.get(module), name, ABSENT) != value:
                return False
        return all(tensors.get(name) is others.get(other) for tensors, name, others, other in self.shared)


@dataclass
class Trace:
    graph: fx.Graph
    guards: Guards
    leaves: list[nn.Module]  # modules the graph calls, in order


def trace(module: nn.Module, untraceable: set[nn.Module]) -> Trace:
    """Trace ``module.forward`` with every tensor argument symbolic and every other one at its default.

    Modules that are ``untraceable``, have hooks, or belong to PyTorch become calls. Raises Untraceable.
    """
    guards = Guards()
    tracer = _Tracer(untraceable, guards)
    for submodule in module.modules():
        tracer.watch(submodule, vars(submodule))
    finding = None
    with recorded_reads(guards, tracer):
        try:
            with _drawing_nothing():
                tracer.look_at(type(module).forward)
                graph = tracer.trace(module)
            if tracer.refusal is not None:  # and the user's code caught it
                raise tracer.refusal
        except Exception as error:  # whatever the user's code raises when its tensors are symbolic
            finding = Untraceable(tracer.culprit or module, _reason(error))
        finally:
            changed = _undo(tracer.watched)
    if changed:
        reason = "its forward() changes globals" if changed[0] is None else "its forward() sets attributes"
        finding = Untraceable(changed[0] or module, reason)
    if finding is not None:
        raise finding
    guards.children = list(_children(module, set(tracer.leaves)))
    guards.shared = list(_shared(module))
    return Trace(graph, guards, tracer.leaves)


def _children(module: nn.Module, leaves: set[nn.Module]) -> Iterator[tuple[nn.Module, list[nn.Module | None]]]:
    """The modules with submodules, down to those that are called, and these submodules."""
    if module not in leaves and module._modules:
        yield module, list(module._modules.values())
        for child in module.children():
            yield from _children(child, leaves)


def _shared(root: nn.Module) -> Iterator[tuple[dict, str, dict, str]]:
    """Parameters and buffers with several names: the graph knows each by one of them."""
    first: dict[int, tuple[dict, str]] = {}
    for module in root.modules():
        for tensors in (module._parameters, module._buffers):
            for name, tensor in tensors.items():
                if id(tensor) in first:
                    yield *first[id(tensor)], tensors, name
                elif tensor is not None:
                    first[id(tensor)] = tensors, name


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


def _asked_by_user() -> bool:
    asker = sys._getframe(2).f_globals.get("__name__", "")
    return not asker.startswith("torch.") and asker not in (__name__, "copy")


class _Proxy(fx.Proxy):
    """A symbolic tensor that knows in-place operators, and refuses what it would answer otherwise than a tensor."""

    @property
    def __class__(self) -> type:  # read by isinstance(), which would say that no symbolic tensor is a Tensor
        if _asked_by_user():
            self.tracer.refuse("asks what type a tensor is")
        return type(self)

    def __getattr__(self, name: str) -> fx.Proxy:
        if not hasattr(Tensor, name):
            self.tracer.refuse(f"asks a tensor for .{name}")
        return _Attribute(self, name)

    def __setattr__(self, name: str, value: object) -> None:
        if name not in ("node", "tracer", "root", "attr", "_node"):
            self.tracer.refuse(f"sets .{name} of a tensor")
        super().__setattr__(name, value)

    def __setitem__(self, index: object, value: object) -> None:
        self.tracer.refuse("assigns to parts of a tensor")

    def __hash__(self) -> int:
        if _asked_by_user():
            self.tracer.refuse("looks a tensor or its size up")
        return id(self)

    def __repr__(self) -> str:
        if _asked_by_user():
            self.tracer.refuse("prints a tensor or its size")
        return super().__repr__()


class _Attribute(fx.proxy.Attribute, _Proxy):
    """A method or property of a symbolic tensor."""


def _refuses(self: _Proxy, *_: object) -> NoReturn:
    self.tracer.refuse(BY_VALUE)


for _name in ("int", "float", "complex", "index", "len", "contains", "array", "round", "trunc", "floor", "ceil"):
    setattr(_Proxy, f"__{_name}__", _refuses)


def _records(name: str) -> Callable[[fx.Proxy, object], fx.Proxy]:
    """``x += y`` as such: to torch.fx it is ``x = x + y``, which leaves other names of the tensor unchanged."""

    def in_place(self: fx.Proxy, other: object) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", getattr(operator, name), (self, other), {})

    return in_place


for _name in ("iadd", "isub", "imul", "itruediv", "ifloordiv", "imod", "ipow", "iand", "ior", "ixor", "imatmul"):
    setattr(_Proxy, f"__{_name}__", _records(_name))


class _Tracer(fx.Tracer):
    proxy_buffer_attributes = True

    def __init__(self, untraceable: set[nn.Module], guards: Guards) -> None:
        super().__init__()
        self.untraceable, self.guards = untraceable, guards
        self.leaves: list[nn.Module] = []
        self.inside: list[nn.Module] = []  # the submodules whose forward is running, outermost first
        self.culprit: nn.Module | None = None  # the innermost one that raised
        self.refusal: _Unfixed | None = None  # the first
        self.watched: dict[int, _Watched] = {}
        self.known: set[types.FunctionType] = set()
        self.modes = _modes()

    def refuse(self, what: str) -> NoReturn:
        """The forward that is running does what a graph does not record, and stays so if it catches this."""
        if self.refusal is None:
            self.refusal = _Unfixed(f"its forward() {what}")
            self.culprit = self.inside[-1] if self.inside else None
        raise self.refusal

    def watch(self, owner: nn.Module | None, value: object) -> None:
        """Remember what is in a container, and in those inside it; ``owner`` None for a global."""
        if id(value) in self.watched or not isinstance(value, (tuple, *_CONTAINERS)):
            return
        if isinstance(value, _CONTAINERS):
            self.watched[id(value)] = owner, value, copy.copy(value)
        for item in value.values() if isinstance(value, dict) else value:
            self.watch(owner, item)

    def look_at(self, function: object) -> None:
        """Refuse a function of the user's that asks for types or uses global objects that may change."""
        function = inspect.unwrap(function)
        if not isinstance(function, types.FunctionType) or function in self.known or _is_torchs(function):
            return
        self.known.add(function)
        if _assigns_outside(function):
            self.refuse("changes globals")
        for name, value in (*_globals(function), *inspect.getclosurevars(function).nonlocals.items()):
            if value is type:
                self.refuse("asks what type something is")
            self.look_at(value)
            self.watch(None, value)
            if not isinstance(value, types.ModuleType) and not is_known(value):
                self.refuse(f"uses {name}, whose changes can't be seen")
        constants = ((name, value) for name, value in _globals(function) if _is_plain(value))
        self.guards.constants += [(function.__module__, *constant) for constant in constants]

    def to_bool(self, obj: fx.Proxy) -> NoReturn:
        self.refuse(BY_VALUE)

    iter = keys = to_bool

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
        self.guards.replaces(m)
        self.inside.append(m)
        try:
            with _drawing_nothing():
                self.look_at(type(m).forward)
                return super().call_module(m, forward, args, kwargs)
        except Exception:
            self.culprit = self.culprit or self.inside[-1]
            raise
        finally:
            self.inside.pop()

    def create_arg(self, a: Any) -> fx.node.Argument:  # noqa: ANN401
        if not issubclass(type(a), _Proxy) and isinstance(a, Tensor) and not isinstance(a, nn.Parameter):
            self.refuse("uses tensors that are neither inputs, parameters nor buffers")
        if isinstance(a, dict) and type(a) not in (dict, fx.immutable_collections.immutable_dict):
            self.refuse(f"makes a {type(a).__name__}")  # of which torch.fx makes a dict
        return super().create_arg(a)

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:  # noqa: ANN401
        if _modes() != self.modes:
            self.refuse("runs in part in a mode of its own (no_grad, autocast, checkpoint)")
        return super().create_node(*args, **kwargs)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)


def _modes() -> tuple[object, ...]:
    """What a ``with`` may change and a graph does not record."""
    devices = [device for device in AUTOCAST_DEVICES if torch.is_autocast_enabled(device)]
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
def recorded_reads(guards: Guards, tracer: _Tracer | None = None) -> Iterator[None]:
    """Record every plain attribute of a module that is read meanwhile: a number, a flag, a function, a list of such.

    With a tracer, which runs the user's code, also what comes from elsewhere than the module's own attributes; and the
    tracer refuses objects whose changes could not be seen.
    """
    seen = {(id(owner), name) for owner, name, _ in guards.attributes}

    def read(module: nn.Module, name: str) -> object:
        if (id(module), name) not in seen and name not in _UNRECORDED and not name.startswith("__"):
            seen.add((id(module), name))
            _record(module, name, guards, tracer)
        return object.__getattribute__(module, name)

    nn.Module.__getattribute__ = read
    try:
        yield
    finally:
        del nn.Module.__getattribute__


def _record(module: nn.Module, name: str, guards: Guards, tracer: _Tracer | None) -> None:
    own = object.__getattribute__(module, "__dict__")
    if name in own:
        if is_known(own[name]):
            guards.attributes.append((module, name, _copied(own[name])))
        elif tracer is not None:
            tracer.refuse(f"reads {name}, a {type(own[name]).__name__}, whose changes can't be seen")
        if tracer is not None:
            tracer.look_at(own[name])
    elif tracer is not None:
        _record_foreign(module, name, own, guards, tracer)


def _record_foreign(module: nn.Module, name: str, own: dict[str, Any], guards: Guards, tracer: _Tracer) -> None:
    """What is read of a module that is not among its own attributes must not be there later."""
    owner = next((base for base in type(module).__mro__ if name in vars(base)), None)
    if owner is not None and _is_torchs(owner):
        return
    guards.attributes.append((module, name, ABSENT))
    if owner is None:
        found = own["_parameters"], own["_buffers"]
        guards.tensors += [(tensors, name, tensors.get(name) is None) for tensors in found]
        return
    value = vars(owner)[name]
    if _is_plain(value):
        guards.attributes.append((owner, name, value))
    elif not is_known(value) and not isinstance(value, property | staticmethod | classmethod):
        tracer.refuse(f"reads {name}, a {type(value).__name__}, whose changes can't be seen")
    tracer.watch(None, value)
    tracer.look_at(value.fget if isinstance(value, property) else value)


_PLAIN = (bool, int, float, complex, str, bytes, enum.Enum, np.generic, type(None), type(Ellipsis), range, slice)
_FIXED = (
    *(types.FunctionType, types.BuiltinFunctionType, types.MethodDescriptorType, type, functools.partial, nn.Module),
    *(torch.dtype, torch.device, torch.memory_format, torch.layout),
)
_CONTAINERS = (list, dict, set, deque)
_KNOWN_CONTAINERS = {list, dict, set, OrderedDict, defaultdict, deque}
_Watched = tuple[nn.Module | None, Any, Any]  # whose it is, a container, a copy


def _is_plain(value: object) -> bool:
    return isinstance(value, _PLAIN)


def is_known(value: object) -> bool:
    """Whether comparing a value with a copy of it shows every change."""
    if isinstance(value, dict) and type(value) in _KNOWN_CONTAINERS:
        return all(map(_is_plain, value)) and all(map(is_known, value.values()))
    if isinstance(value, tuple) or type(value) in _KNOWN_CONTAINERS:
        return all(map(is_known, value))
    return isinstance(value, (*_PLAIN, *_FIXED))


def _copied(value: Any) -> Any:  # noqa: ANN401
    """New containers, with the same in them."""
    if isinstance(value, dict):
        return {name: _copied(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return (list if isinstance(value, list) else tuple)(map(_copied, value))
    return copy.copy(value) if isinstance(value, _CONTAINERS) else value


def _globals(function: types.FunctionType) -> Iterator[tuple[str, object]]:
    """The global variables that a function, or one defined in it, reads."""
    for instruction in _instructions(function.__code__):
        if instruction.opname == "LOAD_GLOBAL":
            name = instruction.argval
            yield name, function.__globals__.get(name, getattr(builtins, name, ABSENT))


def _assigns_outside(function: types.FunctionType) -> bool:
    """Whether it changes global variables, or those of a function around it."""
    return any(
        instruction.opname in ("STORE_GLOBAL", "DELETE_GLOBAL")
        or (instruction.opname == "STORE_DEREF" and instruction.argval in function.__code__.co_freevars)
        for instruction in _instructions(function.__code__)
    )


def _instructions(code: types.CodeType) -> Iterator[dis.Instruction]:
    yield from dis.get_instructions(code)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _instructions(constant)


def _is_torchs(value: type | types.FunctionType) -> bool:
    return f"{value.__module__}.".startswith("torch.")


def _undo(watched: dict[int, _Watched]) -> list[nn.Module | None]:
    """Give every container its contents back; the owners of those that had changed."""
    changed = []
    for owner, container, contents in watched.values():
        if not _same_contents(container, contents):
            changed.append(owner)
            container.clear()
            container.update(contents) if isinstance(container, dict | set) else container.extend(contents)
    return changed


def _same_contents(a: Any, b: Any) -> bool:  # noqa: ANN401 (two containers of one type)
    if isinstance(a, dict):
        return list(map(id, a)) == list(map(id, b)) and list(map(id, a.values())) == list(map(id, b.values()))
    return list(map(id, a)) == list(map(id, b))


BY_VALUE = "decides by the values or sizes of tensors"


def _reason(error: Exception) -> str:
    if isinstance(error, _Unfixed):
        return str(error)
    return f"its forward() can't be traced: {' '.join(str(error).split())[:120] or type(error).__name__}"
