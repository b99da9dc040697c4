"""``cmslap train``: train a network from a TOML file."""

from __future__ import annotations

import argparse
import shlex

from cmslap.training import config

DESCRIPTION = """\
Train a network as a TOML file says. Settings can be changed on the command line by their dotted keys.

  cmslap train paper data.train='["DIV2K/HR"]' out=runs/paper
  cmslap train my.toml optimizer.lr=1e-3 steps=20000
  cmslap train my.toml --resume
  torchrun --nproc-per-node 8 -m cmslap train my.toml

The directory `out` receives last.pt (to resume from), last.safetensors and best.safetensors (the averaged
weights), log.jsonl (a JSON object a line) and record.json (where the weights came from).
SIGINT (Ctrl-C) and SIGTERM save before they end the run.
"""


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    parser = subparsers.add_parser(
        "train",
        help="train a network from a TOML file",
        description=DESCRIPTION,
        epilog=f"configurations that come with the package: {', '.join(config.shipped())}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("config", metavar="CONFIG", help="a TOML file, or the name of a shipped configuration")
    parser.add_argument("overrides", metavar="KEY=VALUE", nargs="*", help="settings to change, e.g. optimizer.lr=1e-3")
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint in `out`")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from cmslap.training.loop import train  # torch's distributed machinery is slow to import

    made = config.load(args.config, args.overrides)
    hint = shlex.join(["cmslap", "train", args.config, "--resume", *args.overrides])
    return train(made, args.resume, hint)
