"""The official MATLAB models in MAT version 5 files: MatConvNet DagNN networks of LapSRN and MS-LapSRN, VDSR's cells.

MatConvNet's convolution is a correlation, as PyTorch's, and stores its kernel as [height, width, in, out]; its
transposed convolution is the adjoint and stores [height, width, out, in]. One permutation serves both. MATLAB and
scipy drop axes of length 1, so shapes are compared without them.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cmslap.checkpoints.weights import CheckpointError, Weights, check_tensors
from cmslap.errors import require


def read_mat(path: Path) -> Weights:
    """Read an official ``.mat`` model. Only arrays are read; nothing in the file runs."""
    contents = _load(path)
    try:
        if "model" in contents:
            return _vdsr(contents["model"])
        parameters = _tensors({record["name"]: record["value"] for record in contents["net"]["params"]})
        layers = {layer["name"]: layer for layer in contents["net"]["layers"]}
        for name, layer in layers.items():
            if layer["type"] == "dagnn.ReLU" and layer["block"]["leak"] != 0.2:
                raise CheckpointError(f"layer {name!r} has slope {layer['block']['leak']}, expected 0.2")
        if "img_up_f" in parameters:
            return _ms_lapsrn(parameters, layers)
        if "level1_img_up_f" in parameters:
            return _lapsrn(parameters)
    except (KeyError, TypeError, IndexError) as error:
        raise CheckpointError(f"no MatConvNet DagNN network in it, nor VDSR's cells ({error!r})") from None
    raise CheckpointError("neither LapSRN (no parameter 'level1_img_up_f') nor MS-LapSRN (no 'img_up_f')")


def _load(path: Path) -> Mapping[str, Any]:
    require("reading .mat files", "matlab", "scipy")
    from scipy.io import loadmat

    with path.open("rb") as file:
        try:
            return loadmat(file, simplify_cells=True)
        except NotImplementedError:
            raise CheckpointError("MAT version 7.3 is not supported; in MATLAB, save it again with '-v7'") from None
        except Exception as error:  # on a damaged file scipy raises nearly anything
            raise CheckpointError(f"not a MATLAB file, or a damaged one ({error})") from None


def _tensors(values: Mapping[str, Any]) -> dict[str, Tensor]:
    """The network's parameters by name, in float32, without axes of length 1."""
    values = {name: np.asarray(value) for name, value in values.items()}
    for name, value in values.items():
        if value.dtype.kind not in "fiu":
            raise CheckpointError(f"parameter {name!r} must be numbers, got {value.dtype}")
    return {name: torch.from_numpy(value.astype(np.float32)).squeeze() for name, value in values.items()}


def _converted(
    parameters: Mapping[str, Tensor],
    convolutions: Mapping[str, tuple[str, int, int]],  # name of theirs: beginning of our names, channels in and out
    upsamplings: Mapping[str, str],  # the same of image upsamplings, which have no bias
    kind: str,
) -> dict[str, Tensor]:  # weight [out, in, 3, 3] and bias [out] of each convolution, image_weight [1, 1, 4, 4]
    """The parameters in PyTorch's layout under our names. Raises CheckpointError unless they are as in a ``kind``."""
    shapes = dict.fromkeys(upsamplings, (4, 4))
    tensors = {}
    for theirs, (_, *channels) in convolutions.items():
        shapes[f"{theirs}_f"] = (3, 3, *(length for length in channels if length != 1))
        shapes[f"{theirs}_b"] = tuple(length for length in channels[1:] if length != 1)
    check_tensors(parameters, shapes, kind)
    for theirs, (ours, inputs, outputs) in convolutions.items():
        weight = parameters[f"{theirs}_f"].reshape(3, 3, inputs, outputs)
        tensors[f"{ours}weight"] = weight.permute(3, 2, 0, 1).contiguous()
        tensors[f"{ours}bias"] = parameters[f"{theirs}_b"].reshape(outputs)
    for theirs, ours in upsamplings.items():
        tensors[f"{ours}image_weight"] = parameters[theirs].reshape(1, 1, 4, 4)
    return tensors


def _level(theirs: str, ours: str, channels: int) -> dict[str, tuple[str, int, int]]:
    """The convolutions that end a level; the prefixes are empty where all levels share them."""
    return {
        # [in, out, 3, 3], as a transposed one has it
        f"{theirs}upconv": (f"{ours}upsample_", channels, channels),
        f"{theirs}residual_conv": (f"{ours}conv_res.", channels, 1),
    }


