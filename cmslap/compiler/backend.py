"""The backend ``torch.compile(net, backend="cmslap")``: what Dynamo traced, fused, and the rest for Inductor."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, fx
from torch.utils._triton import has_triton

from cmslap.compiler.functional import Unfit, functionalize
from cmslap.compiler.fusing import fuse
from cmslap.compiler.report import Report, Skipped

log = logging.getLogger(__name__)


def cmslap(
    gm: fx.GraphModule,
    inputs: Sequence[object],
    *,
    mode: str | None = None,
    options: Mapping[str, object] | None = None,
    report: Report | None = None,
    names: Mapping[str, str] | None = None,
) -> Callable[..., object]:
    """Compile a graph of Dynamo's. ``mode`` and ``options`` are Inductor's; ``report`` learns what was fused.

    ``names`` are the modules' paths by ``str(id(module))``; without them the report goes by the paths Dynamo knows.
    """
    needs_grad = torch.is_grad_enabled() and any(isinstance(x, Tensor) and x.requires_grad for x in inputs)
    try:
        functional = functionalize(gm, inputs)
        fused, left = fuse(functional.graph, needs_grad, names or {})
    except Unfit as finding:
        functional, fused, left = None, [], [Skipped("", "a graph", str(finding))]
    found = Report()
    found.add(fused, left)
    log.info("%s", found)
    if report is not None:
        report.add(fused, left)
    if fused:
        functional.recompile()
        gm = functional
    devices = {x.device.type for x in inputs if isinstance(x, Tensor)}
    # Beside fused convolutions on the CPU, what Inductor gains on sums and activations it loses on memory formats.
    if (fused and devices == {"cpu"}) or not all(map(_has_compiler, devices)):
        return gm.forward
    from torch._inductor import list_mode_options  # takes a second
    from torch._inductor.compile_fx import compile_fx

    return compile_fx(gm, inputs, config_patches={**(list_mode_options(mode) if mode else {}), **(options or {})})


def _has_compiler(device: str) -> bool:
    if device != "cpu":
        return device == "cuda" and has_triton()
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        return bool(get_cpp_compiler())
    except InvalidCxxCompiler:
        return False
