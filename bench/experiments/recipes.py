"""What training recipes are worth: finished runs side by side, the first being what the others are compared with.

    python -m bench.experiments.recipes runs/base-0 runs/base-1 runs/muon-0 runs/muon-1 --out recipes.json

Runs ``cmslap train`` made, of which every one should have cost the same. Those that differ in the seed alone are
one recipe: kept are the means of what they reached and the spread of their mean PSNR, from the lowest to the highest.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from statistics import fmean
from typing import Any

from cmslap.files import write_json
from cmslap.training.config import flat

SHARED = ("cmslap", "torch", "device", "threads", "commit")


def changes(base: dict[str, Any], config: dict[str, Any]) -> dict[str, Any]:
    """The settings that are not the base's, but for the seed, where the run lies and when it is looked at."""
    before, after = flat(base), flat(config)
    skipped = ("out", "seed", "validation.every")
    return {key: value for key, value in after.items() if key not in skipped and before.get(key) != value}


def row(changed: dict[str, Any], records: list[dict[str, Any]]) -> dict[str, Any]:
    """One recipe's runs."""
    reached = [record["validation"][-1] for record in records]
    means = [last["mean"] for last in reached]
    seconds = [record["step"] * record["config"]["batch"] / record["images_per_second"] for record in records]
    return {
        "changes": changed,
        "seeds": sorted(record["config"]["seed"] for record in records),
        "psnr": {name: fmean(last["psnr"][name] for last in reached) for name in reached[0]["psnr"]},
        "mean": fmean(means),
        "spread": max(means) - min(means),
        "training_seconds": fmean(seconds),
        **{key: records[0][key] for key in SHARED},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, help="folders of finished runs")
    parser.add_argument("--out", type=Path, required=True, help="the JSON file to write")
    args = parser.parse_args()
    records = [json.loads((run / "record.json").read_text(encoding="utf-8")) for run in args.runs]
    for run, record in zip(args.runs, records, strict=True):
        if record["step"] < record["config"]["steps"]:
            parser.error(f"{run}: stopped after {record['step']} of {record['config']['steps']} steps")
    base = records[0]["config"]
    changed = [changes(base, record["config"]) for record in records]
    distinct = [value for number, value in enumerate(changed) if value not in changed[:number]]
    rows = [
        row(value, [record for record, own in zip(records, changed, strict=True) if own == value]) for value in distinct
    ]
    report = {"config": base, "runs": rows}
    write_json(args.out, report)


if __name__ == "__main__":
    main()
