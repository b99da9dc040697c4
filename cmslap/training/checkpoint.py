"""Checkpoints that survive a kill or a full disk, and the weights a run exports."""

from __future__ import annotations

import io
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cmslap.checkpoints.checkpoint import load_model, save_model
from cmslap.errors import UserError
from cmslap.files import replacing


class CheckpointError(UserError, OSError):
    """A checkpoint that cannot be written or read."""


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn what goes wrong with writing ``path`` through ``replacing`` into a :class:`CheckpointError`."""
    try:
        yield
    except OSError as error:
        kept = "; the previous one is intact" if path.exists() else ""
        raise CheckpointError(f"cannot write {path}: {error.strerror or error}{kept}") from error


def write(path: Path, data: bytes) -> None:
    """Replace the file whole. Raises :class:`CheckpointError`; the previous file then survives."""
    with writing(path), replacing(path) as temporary:
        temporary.write_bytes(data)


def save(path: Path, state: dict[str, Any]) -> None:
    """Write ``state`` (tensors and plain values). Raises :class:`CheckpointError`; the previous file then survives."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    write(path, buffer.getvalue())


def load(path: Path, device: torch.device) -> dict[str, Any]:
    """Read what :func:`save` wrote; runs no code from the file."""
    try:
        state = torch.load(path, map_location=device, weights_only=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError) as error:
        raise CheckpointError(f"{path}: damaged, or not a training checkpoint") from error
    if not isinstance(state, dict) or "optimizers" not in state:
        raise CheckpointError(f"{path}: not a training checkpoint; to start from weights, set init")
    return state


def export(path: Path, model: nn.Module, metadata: dict[str, str]) -> None:
    """Write the model's weights as safetensors. Raises as :func:`save`."""
    with writing(path):
        save_model(model, path, metadata)


def initialise(model: nn.Module, path: str) -> None:
    """Start ``model`` from the weights in a file, or from shipped ones by their name."""
    weights = load_model(path)
    try:
        model.load_state_dict(weights.state_dict())
    except RuntimeError as error:
        held = f"{type(weights).__name__} {weights.config()}"
        raise CheckpointError(f"init = {path!r}: a {held}; here is {type(model).__name__} {model.config()}") from error
