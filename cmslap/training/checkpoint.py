"""Checkpoints that survive a kill or a full disk, and the weights a run exports."""

from __future__ import annotations

import io
import json
import os
import pickle
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as safetensors_bytes
from torch import nn

from cmslap.errors import UserError
from cmslap.files import replacing


class CheckpointError(UserError, OSError):
    """A checkpoint that cannot be written or read."""


def write(path: Path, data: bytes) -> None:
    """Replace the file whole. Raises :class:`CheckpointError`; the previous file then survives."""
    try:
        with replacing(path) as temporary:
            temporary.write_bytes(data)
    except OSError as error:
        kept = "; the previous one is intact" if path.exists() else ""
        raise CheckpointError(f"cannot write {path}: {error.strerror or error}{kept}") from error


def save(path: Path, state: dict[str, Any]) -> None:
    """Write ``state`` (tensors and plain values). Raises :class:`CheckpointError`; the previous file then survives."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    write(path, buffer.getvalue())


def load(path: Path, device: torch.device) -> dict[str, Any]:
    """Read what :func:`save` wrote; runs no code from the file."""
    try:
        return torch.load(path, map_location=device, weights_only=True)
    except (OSError, RuntimeError, pickle.UnpicklingError, EOFError) as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(f"{path}: cannot be read as a training checkpoint ({reason})") from error


def export(path: Path, model: nn.Module, metadata: dict[str, str]) -> None:
    """Write the model's weights as safetensors that say which network they are for."""
    described = {"architecture": type(model).__name__, "config": json.dumps(model.config()), **metadata}
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    write(path, safetensors_bytes(tensors, described))


def load_weights(model: nn.Module, path: Path) -> None:
    """Start ``model`` from a safetensors file of the same network."""
    try:
        model.load_state_dict(load_file(path))
    except (OSError, SafetensorError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(f"{path}: not weights of this {type(model).__name__} ({reason})") from error


class Log:
    """A JSON-lines file: one object a line, each with its ``step``."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, entry: dict[str, Any]) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")

    def read(self) -> list[dict[str, Any]]:
        if not self.path.exists():
            return []
        return [json.loads(line) for line in self.path.read_text(encoding="utf-8").splitlines()]

    def sync(self) -> None:
        """Make sure that the lines so far are on the disk before a checkpoint that counts on them."""
        if self.path.exists():
            with self.path.open("rb") as file:
                os.fsync(file.fileno())

    def rewind(self, step: int) -> None:
        """Drop the lines after ``step``, and one that a kill cut short."""
        lines = self.path.read_text(encoding="utf-8").splitlines(keepends=True) if self.path.exists() else []
        whole = [line for line in lines if line.endswith("\n")]
        kept = [line for line in whole if json.loads(line)["step"] <= step]
        with replacing(self.path) as temporary:
            temporary.write_text("".join(kept), encoding="utf-8")
