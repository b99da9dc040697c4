"""What got faster or slower from one run to another: ``python -m bench.compare A.json B.json``.

A change counts when the two medians differ by more than ``--threshold`` percent and the ranges between the quartiles do
not meet. Exit status: 0 when nothing of cmslap's got slower, 1 when something did, 2 for files that can't be compared.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.speed.ceilings import arithmetic, memory
from bench.speed.table import seconds_text


@dataclass(frozen=True)
class Change:
    """Of one row: seconds a call before and after, and whether it is more than noise."""

    case: str
    implementation: str
    before: float
    after: float
    counts: bool

    @property
    def ours(self) -> bool:
        return self.implementation.startswith("cmslap")

    @property
    def slower(self) -> bool:
        return self.counts and self.after > self.before

    def __str__(self) -> str:
        times = self.after / self.before if self.slower else self.before / self.after
        verdict = f"{times:.2f}x {'slower' if self.slower else 'faster'}" if self.counts else "as fast"
        row = f"{verdict:<14}{self.implementation:<24}{self.case}"
        return f"{row}: {seconds_text(self.before)} -> {seconds_text(self.after)}"


def changes(before: dict[str, Any], after: dict[str, Any], threshold: float) -> Iterator[Change]:
    """Every row that both records have; ``threshold`` is a fraction."""
    known = {_title(result): result["timings"] for result in before["results"]}
    for result in after["results"]:
        case = _title(result)
        for name, new in result["timings"].items():
            old = known.get(case, {}).get(name)
            if old:
                yield Change(case, name, old["median"], new["median"], _counts(old, new, threshold))


def _title(result: dict[str, Any]) -> str:
    return f"{result['name']}, {result['dtype']}, {result['size']}"


def _counts(old: dict[str, float], new: dict[str, float], threshold: float) -> bool:
    apart = new["low"] > old["high"] or new["high"] < old["low"]
    return apart and abs(new["median"] / old["median"] - 1) > threshold


def machine(before: dict[str, Any], after: dict[str, Any]) -> str:
    """How much of a change may be the machine's."""
    rates = [rate(after["ceilings"]) / rate(before["ceilings"]) for rate in (arithmetic, memory)]
    text = "The machine itself, by the ceilings of the two runs: arithmetic {:.2f}x, memory {:.2f}x.".format(*rates)
    if before["device"] != after["device"] or before["threads"] != after["threads"]:
        text += " These are different machines."
    return text


def _read(path: Path, parser: argparse.ArgumentParser) -> dict[str, Any]:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        parser.error(f"{path}: {error}")
    if not isinstance(record, dict) or not {"ceilings", "results"} <= record.keys():
        parser.error(f"{path} is no result of `python -m bench --json`")
    return record


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("before", type=Path, metavar="A.json")
    parser.add_argument("after", type=Path, metavar="B.json")
    parser.add_argument("--threshold", type=float, default=3.0, help="percent that are noise (default: %(default)s)")
    parser.add_argument("--all", action="store_true", help="also list what stayed as fast")
    args = parser.parse_args(arguments)
    before, after = _read(args.before, parser), _read(args.after, parser)
    rows = list(changes(before, after, args.threshold / 100))
    if not rows:
        parser.error(f"{args.before} and {args.after} have no row in common")
    print(machine(before, after))
    for row in rows:
        if row.counts or args.all:
            print(row)
    unchanged = sum(not row.counts for row in rows)
    print(f"{len(rows)} rows compared, {unchanged} as fast as before")
    return int(any(row.ours and row.slower for row in rows))


if __name__ == "__main__":
    sys.exit(main())
