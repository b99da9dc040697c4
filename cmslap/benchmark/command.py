"""``cmslap bench``: fused operations against what a user would otherwise run, side by side on this machine."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from cmslap.benchmark import cpu
from cmslap.benchmark.timing import take_turns
from cmslap.files import replacing
from cmslap.provenance import provenance

SUITES = {"cpu": cpu.cases}


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    parser = subparsers.add_parser(
        "bench", help="speed beside that of plain PyTorch and its peers", description=__doc__
    )
    parser.add_argument("--suite", choices=tuple(SUITES), default="cpu", help="what to measure (default: %(default)s)")
    parser.add_argument(
        "--rounds", type=_positive, default=9, metavar="N", help="calls of each implementation (default: %(default)s)"
    )
    parser.add_argument("--json", type=Path, metavar="OUT", help="write the figures and where they come from")
    parser.set_defaults(run=run)


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, got {text!r}")
    return int(text)


def run(args: argparse.Namespace) -> int:
    results = []
    for case in SUITES[args.suite]():
        timings = take_turns(case.implementations, args.rounds, case.name)
        results.append(case.to_json(timings))
        print(_table(results[-1]))
    if args.json:
        record = {**provenance(), "suite": args.suite, "rounds": args.rounds, "results": results}
        with replacing(args.json) as temporary:
            temporary.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return 0


def _table(result: dict[str, Any]) -> str:
    """One case: milliseconds (median and quartiles), the rate if counted directly, and the first one's speed-up."""
    lines = [f"{result['name']}, {result['size']}"]
    for name, t in result["timings"].items():
        milliseconds = f"{1e3 * t['median']:8.1f} ms ({1e3 * t['low']:.1f} to {1e3 * t['high']:.1f})"
        lines.append(
            f"  {name:<16}{milliseconds:<32}{result['gflop'] / t['median']:7.0f} GFLOP/s  {t['speedup']:5.2f}x"
        )
    lines += [f"  {name:<16}absent: {reason}" for name, reason in result["absent"].items()]
    return "\n".join(lines)
