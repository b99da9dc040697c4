"""Writing files: whole or not at all, and nothing that exists is replaced unasked.

One rule for every output: a regular file appears by renaming a finished one over it; a device, a pipe or what a
standard stream is redirected to is written to; of a symbolic link, what it points to is meant.
"""

import fcntl
import hashlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from cmslap.errors import UserError

_LONGEST_SUFFIX = 16  # bytes; formats have shorter ones, and a longer one may not fit into a name of 255
_PROBE = bytes(4096)


class OutputError(UserError, OSError):
    """An output that cannot be written, or must not be replaced; the message begins with its name."""


def check_output(path: str | os.PathLike[str], overwrite: bool = False) -> None:
    """Refuse before any work what :func:`replacing` could not write, or must not replace without ``overwrite``.

    Raises :class:`OutputError`.
    """
    with naming(path):
        target, is_stream = _resolve(Path(path))
        if is_stream:
            if not os.access(target, os.W_OK):
                raise OutputError(f"{path}: no permission to write to it")
        elif target.exists() and not overwrite:
            raise OutputError(f"{path} exists; give --overwrite to replace it")
        else:
            _probe(target)


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path; put what the block has written there to ``path`` if it succeeds, else remove it.

    The temporary file keeps the suffix of ``path``, since many writers choose the format by it. It lies beside
    ``path``, and what killed processes left there of earlier attempts is removed. Raises :class:`OutputError`; what was
    at ``path`` then survives.
    """
    with naming(path):
        target, is_stream = _resolve(Path(path))
    with naming(path, "; the previous one is intact" if target.is_file() and not is_stream else ""):
        folder = Path(tempfile.gettempdir()) if is_stream else target.parent
        folder.mkdir(parents=True, exist_ok=True)
        with _temporary(folder, target) as temporary:
            yield temporary
            if is_stream:
                _pour(temporary, target)
            else:
                _rename(temporary, target)


def write_json(path: str | os.PathLike[str], record: object) -> None:
    """Write a record as :func:`replacing` writes files."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


@contextmanager
def naming(path: str | os.PathLike[str], kept: str = "") -> Iterator[None]:
    """Make an operating system's error an :class:`OutputError`, with the name of the file it is about."""
    try:
        yield
    except UserError:
        raise
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({error.strerror or error}){kept}") from error


def _resolve(path: Path) -> tuple[Path, bool]:
    """What ``path`` means once links are followed, and whether that is written to rather than replaced."""
    try:
        status = path.stat()
    except FileNotFoundError:  # perhaps a link to what is not there yet
        return Path(os.path.realpath(path)), False
    if path.is_dir():
        raise OutputError(f"{path} is a folder; name a file")
    if not path.is_file() or _standard_stream(status) is not None:
        return path, True
    return Path(os.path.realpath(path)), False


def _standard_stream(status: os.stat_result) -> int | None:
    """Standard output or error if it goes to that file: renamed over, what was printed there would be lost."""
    for descriptor in (1, 2):
        with suppress(OSError):  # closed
            if os.path.samestat(os.fstat(descriptor), status):
                return descriptor
    return None


def _probe(target: Path) -> None:
    """Write a page that nobody sees where the file, or its folders, will be: finds what permissions do not tell."""
    folder = target.parent
    while not folder.exists():
        folder = folder.parent
    if not folder.is_dir():
        raise OutputError(f"{target}: {folder} is no folder")
    with tempfile.TemporaryFile(dir=folder) as file:
        file.write(_PROBE)


@contextmanager
def _temporary(folder: Path, target: Path) -> Iterator[Path]:
    """An empty file, removed in the end unless it was renamed; locked while it is in use, so left-overs are not."""
    prefix = f".cmslap-{hashlib.sha256(os.fsencode(target.name)).hexdigest()[:16]}-"
    suffix = target.suffix if len(os.fsencode(target.suffix)) <= _LONGEST_SUFFIX else ""
    for leftover in folder.glob(prefix + "*"):
        with suppress(OSError), leftover.open("rb") as opened:
            fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
            leftover.unlink()
    while True:
        descriptor, name = tempfile.mkstemp(dir=folder, prefix=prefix, suffix=suffix)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        temporary = Path(name)
        if temporary.exists():  # else another process took it for a left-over before it was locked
            break
        os.close(descriptor)
    try:
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)
        os.close(descriptor)


def _rename(temporary: Path, target: Path) -> None:
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    umask = os.umask(0)
    os.umask(umask)
    mode = target.stat().st_mode & 0o777 if target.exists() else 0o666 & ~umask  # mkstemp's is private
    temporary.chmod(mode)
    temporary.replace(target)


def _pour(temporary: Path, stream: Path) -> None:
    """Write the finished file to a device, a pipe or an open standard stream, after what was printed there."""
    if sys.stdout is not None:
        sys.stdout.flush()
    descriptor = _standard_stream(stream.stat())  # a socket cannot be opened by its name
    descriptor = os.open(stream, os.O_WRONLY | os.O_APPEND) if descriptor is None else os.dup(descriptor)
    with temporary.open("rb") as source, open(descriptor, "wb") as destination:  # noqa: PTH123
        shutil.copyfileobj(source, destination)
