"""``accelerate``: any network's 3×3 convolutions on the operations of ``cmslap.ops``, without touching the network.

Read on in the order of the work: tracing (the forward as a graph), patterns and fusing (its rewriting, with aliasing
for what must not move), recursion (blocks that repeat), layout (memory formats), calls (what the rewritten code calls),
forward (what the module gets).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from cmslap.compiler.forward import AcceleratedForward, Variant
from cmslap.compiler.fusing import fuse
from cmslap.compiler.report import Fused, Report, Skipped, join
from cmslap.compiler.tracing import Trace, Untraceable, has_hooks, is_pytorchs, trace
from cmslap.errors import UserError
from cmslap.models import CMSLapSRN, LapSRN, MSLapSRN
from cmslap.ops.registration import AUTOCAST_DEVICES

__all__ = ["Fused", "Report", "Skipped", "accelerate", "restore"]


class ModuleError(UserError, TypeError):
    """Something to accelerate that is no module."""


def accelerate(module: nn.Module) -> Report:
    """Run a network's 3×3 convolutions, and the activations, skips and recursions around them, on ``cmslap.ops``.

    In place: ``module`` and its submodules get a new ``forward``; parameters, buffers, names and hooks stay the same
    objects, so state_dict, optimizers, DDP, ``copy.deepcopy`` and ``torch.save`` work as before. Each call of an
    operation decides by device, dtype and size whether it pays, and runs PyTorch's own functions where not.

    Results are the same to the precision's tolerance, and have the layout they had. Before each call what was taken
    for granted is compared: the attributes of modules that the forward reads, plain class attributes and global
    constants, hooks, submodules, which parameters are shared, and arguments with a default. Where one differs the
    module's own code runs; so it does in ``torch.func``'s transforms, exports and ``torch.jit.trace``. Its submodules
    run accelerated for themselves then, as they do when called from outside.

    Limits: later changes of globals that are no constants, of closures and of containers of a class are not noticed,
    nor are side effects of functions that a forward reaches through another Python module. A tensor added to a
    convolution may not change in place before backward has run: PyTorch says so if it does. ``nn.DataParallel``,
    ``torch.jit.script`` and ``copy.copy`` of a module need :func:`restore` first: the copy would run the original.

    Returns what was fused, what was left alone, and why; ``print`` it. Raises ModuleError, a TypeError, for anything
    but a module.
    """
    if not isinstance(module, nn.Module):
        raise ModuleError(f"module must be an nn.Module, got {type(module).__name__}")
    restore(module)
    work = _Work(Report())
    work.accelerate(module, "")
    work.accelerate_inside()
    return work.report


def restore(module: nn.Module) -> None:
    """Undo :func:`accelerate`, on ``module`` and everything in it. A module that was not accelerated stays as it is."""
    for submodule in module.modules():
        if isinstance(vars(submodule).get("forward"), AcceleratedForward):
            del submodule.forward


class _Work:
    """One call of accelerate."""

    def __init__(self, report: Report) -> None:
        self.report = report
        self.done: set[nn.Module] = set()
        self.inside: list[nn.Module] = []  # what modules with a new forward consist of

    def accelerate(self, module: nn.Module, path: str) -> None:
        """Replace a module's forward if it can be traced; those of its submodules where it can't."""
        if module in self.done:
            return
        self.done.add(module)
        if isinstance(module, CMSLapSRN | MSLapSRN | LapSRN):
            self.report.add(path, [], [Skipped("", type(module).__name__, "it runs on cmslap.ops already")])
            return
        reason = _unfit(module)
        if reason is None:
            try:
                self.install(module, path, _traces(module))
            except Untraceable as finding:
                reason = finding.args[1]
        if reason is not None:
            if reason:
                self.report.add(path, [], [Skipped("", type(module).__name__, reason)])
            for name, child in module.named_children():
                self.accelerate(child, join(path, name))

    def install(self, module: nn.Module, path: str, traces: list[Trace]) -> None:
        """Rewrite the graphs, and give the module a forward that runs them if there is anything to gain."""
        paths = {submodule: join(path, name) for name, submodule in module.named_modules()}
        leaves = [leaf for traced in traces for leaf in traced.leaves]
        results = [fuse(traced, module) for traced in traces]
        if any(fused for fused, _ in results):
            module.forward = AcceleratedForward(module, _variants(module, traces))
            self.inside += module.children()
        for fused, left in results:
            self.report.add(path, fused, left)
        for leaf in leaves:
            if not is_pytorchs(leaf) or has_hooks(leaf):
                self.accelerate(leaf, paths[leaf])

    def accelerate_inside(self) -> None:
        """The submodules for themselves, for calls that their module's graph does not serve. The report knows them."""
        while self.inside:
            rest = _Work(Report())
            rest.done = self.done
            for module in self.inside:
                rest.accelerate(module, "")
            self.inside = rest.inside


def _unfit(module: nn.Module) -> str | None:
    """Why not to look at a module's own forward; "" where there is nothing to say."""
    if isinstance(module, torch.jit.ScriptModule):
        return "it is a script"
    if "forward" in vars(module):
        return "its forward() was replaced"
    has_none = type(module).forward is nn.Module.forward
    if has_none or (is_pytorchs(module) and not isinstance(module, nn.Sequential | nn.Conv2d)):
        return ""
    return None


def _traces(module: nn.Module) -> list[Trace]:
    """Traces in training and in evaluation mode; submodules that can't be traced are left as calls in both.

    Raises Untraceable for the module itself.
    """
    untraceable: set[nn.Module] = set()
    while True:
        try:
            return [_trace(module, untraceable, training) for training in (True, False)]
        except Untraceable as finding:
            culprit = finding.args[0]
            if culprit is module:
                raise
            untraceable.add(culprit)


def _trace(module: nn.Module, untraceable: set[nn.Module], training: bool) -> Trace:
    with _mode(module, training), _autocast(False), torch.enable_grad():
        traced = trace(module, untraceable)
        with torch.no_grad():
            without_gradients = trace(module, untraceable)
        with _autocast(True):
            with_autocast = trace(module, untraceable)
    for other, what in ((without_gradients, "gradients are recorded"), (with_autocast, "autocast is on")):
        if traced.graph.python_code("self").src != other.graph.python_code("self").src:
            raise Untraceable(module, f"its forward() asks whether {what}")
    return traced


@contextmanager
def _autocast(enabled: bool) -> Iterator[None]:
    """As an outer torch.autocast would, on every device, there or not."""
    before = {device: torch.is_autocast_enabled(device) for device in AUTOCAST_DEVICES}
    try:
        for device in before:
            torch.set_autocast_enabled(device, enabled)
        yield
    finally:
        for device, value in before.items():
            torch.set_autocast_enabled(device, value)


@contextmanager
def _mode(module: nn.Module, training: bool) -> Iterator[None]:
    before = {submodule: submodule.training for submodule in module.modules()}
    try:
        for submodule in before:
            submodule.training = training  # not train(), which some override
        yield
    finally:
        for submodule, value in before.items():
            submodule.training = value


def _variants(module: nn.Module, traces: list[Trace]) -> list[Variant]:
    """One variant where training and evaluation are the same."""
    first, second = (Variant(traced.graph, module, traced.guards) for traced in traces)
    same = first.source == second.source and first.guards.attributes == second.guards.attributes
    return [first] if same else [first, second]
