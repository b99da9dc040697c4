"""PyTorch checkpoints: state_dicts of our networks and of public ports that compute the same thing.

Ports of MS-LapSRN whose module names are ``conv_input``, ``features.recursive_block.block.conv_<d>``, ``transpose``,
``predict`` and ``scale_img`` have our layout under other names. (They also clamp each level's image to [0, 1],
which our networks leave to the caller.) The public LapSRN ports upsample features with 4×4 kernels; ours, like the
published network's, are 3×3, so those are refused.
"""

from __future__ import annotations

import pickle
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cmslap.interop.weights import CheckpointError, Weights, check_tensors, infer

CONTAINERS = ("state_dict", "model_state_dict", "model", "params_ema", "params")  # where training scripts put it
PREFIXES = ("module.", "_orig_mod.")  # DataParallel, torch.compile
_PORT_BLOCK = "features.recursive_block.block.conv_"


def read_pth(path: Path) -> Weights:
    """Read a ``.pth`` or ``.pt`` file that holds tensors; anything that would need code to load is refused."""
    tensors = _state_dict(_load(path))
    if any(name.startswith(_PORT_BLOCK) for name in tensors):
        tensors = _from_port(tensors)
    for name, tensor in tensors.items():
        if tensor.dim() == 4 and tensor.shape[0] > 1 and tensor.shape[2:] == (4, 4):
            channels = tensor.shape[0]
            raise CheckpointError(
                f"tensor {name!r} upsamples features with a kernel of shape {list(tensor.shape)}, "
                f"expected {[channels, channels, 3, 3]} as in the published network"
            )
    return infer(tensors)


def _load(path: Path) -> Any:  # noqa: ANN401 (whatever the file holds)
    with path.open("rb") as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns of archives that are refused below
        try:
            return torch.load(file, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            if blocked := re.search(r"GLOBAL (\S+)", str(error)):
                raise CheckpointError(
                    f"it pickles the Python object {blocked[1]}, and loading that could run any code, so it is not "
                    "loaded; where you trust the file, save its model.state_dict() instead"
                ) from None
            raise CheckpointError("not a PyTorch checkpoint, or a damaged one") from None
        except Exception as error:  # on a damaged file torch raises nearly anything
            if "TorchScript" in str(error):
                raise CheckpointError("it is a TorchScript program; save the model's state_dict() instead") from None
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise CheckpointError(f"not a PyTorch checkpoint, or a damaged one ({reason})") from None


def _state_dict(contents: Any) -> dict[str, Tensor]:  # noqa: ANN401
    """The state_dict in the file, without the prefixes that wrappers add."""
    for container in CONTAINERS:
        if isinstance(contents, Mapping) and isinstance(contents.get(container), Mapping):
            contents = contents[container]
    if not isinstance(contents, Mapping) or not contents:
        raise CheckpointError(f"holds no state_dict (neither at the top nor under {', '.join(CONTAINERS)})")
    for name, value in contents.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise CheckpointError(f"not a state_dict: entry {name!r} is a {type(value).__name__}, expected a tensor")
    tensors = {name: tensor.detach() for name, tensor in contents.items()}
    for prefix in PREFIXES:
        if all(name.startswith(prefix) for name in tensors):
            tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    return tensors


def _from_port(found: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the tensors of an MS-LapSRN port."""
    depth = sum(name.startswith(_PORT_BLOCK) and name.endswith(".weight") for name in found)
    channels = found["conv_input.weight"].shape[0] if "conv_input.weight" in found else 64
    block = [f"{_PORT_BLOCK}{d}" for d in range(depth)]
    expected = {"conv_input.weight": (channels, 1, 3, 3), "conv_input.bias": (channels,)}
    for name in [*block, "transpose"]:
        expected |= {f"{name}.weight": (channels, channels, 3, 3), f"{name}.bias": (channels,)}
    expected |= {"predict.weight": (1, channels, 3, 3), "predict.bias": (1,), "scale_img.weight": (1, 1, 4, 4)}
    check_tensors(found, expected, "MS-LapSRN port")
    return {
        "conv_in.weight": found["conv_input.weight"],
        "conv_in.bias": found["conv_input.bias"],
        "embedding_weight": torch.stack([found[f"{name}.weight"] for name in block]),
        "embedding_bias": torch.stack([found[f"{name}.bias"] for name in block]),
        "upsample_weight": found["transpose.weight"],
        "upsample_bias": found["transpose.bias"],
        "conv_res.weight": found["predict.weight"],
        "conv_res.bias": found["predict.bias"],
        "image_weight": found["scale_img.weight"],
    }
