"""Checkpoints that survive a kill or a full disk, and the weights a run starts from."""

import io
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cmslap.checkpoints.checkpoint import load_model
from cmslap.checkpoints.weights import CheckpointError
from cmslap.files import replacing

LAST, PREVIOUS = "last.pt", "previous.pt"
COUNTED = ("step", "best", "seconds", "losses", "summed", "first_losses")  # what a run counts
KEYS = {*COUNTED, "config", "pictures", "model", "ema", "optimizers", "scaler"}


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


def initialise(model: nn.Module, path: str) -> None:
    """Start ``model`` from the weights in a file, or from shipped ones by their name."""
    weights = load_model(path)
    try:
        model.load_state_dict(weights.state_dict())
    except RuntimeError as error:
        held = f"{type(weights).__name__} {weights.config()}"
        raise CheckpointError(f"init = {path!r}: a {held}; here is {type(model).__name__} {model.config()}") from error
