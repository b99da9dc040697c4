"""``cmslap bench``: fused operations against what a user would otherwise run, side by side on this machine."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from cmslap.benchmark import cpu, gpu
from cmslap.devices import find_device
from cmslap.errors import UserError
from cmslap.files import replacing
from cmslap.provenance import provenance

SUITES = {"cpu": cpu, "gpu": gpu}
DEVICES = {"cpu": "cpu", "gpu": "cuda"}


class CaseError(UserError, ValueError):
    """A case the suite does not have."""


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    parser = subparsers.add_parser(
        "bench", help="speed beside that of plain PyTorch and its peers", description=__doc__
    )
    parser.add_argument("--suite", choices=tuple(SUITES), default="cpu", help="what to measure (default: %(default)s)")
    parser.add_argument(
        "--rounds", type=_positive, default=9, metavar="N", help="calls of each implementation (default: %(default)s)"
    )
    parser.add_argument("--case", metavar="NAME", help="measure this case of the suite only")
    parser.add_argument("--quick", action="store_true", help="leave torch.compile's max-autotune out")
    parser.add_argument(
        "--limit", type=_positive, metavar="SECONDS", help="for all first calls of a case; leave out what takes longer"
    )
    parser.add_argument("--json", type=Path, metavar="OUT", help="write the figures and where they come from")
    parser.set_defaults(run=run)


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, got {text!r}")
    return int(text)


def run(args: argparse.Namespace) -> int:
    suite = SUITES[args.suite]
    if args.case is not None and args.case not in suite.CASES:
        raise CaseError(f"--case must be one of {', '.join(suite.CASES)}, got {args.case!r}")
    record = {**provenance(find_device(DEVICES[args.suite])), "suite": args.suite, "rounds": args.rounds}
    record["results"] = []
    for result in suite.results(args.rounds, args.limit, args.case, args.quick):
        record["results"].append(result)
        print(table(result), flush=True)
        if args.json:  # after every case, so that an interruption loses one
            with replacing(args.json) as temporary:
                temporary.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    failures = (name for result in record["results"] for name in result["failed"])
    return int(any(name.startswith("cmslap") for name in failures))


def table(result: dict[str, Any]) -> str:
    """One case: milliseconds (median and quartiles), the rate if counted directly, and the first one's speed-up."""
    lines = [f"{result['name']}, {result['size']}"]
    width = 2 + max(map(len, [*result["timings"], *result["absent"], *result["failed"]]))
    for name, t in result["timings"].items():
        milliseconds = f"{1e3 * t['median']:9.3f} ms ({1e3 * t['low']:.3f} to {1e3 * t['high']:.3f})"
        line = f"  {name:<{width}}{milliseconds:<36}{result['gflop'] / t['median']:7.0f} GFLOP/s  {t['speedup']:5.2f}x"
        lines.append(line + _gpu_columns(t))
    lines += [f"  {name:<{width}}absent: {reason}" for name, reason in result["absent"].items()]
    lines += [f"  {name:<{width}}failed: {reason}" for name, reason in result["failed"].items()]
    return "\n".join(lines)


def _gpu_columns(timing: dict[str, Any]) -> str:
    """What the GPU suite adds: share of the roofline's floor, images a second, peak memory."""
    columns = ""
    if "share_of_floor" in timing:
        columns += f"  {timing['share_of_floor']:4.0%} of the floor"
    if "images_per_second" in timing:
        columns += f"  {timing['images_per_second']:.1f} images/s"
    if timing.get("peak_bytes") is not None:
        columns += f"  {timing['peak_bytes'] / 2**30:.2f} GiB"
    return columns
