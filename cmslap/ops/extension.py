"""Loads the C++ extension; a missing or broken one is a state to report, never an error at import."""

from __future__ import annotations

from pathlib import Path

import torch

LIBRARY = Path(__file__).resolve().parent.parent / "_C.so"


def _load(library: Path) -> str | None:
    if not library.exists():
        return "the C++ extension is not built"
    try:
        torch.ops.load_library(library)
    except OSError as error:
        reason = error.__cause__ or error  # load_library's own message leaves the loader's words out
        return f"the C++ extension does not load: {str(reason).splitlines()[0]}"
    return None


MISSING: str | None = _load(LIBRARY)
"""Why the extension's operators are not there, or None when they are."""
