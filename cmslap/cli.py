"""The command line: ``cmslap upscale | train | evaluate | convert | info``.

Each command lives in the package it belongs to, as a module with ``add_parser(subparsers)`` and ``run(args)``; ``run``
returns the exit status. 0 is success, 1 a failure, 2 a wrong command line.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from cmslap import __version__, info
from cmslap.checkpoints import command as convert
from cmslap.errors import UserError
from cmslap.evaluation import command as evaluate
from cmslap.inference import command as upscale
from cmslap.inference import compare_command as compare
from cmslap.training import command as train

COMMANDS = (upscale, compare, train, evaluate, convert, info)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="cmslap", description="Laplacian-pyramid super-resolution.")
    parser.add_argument("--version", action="version", version=f"cmslap {__version__}")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for command in COMMANDS:
        command.add_parser(subparsers)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    try:
        return args.run(args)
    except (UserError, OSError) as error:
        print(f"cmslap {args.command}: error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"cmslap {args.command}: interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
