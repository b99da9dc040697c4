"""The folder of a run: whether a run may begin or go on in it, and that one at a time does."""

import contextlib
import fcntl
import os
import platform
import sys
from collections.abc import Iterator
from pathlib import Path

from tqdm import tqdm

from cmslap.errors import UserError
from cmslap.training.checkpoint import LAST, PREVIOUS

LOCK, LOG = ".lock", "log.jsonl"


class RunError(UserError, RuntimeError):
    """A run that cannot start or go on."""


def saved(out: Path) -> bool:
    """Whether ``out`` has a run that can go on."""
    return any((out / name).is_file() for name in (LAST, PREVIOUS))


def check(out: Path, resume: bool) -> None:
    """Raise :class:`RunError` unless ``out`` has a run to go on with, or room for a new one.

    Room is where nothing is, or no more than a run leaves that was killed before its first checkpoint.
    """
    begun = saved(out)
    if resume and not begun:
        raise RunError(f"nothing to resume: {out / LAST} does not exist; leave out --resume to start a run")
    if not resume and begun:
        raise RunError(f"{out} exists already: go on with its run with --resume, or choose another out")
    if not resume and out.exists():
        other = [path.name for path in out.iterdir() if not _of_a_beginning(path)] if out.is_dir() else [out.name]
        if other:
            raise RunError(f"{out} exists already and is not a run's: it has {min(other)}; choose another out")


def _of_a_beginning(path: Path) -> bool:
    """Whether a run makes ``path`` before its first checkpoint, or was killed while it wrote that."""
    empty_log = path.name == LOG and path.stat().st_size == 0
    return empty_log or path.name in (LOCK, "tensorboard") or path.name.startswith((".last-", ".log-"))


@contextlib.contextmanager
def claimed(out: Path) -> Iterator[None]:
    """Keep other runs out of the folder, which is made where it is not; the lock ends with the process.

    Raises :class:`RunError`, which says who has it.
    """
    out.mkdir(parents=True, exist_ok=True)
    with (out / LOCK).open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise RunError(f"{out} is in use by {file.read()}: wait for its end, or choose another out") from None
        except OSError as error:
            tqdm.write(f"warning: no file locks in {out} ({error}): start no second run in it", sys.stderr)
        file.truncate(0)
        file.write(f"process {os.getpid()} on {platform.node()}")
        file.flush()
        yield
