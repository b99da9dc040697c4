"""PyTorch checkpoints: state_dicts of our networks, in the wrappings that training scripts give them.

The best-known public ports are refused, since they do not compute what the papers' networks do. Those of LapSRN
upsample features with 4×4 kernels, not 3×3. Those of MS-LapSRN do not hand a level's result on to the next: from 4x
on each adds its residual to the bilinear image alone, so their weights fit our network at 2x and fail beyond.
"""

import pickle
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cmslap.checkpoints.weights import CheckpointError, Weights, infer

CONTAINERS = ("state_dict", "model_state_dict", "model", "params_ema", "params")  # where training scripts put it
PREFIXES = ("module.", "_orig_mod.")  # DataParallel, torch.compile
_PORT_BLOCK = "features.recursive_block.block.conv_"


def read_pth(path: Path) -> Weights:
    """Read a ``.pth`` or ``.pt`` file that holds tensors; anything that would need code to load is refused."""
    tensors = _state_dict(_load(path))
    for name, tensor in tensors.items():
        if name.startswith(_PORT_BLOCK):
            raise CheckpointError(
                f"tensor {name!r} is of a port of MS-LapSRN whose levels add their residuals to the bilinear image, "
                "not to the previous level's; from 4x on these weights do not fit the published network"
            )
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
        if value.is_nested or value.is_meta or value.layout != torch.strided:
            kind = "nested" if value.is_nested else "meta" if value.is_meta else str(value.layout)
            raise CheckpointError(f"tensor {name!r} must hold its values densely, got a {kind} tensor")
    tensors = {name: tensor.detach() for name, tensor in contents.items()}
    for prefix in PREFIXES:
        if all(name.startswith(prefix) for name in tensors):
            tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    return tensors
