"""What training recipes are worth: finished runs side by side, the first being what the others are compared with.

    python -m bench.experiments.recipes runs/base runs/muon runs/muon-low --out recipes.json

Runs ``cmslap train`` made, of which every one should have cost the same. Keeps of each what its configuration has
different from the first one's, and what it reached.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from cmslap.files import replacing
from cmslap.training.config import flat

SHARED = ("cmslap", "torch", "device", "threads", "commit")


def changes(base: dict[str, Any], config: dict[str, Any]) -> dict[str, Any]:
    """The settings that are not the base's, but for where the run lies and when it is looked at."""
    before, after = flat(base), flat(config)
    skipped = ("out", "validation.every")
    return {key: value for key, value in after.items() if key not in skipped and before.get(key) != value}


def row(base: dict[str, Any], record: dict[str, Any]) -> dict[str, Any]:
    images = record["step"] * record["config"]["batch"]
    return {
        "changes": changes(base["config"], record["config"]),
        "psnr": record["validation"][-1]["psnr"],
        "mean": record["validation"][-1]["mean"],
        "training_seconds": images / record["images_per_second"],
        **{key: record[key] for key in SHARED},
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
    report = {"config": records[0]["config"], "runs": [row(records[0], record) for record in records]}
    with replacing(args.out) as temporary:
        temporary.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
