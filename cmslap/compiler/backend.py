"""The backend ``torch.compile(net, backend="cmslap")``: what Dynamo traced, fused, and the rest for Inductor."""

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
    found = Report()
    try:
        functional = functionalize(gm, inputs)
        found.add(*fuse(functional.graph, needs_grad, names or {}))
    except Unfit as finding:
        found.add([], [Skipped("", "a graph", str(finding))])
    log.info("%s", found)
    if report is not None:
        report.add(found.fused, found.left)
    if found.fused:
        functional.recompile()
        gm = functional
    devices = {x.device.type for x in inputs if isinstance(x, Tensor)}
    # Beside fused convolutions on the CPU, what Inductor gains on sums and activations it loses on memory formats.
    if (found.fused and devices == {"cpu"}) or not all(map(_has_compiler, devices)):
        return gm.forward
    return torch._TorchCompileInductorWrapper(mode, options, dynamic=None)(gm, inputs)


def _has_compiler(device: str) -> bool:
    if device != "cpu":
        return device == "cuda" and has_triton()
    from torch._inductor import cpp_builder, exc  # takes a second

    try:
        return bool(cpp_builder.get_cpp_compiler())
    except exc.InvalidCxxCompiler:
        return False
