"""The folder of a run: whether one may begin or go on in it, that one at a time does, and its checkpoints.

These survive a kill, a full disk and a damaged file.
"""

import contextlib
import fcntl
import io
import os
import pickle
import platform
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from cmslap.checkpoints.weights import CheckpointError
from cmslap.errors import UserError
from cmslap.files import replacing

LAST, PREVIOUS, LOCK, LOG = "last.pt", "previous.pt", ".lock", "log.jsonl"
COUNTED = ("step", "best", "seconds", "losses", "summed", "first_losses")  # what a run counts
KEYS = {*COUNTED, "config", "pictures", "model", "ema", "optimizers", "scaler"}  # of a checkpoint


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


def save(folder: Path, state: dict[str, Any]) -> None:
    """Write ``state`` (tensors and plain values) as ``last.pt``; an intact one before it stays as ``previous.pt``.

    Raises OutputError of ``cmslap.files``; what was there then survives.
    """
    buffer = io.BytesIO()
    torch.save(state, buffer)
    last = folder / LAST
    with replacing(last) as temporary:
        temporary.write_bytes(buffer.getvalue())
        if last.exists() and _intact(last.read_bytes()):
            last.replace(folder / PREVIOUS)


def load(path: Path, device: torch.device) -> dict[str, Any]:
    """Read what :func:`save` wrote; runs no code from the file. Raises :class:`CheckpointError`."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror}") from error
    if not _intact(data):
        raise CheckpointError(f"{path}: damaged, or not a training checkpoint")
    try:
        state = torch.load(io.BytesIO(data), map_location=device, weights_only=True)
    except (RuntimeError, pickle.UnpicklingError, ValueError, LookupError) as error:
        raise CheckpointError(f"{path}: not a training checkpoint") from error
    if not isinstance(state, dict) or not state.keys() >= KEYS:
        raise CheckpointError(f"{path}: not a training checkpoint; to start from weights, set init")
    return state


def load_newest(folder: Path, device: torch.device, say: Callable[[str], None]) -> dict[str, Any]:
    """Read ``last.pt``, or ``previous.pt`` where that cannot be read, after saying so."""
    previous = folder / PREVIOUS
    try:
        return load(folder / LAST, device)
    except CheckpointError as error:
        if not previous.exists():
            raise
        say(f"{error}; going on from the checkpoint before it, {previous}")
        return load(previous, device)


def _intact(data: bytes) -> bool:
    """Whether a file of PyTorch's, a zip archive, agrees with the checksums in it; PyTorch itself does not look."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            return archive.testzip() is None
    except Exception:  # a damaged archive raises almost anything
        return False
