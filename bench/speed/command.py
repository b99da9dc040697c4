"""``python -m bench``: fused operations against what a user would otherwise run, side by side on this machine."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from bench.speed import baselines, cpu, gpu, load, plots, scaling, table
from bench.speed.ceilings import measure_ceilings
from bench.speed.suite import measure_all
from cmslap.devices import find_device
from cmslap.errors import UserError
from cmslap.files import write_json
from cmslap.provenance import provenance

SUITES = {"cpu": cpu, "gpu": gpu, "scaling": scaling}
ROUNDS = {"quick": 5, "usual": 9, "full": 15}


class CaseError(UserError, ValueError):
    """A case the suite does not have."""


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--suite", choices=tuple(SUITES), default="cpu", help="what to measure (default: %(default)s)")
    effort = parser.add_mutually_exclusive_group()
    effort.add_argument(
        "--quick", action="store_true", help="under five minutes on two cores: fewer rounds and baselines"
    )
    effort.add_argument("--full", action="store_true", help="also what takes minutes a call or to compile")
    parser.add_argument("--case", action="append", metavar="NAME", help="measure this case only; may be repeated")
    parser.add_argument("--without", action="append", default=[], metavar="NAME", help="leave an implementation out")
    parser.add_argument("--rounds", type=_positive, metavar="N", help="turns of each implementation")
    parser.add_argument(
        "--limit", type=_positive, metavar="SECONDS", help="for each first call; leave out what takes longer"
    )
    parser.add_argument("--busy", type=_positive, metavar="N", help="while N other processes keep the processors busy")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write the figures and where they come from")
    parser.add_argument("--plot", type=Path, metavar="OUT.png", help="draw them, too")
    return parser


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, got {text!r}")
    return int(text)


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status 0, 1 where one of ours failed or the user made a mistake, 2 for a wrong command line."""
    args = build_parser().parse_args(argv)
    try:
        return run(args)
    except (UserError, OSError) as error:
        print(f"bench: error: {error}", file=sys.stderr)
        return 1


def run(args: argparse.Namespace) -> int:
    suite = SUITES[args.suite]
    device = find_device(suite.DEVICE)
    if args.plot:
        plots.check()
    effort = "quick" if args.quick else "full" if args.full else "usual"
    cases = suite.cases(effort)
    chosen = args.case or list(cases)
    for name in chosen:
        if name not in cases:
            raise CaseError(f"--case must be one of {', '.join(cases)}, got {name!r}")
    torch.backends.cudnn.benchmark = True  # the fastest algorithms for plain PyTorch on a GPU
    rounds = args.rounds or ROUNDS[effort]
    pace = suite.pace(effort, rounds, args.limit)
    start = time.monotonic()
    record: dict[str, Any] = {
        **provenance(device),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "runtimes": baselines.versions(),
        "on": device.type,
        "suite": args.suite,
        "effort": effort,
        "rounds": rounds,
        "busy": args.busy or 0,
        "ceilings": measure_ceilings(device, suite.DTYPE),
        "results": [],
    }
    print(table.heading(record), flush=True)
    with load.busy(record["busy"]):
        for result in measure_all({name: cases[name] for name in chosen}, pace, record["ceilings"], args.without):
            record["results"].append(result)
            record["seconds"] = round(time.monotonic() - start, 1)
            print(table.table(result) + "\n", flush=True)
            if args.json:  # after every case, so that an interruption loses one
                write_json(args.json, record)
    if args.plot:
        plots.PLOTS[args.suite](record, args.plot)
    return int(any(_ours_failed(result) for result in record["results"]))


def _ours_failed(result: dict[str, Any]) -> bool:
    return any(name.startswith(("cmslap", "all")) for name in result["failed"])
