"""The forward an accelerated module gets: a traced graph's code where what it assumes holds, else the module's own.

It is an attribute of the instance, found before the class's method. It holds no parameters: the code reads them from
the module, so that names, identities, devices and dtypes stay the module's own affair.
"""

from __future__ import annotations

import importlib
import inspect
import types
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.autograd import forward_ad

from cmslap.compiler.tracing import ABSENT, EquivalentForward, Guards, defaults


class Modules:
    """The modules a graph's code reads parameters of or calls, as attributes: found at once, however deep they lie."""


class Variant:
    """A graph as Python code, and what it assumes. Pickles as source text."""

    def __init__(self, graph: fx.Graph, root: nn.Module, guards: Guards) -> None:
        self.modules = _bind(graph, root)
        code = graph.python_code("self")  # which is what fx calls the first parameter
        self.source, self.guards = code.src, guards
        used = _names(compile(self.source, "<accelerated forward>", "exec"))
        self.names = {name: value for name, value in code.globals.items() if name in used}
        self.function = self._compiled()

    def _compiled(self) -> Callable[..., Any]:
        namespace = dict(self.names)
        exec(compile(self.source, "<accelerated forward>", "exec"), namespace)
        return namespace["forward"]

    def __getstate__(self) -> dict[str, Any]:
        names = {name: _Import(v.__name__) if isinstance(v, types.ModuleType) else v for name, v in self.names.items()}
        return {"source": self.source, "names": names, "modules": self.modules, "guards": self.guards}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.source, self.modules, self.guards = state["source"], state["modules"], state["guards"]
        self.names = {name: v.load() if isinstance(v, _Import) else v for name, v in state["names"].items()}
        self.function = self._compiled()


def _bind(graph: fx.Graph, root: nn.Module) -> Modules:
    """Shorten the graph's paths to one attribute of the result."""
    modules = Modules()
    names: dict[nn.Module, str] = {}
    for node in graph.nodes:
        if node.op in ("get_attr", "call_module"):
            path, _, attribute = node.target.rpartition(".") if node.op == "get_attr" else (node.target, "", "")
            module = root.get_submodule(path)
            name = names.setdefault(module, f"m{len(names)}")
            setattr(modules, name, module)
            node.target = f"{name}.{attribute}" if attribute else name
    return modules


class _Import:
    """A Python module, which does not pickle."""

    def __init__(self, name: str) -> None:
        self.name = name

    def load(self) -> types.ModuleType:
        return importlib.import_module(self.name)


def _names(code: types.CodeType) -> set[str]:
    nested = (_names(constant) for constant in code.co_consts if isinstance(constant, types.CodeType))
    return set(code.co_names).union(*nested)


class AcceleratedForward(EquivalentForward):
    """Callable in the place of ``module.forward``."""

    def __init__(self, module: nn.Module, variants: list[Variant]) -> None:
        self.module, self.variants = module, variants
        self.parameters = defaults(type(module).forward)

    @property
    def __signature__(self) -> inspect.Signature:
        return inspect.signature(types.MethodType(type(self.module).forward, self.module))

    @property
    def __code__(self) -> types.CodeType:  # torch.export reads the arguments' names from it
        return type(self.module).forward.__code__

    def __call__(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 (as the module's own)
        tensors = self._tensors(args, kwargs)
        if tensors is not None and not nn.modules.module._has_any_global_hook() and not _observed():
            for variant in self.variants:
                if variant.guards.check():
                    return variant.function(variant.modules, *tensors)
        return type(self.module).forward(self.module, *args, **kwargs)

    def _tensors(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor] | None:
        """The tensor arguments; None for a call the graph was not traced for."""
        if len(args) > len(self.parameters) or not kwargs.keys() <= self.parameters.keys():
            return None
        given = dict(zip(self.parameters, args, strict=False)) | kwargs
        tensors = []
        for name, default in self.parameters.items():
            value = given.get(name, default)
            if default is ABSENT:
                if not isinstance(value, Tensor):
                    return None
                tensors.append(value)
            elif value is not default and not _equal(value, default):
                return None
        return tensors


def _equal(value: object, default: object) -> bool:
    return type(value) is type(default) and isinstance(value, bool | int | float | str) and value == default


def _observed() -> bool:
    """Whether torch.func, forward-mode differentiation or an export looks on.

    To the former our operators are opaque; the latter would fix for good what is decided by size at each call.
    """
    return (
        torch._C._are_functorch_transforms_active()
        or forward_ad._current_level >= 0
        or torch.compiler.is_exporting()
        or torch.jit.is_tracing()
    )
