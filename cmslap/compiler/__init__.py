"""``torch.compile(net, backend="cmslap")``: any network's 3×3 convolutions on the operations of ``cmslap.ops``.

Read on in the order of the work: backend, functional (the graph without mutation), fusing (its rewriting, node by
node), eligibility (what is left to PyTorch), recursion (blocks that repeat), layout (memory formats).
"""

from functools import partial
from weakref import WeakSet

import torch
from torch import nn

from cmslap.compiler.backend import cmslap
from cmslap.compiler.report import Fused, Report, Skipped
from cmslap.errors import UserError

__all__ = ["Fused", "Report", "Skipped", "accelerate", "restore"]

_accelerated: WeakSet[nn.Module] = WeakSet()


class ModuleError(UserError, TypeError):
    """Something to accelerate that is no module."""


def accelerate(module: nn.Module, **options: object) -> Report:
    """``module.compile(backend="cmslap", **options)``, with a report of what was fused, what was not, and why.

    In place, and undone by :func:`restore`. The report fills as calls compile: print it after the first one.
    Raises ModuleError, a TypeError, for anything but a module.
    """
    if not isinstance(module, nn.Module):
        raise ModuleError(f"module must be an nn.Module, got {type(module).__name__}")
    report = Report()

    def call(*args: object, **kwargs: object) -> object:
        return module._call_impl(*args, **kwargs)

    # As module.compile(), but that passes over PyTorch's own modules, such as nn.Sequential. Dynamo limits how often
    # one code object is compiled, so each module has its own.
    call.__code__ = call.__code__.replace()
    names = {str(id(submodule)): name for name, submodule in module.named_modules()}
    backend = partial(cmslap, report=report, names=names)
    module._compiled_call_impl = torch.compile(call, backend=backend, **options)
    _accelerated.add(module)
    return report


def restore(module: nn.Module) -> None:
    """Undo :func:`accelerate`, on ``module`` and everything in it. A module that was not accelerated stays as it is."""
    for submodule in module.modules():
        if submodule in _accelerated:
            vars(submodule).pop("_compiled_call_impl", None)
            _accelerated.discard(submodule)