def _stacked(tensors: dict[str, Tensor], depth: int, ours: str) -> dict[str, Tensor]:
    """``tensors`` with convolutions 0, 1, ... below each other: weight [D C, C, 3, 3] and bias [D, C]."""
    weights, biases = ([tensors.pop(f"{d}.{kind}") for d in range(depth)] for kind in ("weight", "bias"))
    return tensors | {f"{ours}weight": torch.cat(weights), f"{ours}bias": torch.stack(biases)}


def _channels(parameters: Mapping[str, Tensor]) -> int:
    kernel = parameters.get("input_conv_f", torch.empty(0))
    return kernel.shape[2] if kernel.dim() == 3 else 1


def _count(pattern: str, names: Mapping[str, Any]) -> int:
    return sum(re.fullmatch(pattern, name) is not None for name in names)


def _recursions(layers: Mapping[str, dict]) -> int:
    """Recursions of MS-LapSRN, from the layers x<scale>SR_level1_R<r>_conv1; their skips must come from the source."""
    found = [re.fullmatch(r"(x\d+SR_level1)_R(\d+)_conv1", name) for name in layers]
    level, recursions = max(((m[1], int(m[2])) for m in found if m), key=lambda pair: pair[1], default=("", 0))
    if recursions == 0:
        raise CheckpointError("not MS-LapSRN: no layer 'x<scale>SR_level1_R1_conv1'")
    source = layers[f"{level}_R1_relu1"]["inputs"]
    skip = layers.get(f"{level}_R{recursions}_output")
    if skip is None or source not in skip["inputs"]:
        came_from = "nothing" if skip is None else ", ".join(np.atleast_1d(skip["inputs"]))
        raise CheckpointError(f"only MS-LapSRN with source skips is supported; R{recursions} adds {came_from}")
    return recursions


def _ms_lapsrn(parameters: Mapping[str, Tensor], layers: Mapping[str, dict]) -> Weights:
    channels, depth = _channels(parameters), _count(r"conv\d+_f", parameters)
    convolutions = {"input_conv": ("conv_in.", 1, channels)} | _level("", "", channels)
    convolutions |= {f"conv{d + 1}": (f"{d}.", channels, channels) for d in range(depth)}
    tensors = _converted(parameters, convolutions, {"img_up_f": ""}, "MatConvNet MS-LapSRN")
    scales = [int(m[1]) for m in (re.match(r"x(\d+)SR_", name) for name in layers) if m]
    config = {"scale": max(scales), "depth": depth, "recursions": _recursions(layers), "channels": channels}
    return Weights("MSLapSRN", config, _stacked(tensors, depth, "embedding_"))


def _lapsrn(parameters: Mapping[str, Tensor]) -> Weights:
    channels, depth = _channels(parameters), _count(r"level1_conv\d+_f", parameters)
    levels = _count(r"level\d+_img_up_f", parameters)
    convolutions, upsamplings = {"input_conv": ("conv_in.", 1, channels)}, {}
    for index in range(levels):
        theirs, ours = f"level{levels - index}_", f"levels.{index}."  # there the coarsest has the highest number
        convolutions |= {f"{theirs}conv{d + 1}": (f"{ours}convs.{d}.", channels, channels) for d in range(depth)}
        convolutions |= _level(theirs, ours, channels)
        upsamplings[f"{theirs}img_up_f"] = ours
    tensors = _converted(parameters, convolutions, upsamplings, "MatConvNet LapSRN")
    return Weights("LapSRN", {"scale": 2**levels, "depth": depth, "channels": channels}, tensors)


def _vdsr(model: Mapping[str, Any]) -> Weights:
    """A struct of two cell arrays, ``weight`` and ``bias``, with a cell a convolution."""
    depth, channels = len(model["weight"]), np.asarray(model["weight"][0]).shape[-1]
    middle = {f"conv{d + 2}": (f"{d}.", channels, channels) for d in range(depth - 2)}
    convolutions = {"input_conv": ("conv_in.", 1, channels), **middle, "output_conv": ("conv_out.", channels, 1)}
    values = {f"{name}_f": cell for name, cell in zip(convolutions, model["weight"], strict=True)}
    values |= {f"{name}_b": cell for name, cell in zip(convolutions, model["bias"], strict=True)}
    tensors = _converted(_tensors(values), convolutions, {}, "VDSR")
    return Weights("VDSR", {"depth": depth, "channels": channels}, _stacked(tensors, depth - 2, "middle_"))
