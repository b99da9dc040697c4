"""The one exception family the command line turns into a single clear line."""

import difflib
import importlib.util
import re
from collections.abc import Iterable
from pathlib import Path


class UserError(Exception):
    """A mistake the user can mend: a bad file, an impossible setting, a device that is not there.

    The message is one line that names the argument or file, what came, and what is accepted. Subclasses also
    derive from the built-in exception that fits (ValueError, OSError, ...), so Python callers need not know this one.
    """


class MissingPackageError(UserError, ImportError):
    """A package that one of the extras has and that is not installed."""


def require(use: str, extra: str, *packages: str) -> None:
    """Raise :class:`MissingPackageError` unless the packages that ``use`` needs, one of our extras, are installed."""
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingPackageError(f"{use} needs the package {missing[0]}: pip install 'cmslap[{extra}]'")


def nearest(word: str, known: Iterable[str]) -> str:
    """What to add to the complaint about an unknown word: "; did you mean loss?", or nothing where none is like it."""
    near = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean {near[0]}?" if near else ""


def in_one_line(error: BaseException, *files: Path) -> str | None:
    """What to tell the user of an error that the user can mend; None of any other, which is a fault of the program.

    It begins with the first of ``files`` unless it begins with another of them.
    """
    if isinstance(error, OSError) and not isinstance(error, UserError) and error.filename is not None:
        reason = f"{error.filename}: {error.strerror}"
    else:
        reason = str(error) if isinstance(error, UserError | OSError) else out_of_memory(error)
    if reason is None or not files or reason.startswith(tuple(map(str, files))):
        return reason
    return f"{files[0]}: {reason}"


def out_of_memory(error: BaseException) -> str | None:
    """What to say of an error if it means that memory did not suffice; None if it does not.

    On a CPU PyTorch raises a plain RuntimeError then; on a GPU its OutOfMemoryError, which is one.
    """
    text = str(error)
    if not (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or re.search(r"can't allocate memory|not enough memory|bad_alloc|Storage size calculation overflowed", text)
    ):
        return None
    asked = re.search(r"tried to allocate ([\d.]+ ?\w+)|Unable to allocate ([\d.]+ \w+)", text)
    amount = f": {next(filter(None, asked.groups()))} were needed at once" if asked else ""
    return f"out of memory{amount}; lower the image's size, --tile, or in training the batch, patch or channels"
