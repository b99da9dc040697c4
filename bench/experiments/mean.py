"""The mean of several checkpoints of one training, which can be better than each of them.

    python -m bench.experiments.mean "its averaged weights=runs/d5r2/last.safetensors" \\
        "the first stretch's best checkpoint=runs/first/best.safetensors" --parts 16 1 \\
        --record runs/d5r2/record.json --out cmslap/weights/cms-lapsrn-d5r2.safetensors

Beside it, as ``.json``, goes the record with the names, parts and hashes of what was averaged.
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


def mean(networks: list[Network], parts: list[float]) -> Network:
    """A network of the first one's architecture, of so many parts of each; parameters are added in float64."""
    states = [network.state_dict() for network in networks]
    shares = torch.tensor(parts, dtype=torch.float64) / sum(parts)
    network = networks[0]
    network.load_state_dict(
        {
            name: sum(share * state[name].double() for share, state in zip(shares, states, strict=True))
            for name in states[0]
        }
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
    parser.add_argument("--parts", nargs="+", type=float, help="how much of each, in their order (default: the same)")
    parser.add_argument("--record", type=Path, required=True, help="the training's record.json")
    parser.add_argument("--out", type=Path, required=True, help="the safetensors file to write")
    args = parser.parse_args()
    record = json.loads(args.record.read_text(encoding="utf-8"))
    paths = dict(args.checkpoints)
    parts = args.parts or [1.0] * len(paths)
    if len(parts) != len(paths) or min(parts) <= 0:
        parser.error(f"--parts must be {len(paths)} positive numbers, one for each checkpoint, got {args.parts}")
    record["mean_of"] = {
        name: {"parts": part, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
        for (name, path), part in zip(paths.items(), parts, strict=True)
    }
    save_model(mean([load_model(path) for path in paths.values()], parts), args.out)
    write_json(args.out.with_suffix(".json"), record)


if __name__ == "__main__":
    main()
