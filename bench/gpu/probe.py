"""Try one backend on every operation and a training step, forward and backward: ``python -m bench.gpu.probe NAME``.

Small maps, compared with the reference. Exit status 1 if anything raises or is wrong, or if it serves no operation at
all; a kernel that hangs or breaks the device does so in this process, and ``make gpu`` then measures without that
backend.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass, replace

import torch

from bench.speed.work import OPERATIONS, Setting, operation
from cmslap import ops
from cmslap.models import CMSLapSRN
from cmslap.ops.dispatch import BACKENDS, BackendError, prefer_backend

# ‖difference‖ / ‖reference‖ in bfloat16, where rounding decides some activations' signs and so their gradients. Two
# right implementations are some 0.03 apart, a wrong one is about 1.
TOLERANCE = 0.2
SETTING = Setting(torch.device("cuda"), torch.bfloat16, batch=2, side=48, recursions=2)


@dataclass(frozen=True)
class Outcome:
    operation: str
    error: float | None  # the largest of outputs and gradients; None where the backend does not serve it
    reason: str = ""

    def __str__(self) -> str:
        error = "" if self.error is None else f"relative error {self.error:.1e}"
        return f"{self.operation:<24} {' '.join(filter(None, (self.reason, error)))}"


def probe(backend: str, setting: Setting = SETTING) -> list[Outcome]:
    """Every operation's error. Raises what the backend's kernels do."""
    outcomes = []
    for name in OPERATIONS:
        try:
            outcomes.append(Outcome(name, _error(name, backend, setting)))
        except BackendError as error:
            outcomes.append(Outcome(name, None, str(error)))
    if any(outcome.error is not None for outcome in outcomes):
        outcomes.append(_step(backend, setting))
    return outcomes


def _step(backend: str, setting: Setting) -> Outcome:
    """A network's gradient under autocast, as in training, where others may run what the backend can't."""
    model = CMSLapSRN(4, 2, setting.recursions, setting.channels, 1)
    model = model.to(setting.device, memory_format=torch.channels_last)
    image = torch.rand(setting.batch, 1, setting.side, setting.side, device=setting.device)

    def gradient() -> torch.Tensor:
        model.zero_grad()
        with torch.autocast(setting.device.type, setting.dtype, enabled=setting.dtype != torch.float32):
            outputs = model(image)
        sum(output.float().square().mean() for output in outputs).backward()
        return torch.cat([parameter.grad.flatten().float() for parameter in model.parameters()])

    with ops.use_backend("reference"):
        expected = gradient()
    with prefer_backend(backend) as ran:
        got = gradient()
    who = ", ".join(f"{operation} by {' and '.join(sorted(names))}" for operation, names in ran.items())
    return Outcome("training step", float((got - expected).norm() / expected.norm()), f"{who}:")


def _error(name: str, backend: str, setting: Setting) -> float:
    work = operation(name, True, setting)
    arguments = work.inputs[0]

    def results() -> list[torch.Tensor]:
        output = work.function(*arguments)
        return [output.detach(), *torch.autograd.grad(output, arguments, torch.ones_like(output))]

    with ops.use_backend("reference"):
        expected = results()
    with ops.use_backend(backend):
        got = results()
    errors = ((a.float() - b.float()).norm() / b.float().norm() for a, b in zip(got, expected, strict=True))
    return max(float(error) for error in errors)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("backend", choices=[backend.name for backend in BACKENDS])
    parser.add_argument("--cpu", action="store_true", help="on the CPU in float32 rather than a GPU in bfloat16")
    args = parser.parse_args()
    setting = replace(SETTING, device=torch.device("cpu"), dtype=torch.float32) if args.cpu else SETTING
    outcomes = probe(args.backend, setting)
    print(*outcomes, sep="\n")
    errors = [outcome.error for outcome in outcomes if outcome.error is not None]
    return int(not (errors and all(error <= TOLERANCE for error in errors)))  # a NaN is no success


if __name__ == "__main__":
    sys.exit(main())
