"""Videos: frames in and out in a stream, and networks adapted to one video and its scenes. Nothing heavy is imported
here; what needs PyAV is in the modules.
"""

from __future__ import annotations

import importlib.util

from cmslap.errors import UserError

SUFFIXES = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".ts", ".mts", ".m2ts", ".mpg", ".mpeg", ".wmv", ".flv")


class MissingPackageError(UserError, ImportError):
    """A package that videos need and that is not installed."""


def require(*names: str) -> None:
    """Raise :class:`MissingPackageError` unless the packages, by the names they are imported under, are installed."""
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingPackageError(f"videos need the package {missing[0]}: pip install 'cmslap[video]'")
