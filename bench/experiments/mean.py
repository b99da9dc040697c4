"""The mean of several checkpoints of one training, which can be better than each of them.

    python -m bench.experiments.mean "its best checkpoint=runs/d5r2/best.safetensors" \\
        "the weights it began from=began-from.safetensors" \\
        --record runs/d5r2/record.json --out cmslap/weights/cms-lapsrn-d5r2.safetensors

Beside it, as ``.json``, goes the record with the names and hashes of what was averaged.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from pathlib import Path

import torch

from cmslap.checkpoints.checkpoint import load_model, save_model
from cmslap.files import write_json
from cmslap.models import Network


def mean(networks: list[Network]) -> Network:
    """A network of the first one's architecture; parameters are added in float64."""
    states = [network.state_dict() for network in networks]
    network = networks[0]
    network.load_state_dict(
        {name: torch.stack([state[name].double() for state in states]).mean(0) for name in states[0]}
    )
    return network


def _named(text: str) -> tuple[str, Path]:
    name, _, path = text.partition("=")
    if not name or not path:
        raise argparse.ArgumentTypeError(f"must be NAME=CHECKPOINT, got {text!r}")
    return name, Path(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoints", nargs="+", metavar="NAME=CHECKPOINT", type=_named)
    parser.add_argument("--record", type=Path, required=True, help="the training's record.json")
    parser.add_argument("--out", type=Path, required=True, help="the safetensors file to write")
    args = parser.parse_args()
    record = json.loads(args.record.read_text(encoding="utf-8"))
    paths = dict(args.checkpoints)
    record["mean_of"] = {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in paths.items()}
    save_model(mean([load_model(path) for path in paths.values()]), args.out)
    write_json(args.out.with_suffix(".json"), record)


if __name__ == "__main__":
    main()
