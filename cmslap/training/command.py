"""``cmslap train``: train a network from a TOML file."""

import argparse
import os
import shlex

from cmslap.training import shipped

DESCRIPTION = """\
Train a network as a TOML file says. Settings can be changed on the command line by their dotted keys.

  cmslap train paper data.train=DIV2K/HR out=runs/paper
  cmslap train my.toml optimizer.lr=1e-3 scales=[2,4]
  cmslap train my.toml --resume
  cmslap train record.json data.train=DIV2K/HR --reproduce
  torchrun --nproc-per-node 8 -m cmslap train my.toml

CONFIG is a TOML file, the name of one that comes with the package ({shipped}),
or a record.json, which has the configuration of the run that made it.
The directory `out` receives last.pt (to resume from) and previous.pt (the one before it, for when that is damaged),
last.safetensors and best.safetensors (the averaged weights), log.jsonl (a JSON object a line), curves.png and
record.json (where the weights came from). One run at a time can have it.
SIGINT (Ctrl-C) and SIGTERM save before they end the run."""


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    parser = subparsers.add_parser(
        "train",
        help="train a network from a TOML file",
        usage="cmslap train CONFIG [KEY=VALUE ...] [--resume | --reproduce]",
        description=DESCRIPTION.format(shipped=", ".join(shipped())),
    )
    parser.add_argument("config", metavar="CONFIG", help="a TOML file, a shipped configuration's name, or a record")
    parser.add_argument("settings", metavar="KEY=VALUE", nargs="*", help="settings to change, e.g. optimizer.lr=1e-3")
    # argparse gives a positional with nargs="*" nothing of what follows an option, hence the option takes it itself
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument(
        "--resume", metavar="KEY=VALUE", nargs="*", help="go on from the last checkpoint in `out`; settings may follow"
    )
    mode.add_argument(
        "--reproduce",
        metavar="KEY=VALUE",
        nargs="*",
        help="rerun the first steps of a record and compare the losses; writes nothing",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from cmslap.training import config
    from cmslap.training.loop import train
    from cmslap.training.record import reproduce

    settings = args.settings + (args.resume or []) + (args.reproduce or [])
    made = config.load(args.config, settings, begun=args.reproduce is not None)
    if args.reproduce is not None:
        return reproduce(config.find(args.config), made)
    return train(made, args.resume is not None, resume_hint=_command(args.config, settings))


def _command(name: str, settings: list[str]) -> str:
    """The command line that resumes this run."""
    processes = os.environ.get("LOCAL_WORLD_SIZE")
    launcher = ["torchrun", "--nproc-per-node", processes, "-m"] if processes else []
    return shlex.join([*launcher, "cmslap", "train", name, *settings, "--resume"])
