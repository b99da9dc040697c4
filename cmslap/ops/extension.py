"""Loads the compiled libraries; a missing or broken one is a state to report, never an error at import."""

from pathlib import Path

import torch

FOLDER = Path(__file__).resolve().parent.parent
LIBRARY = FOLDER / "_C.so"
CUDA_LIBRARY = FOLDER / "_CUDA.so"


def _load(library: Path, name: str) -> str | None:
    if not library.exists():
        note = library.with_suffix(".txt")  # where setup.py says why it left a library out
        return f"{name} is not built" + (f": {note.read_text(encoding='utf-8').strip()}" if note.exists() else "")
    try:
        torch.ops.load_library(library)
    except OSError as error:
        reason = error.__cause__ or error  # load_library's own message leaves the loader's words out
        return f"{name} does not load: {str(reason).splitlines()[0]}"
    return None


MISSING: str | None = _load(LIBRARY, "the C++ extension")
"""Why the CPU kernels' operators are not there, or None when they are."""

CUDA_MISSING: str | None = _load(CUDA_LIBRARY, "the CUDA extension")
"""The same of the CUDA kernels'."""
