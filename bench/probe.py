"""Try one backend on every operation, forward and backward: ``python -m bench.probe NAME``.

Small maps, compared with the reference. Exit status 1 if anything raises or is wrong; a kernel that hangs or breaks the
device does so in this process, and ``make gpu`` then measures without that backend.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass, replace

import torch

from cmslap import ops
from cmslap.benchmark.work import OPERATIONS, Setting, operation
from cmslap.ops.choice import NAMES

TOLERANCE = 0.05  # ‖difference‖ / ‖reference‖ in bfloat16, after as many convolutions as a level has
SETTING = Setting(torch.device("cuda"), torch.bfloat16, batch=2, side=48, recursions=2)


@dataclass(frozen=True)
class Outcome:
    operation: str
    error: float  # the largest of outputs and gradients


def probe(backend: str, setting: Setting = SETTING) -> list[Outcome]:
    """Every operation's error. Raises what the backend does."""
    return [Outcome(name, _error(name, backend, setting)) for name in OPERATIONS]


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
    parser.add_argument("backend", choices=NAMES)
    parser.add_argument("--cpu", action="store_true", help="on the CPU in float32 rather than a GPU in bfloat16")
    args = parser.parse_args()
    setting = replace(SETTING, device=torch.device("cpu"), dtype=torch.float32) if args.cpu else SETTING
    outcomes = probe(args.backend, setting)
    for outcome in outcomes:
        print(f"{outcome.operation:<24} relative error {outcome.error:.1e}")
    return int(not all(outcome.error <= TOLERANCE for outcome in outcomes))  # a NaN is no success


if __name__ == "__main__":
    sys.exit(main())
