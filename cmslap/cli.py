"""The command line: ``cmslap upscale | compare | train | evaluate | convert | export | video | info``.

Each package adds its commands in its ``command.py``: ``add_parser(subparsers)`` there sets ``run`` to a function of
the arguments that returns the exit status. 0 is success, 1 a failure, 2 a wrong command line. What is heavy is imported
when a command runs, so that ``--help`` is quick.
"""

import argparse
import importlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

from cmslap import __version__, info
from cmslap.checkpoints import command as checkpoints
from cmslap.errors import in_one_line, nearest
from cmslap.evaluation import command as evaluation
from cmslap.inference import command as inference
from cmslap.training import command as training
from cmslap.video import command as video

PACKAGES = (inference, training, evaluation, checkpoints, video, info)


class CommandParser(argparse.ArgumentParser):
    """Answers a mistake with the command's own usage and, for an unknown flag, the nearest one."""

    def __init__(self, **options: object) -> None:
        super().__init__(allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, **options)

    def parse_known_args(self, args: Sequence[str] | None = None, namespace: object = None) -> tuple[object, list[str]]:
        found, unknown = super().parse_known_args(args, namespace)
        if unknown:
            flag = next((argument.partition("=")[0] for argument in unknown if argument.startswith("-")), "")
            self.error(f"unrecognized arguments: {' '.join(unknown)}{nearest(flag, self._option_string_actions)}")
        return found, []


def build_parser() -> argparse.ArgumentParser:
    parser = CommandParser(prog="cmslap", description="Laplacian-pyramid super-resolution.")
    parser.add_argument("--version", action="version", version=f"cmslap {__version__}")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for package in PACKAGES:
        package.add_parser(subparsers)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    _mend_streams()
    args = build_parser().parse_args(argv)
    interruptions: list[int] = []
    try:
        _import_pytorch(args.command)
        with _noting(interruptions):
            status = args.run(args)
        sys.stdout.flush()
    except KeyboardInterrupt:
        return _fail(args.command, "interrupted", 130)
    except BrokenPipeError:  # whoever read the output has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # or Python would complain again as it ends
        return 1
    except Exception as error:
        if interruptions:  # which a library's code has made another error of
            return _fail(args.command, "interrupted", 130)
        reason = in_one_line(error)
        if reason is None:
            raise
        return _fail(args.command, f"error: {reason}", 1)
    return status


def _import_pytorch(command: str) -> None:
    """Import what every command needs; an interruption ends the process then, which PyTorch's own code would abort."""

    def leave(*_: object) -> NoReturn:
        os._exit(_fail(command, "interrupted", 130))

    with _interrupted_by(leave) as interruptible:
        if interruptible:
            importlib.import_module("torch")


@contextmanager
def _noting(interruptions: list[int]) -> Iterator[None]:
    """Raise KeyboardInterrupt as ever, and note it."""

    def note(number: int, frame: FrameType | None) -> None:
        interruptions.append(number)
        signal.default_int_handler(number, frame)

    with _interrupted_by(note):
        yield


@contextmanager
def _interrupted_by(handler: Callable[[int, FrameType | None], None]) -> Iterator[bool]:
    """Inside the ``with`` an interruption calls ``handler``, if it would raise KeyboardInterrupt: true then."""
    interruptible = threading.current_thread() is threading.main_thread()
    interruptible = interruptible and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if interruptible:
        signal.signal(signal.SIGINT, handler)
    try:
        yield interruptible
    finally:
        if interruptible:
            signal.signal(signal.SIGINT, signal.default_int_handler)


def _fail(command: str, message: str, status: int) -> int:
    print(f"cmslap {command}: {' '.join(message.splitlines())}", file=sys.stderr, flush=True)
    return status


def _mend_streams() -> None:
    """Standard streams that are closed take nothing; those that are open take any file's name."""
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: PTH123, SIM115
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: PTH123, SIM115
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")
