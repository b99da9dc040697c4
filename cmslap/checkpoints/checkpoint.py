"""Networks to and from files: ``save_model`` and ``load_model``.

Our own format is safetensors: the state_dict, and in its metadata the class (``architecture``) and the constructor's
arguments (``config``, JSON), so a file says by itself which network it is.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import nn

from cmslap.checkpoints.matconvnet import read_mat
from cmslap.checkpoints.pytorch import read_pth
from cmslap.checkpoints.weights import CheckpointError, Weights, infer
from cmslap.devices import find_device
from cmslap.errors import nearest
from cmslap.files import replacing
from cmslap.models import NETWORKS, Network
from cmslap.options import DEFAULT_MODEL

SHIPPED = Path(__file__).parents[1] / "weights"
ALIASES = {"cms-lapsrn": DEFAULT_MODEL}  # the name people type -> the weights it means today


def save_model(model: nn.Module, path: str | os.PathLike[str], metadata: Mapping[str, str] | None = None) -> None:
    """Write a network of ours as safetensors; the file appears whole or not at all.

    ``metadata`` goes into the file's header; the keys ``architecture`` and ``config`` are ours.
    """
    architecture = type(model).__name__
    if NETWORKS.get(architecture) is not type(model):
        raise CheckpointError(f"model must be one of {', '.join(sorted(NETWORKS))}, got {architecture}")
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    header = {**(metadata or {}), "architecture": architecture, "config": json.dumps(model.config())}
    with replacing(path) as temporary:
        temporary.write_bytes(_ordered(save(tensors, header)))


def _ordered(data: bytes) -> bytes:
    """A safetensors file with its metadata in order, which safetensors shuffles: equal networks make equal files."""
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # the tensors begin at a multiple of eight bytes
    return len(text).to_bytes(8, "little") + text + data[end:]


def load_model(name_or_path: str | os.PathLike[str] = "cms-lapsrn", *, device: str | torch.device = "cpu") -> Network:
    """Load a network in eval mode: weights that come with the package by name, or a checkpoint file.

    The default is today ``cms-lapsrn-d5r2``. Files: our ``.safetensors``, official MatConvNet ``.mat`` models, and
    state_dicts in ``.pth`` or ``.pt``. None of them can run code.

    Raises:
        CheckpointError: no such weights or file, or a file that does not hold one of our networks.
        DeviceError: no such device here.
    """
    device = find_device(device)
    path = find_weights(name_or_path)
    try:
        return read_weights(path).build().to(device)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None


def shipped_names() -> list[str]:
    """Names :func:`load_model` knows: the weights that come with the package and the aliases of some."""
    names = [path.stem for path in SHIPPED.glob("*.safetensors")]
    return sorted(names + [alias for alias, name in ALIASES.items() if name in names])


def find_weights(name_or_path: str | os.PathLike[str]) -> Path:
    """The file behind a shipped name or a path."""
    path = Path(name_or_path)
    if path.suffix.lower() in READERS or path.name != str(name_or_path) or path.exists():
        if not path.is_file():
            raise CheckpointError(f"{path}: no such file")
        return path
    name, names = str(name_or_path), shipped_names()
    if name not in names:
        hint = nearest(name.lower(), names)
        raise CheckpointError(f"no weights named {name!r}{hint} (known: {', '.join(names)}; or give a file)")
    return SHIPPED / f"{ALIASES.get(name, name)}.safetensors"


def read_weights(path: Path) -> Weights:
    """Read any checkpoint this project understands."""
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise CheckpointError(f"unknown kind of checkpoint {path.suffix!r}, expected {', '.join(READERS)}")
    return reader(path)


def read_safetensors(path: Path) -> Weights:
    """Read our own format; of a file from elsewhere, what its tensors say."""
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except SafetensorError as error:
        raise CheckpointError(f"not a safetensors file ({error})") from None
    if "architecture" not in header or "config" not in header:
        return infer(tensors)
    try:
        config = json.loads(header["config"])
    except json.JSONDecodeError as error:
        raise CheckpointError(f"metadata config is not JSON ({error})") from None
    if not isinstance(config, dict):
        raise CheckpointError(f"metadata config must be an object, got {header['config']}")
    return Weights(header["architecture"], config, tensors)


READERS = {".safetensors": read_safetensors, ".pth": read_pth, ".pt": read_pth, ".mat": read_mat}
