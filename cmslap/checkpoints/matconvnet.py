"""The official MATLAB models in MAT version 5 files: MatConvNet DagNN networks of LapSRN and MS-LapSRN, VDSR's cells.

MatConvNet's convolution is a correlation, as PyTorch's, and stores its kernel as [height, width, in, out]; its
transposed convolution is the adjoint and stores [height, width, out, in]. One permutation serves both. MATLAB and
scipy drop axes of length 1, so shapes are compared without them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
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
        parameters, layers = _parameters(contents["net"]), {layer["name"]: layer for layer in contents["net"]["layers"]}
        if "img_up_f" in parameters:
            return _ms_lapsrn(parameters, layers)
        if "level1_img_up_f" in parameters:
            return _lapsrn(parameters, layers)
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


def _parameters(net: Mapping[str, Any]) -> dict[str, Tensor]:
    """The network's parameters by name, in float32, without axes of length 1."""
    values = {record["name"]: np.asarray(record["value"]) for record in net["params"]}
    for name, value in values.items():
        if value.dtype.kind not in "fiu":
            raise CheckpointError(f"parameter {name!r} must be numbers, got {value.dtype}")
    return {name: torch.from_numpy(value.astype(np.float32)).squeeze() for name, value in values.items()}


def _shapes(convolutions: Mapping[str, tuple[int, ...]], upsamplings: Iterable[str]) -> dict[str, tuple[int, ...]]:
    """What every parameter's shape should be: a kernel and a bias a convolution, image upsamplings without bias."""
    shapes = {}
    for name, (*window, inputs, outputs) in convolutions.items():
        shapes[f"{name}_f"], shapes[f"{name}_b"] = (*window, inputs, outputs), (outputs,)
    shapes |= dict.fromkeys(upsamplings, (4, 4))
    return {name: tuple(length for length in shape if length != 1) for name, shape in shapes.items()}


def _convolution(
    parameters: Mapping[str, Tensor], theirs: str, ours: str, inputs: int, outputs: int
) -> dict[str, Tensor]:  # [out, in, 3, 3], [out]
    """Kernel and bias in PyTorch's layout, their names beginning with ``ours``."""
    kernel = parameters[f"{theirs}_f"].reshape(3, 3, inputs, outputs).permute(3, 2, 0, 1).contiguous()
    return {f"{ours}weight": kernel, f"{ours}bias": parameters[f"{theirs}_b"].reshape(outputs)}


def _block(parameters: Mapping[str, Tensor], theirs: Iterable[str], ours: str, channels: int) -> dict[str, Tensor]:
    """Convolutions between features, [D C, C, 3, 3] and [D, C]."""
    parts = [_convolution(parameters, name, "", channels, channels) for name in theirs]
    kernels, biases = zip(*(part.values() for part in parts), strict=True)
    return {f"{ours}weight": torch.cat(kernels), f"{ours}bias": torch.stack(biases)}


def _level(parameters: Mapping[str, Tensor], theirs: str, ours: str, channels: int) -> dict[str, Tensor]:
    """Upsampling and residual head of a level under our names; the prefixes are empty where all levels share them."""
    # The upsampling's is [in, out, 3, 3], as a transposed convolution takes it.
    upsampling = _convolution(parameters, f"{theirs}upconv", f"{ours}upsample_", channels, channels)
    residual = _convolution(parameters, f"{theirs}residual_conv", f"{ours}conv_res.", channels, 1)
    return upsampling | residual | {f"{ours}image_weight": parameters[f"{theirs}img_up_f"].reshape(1, 1, 4, 4)}


def _channels(parameters: Mapping[str, Tensor]) -> int:
    kernel = parameters.get("input_conv_f", torch.empty(0))
    return kernel.shape[2] if kernel.dim() == 3 else 1


def _count(pattern: str, names: Mapping[str, Any]) -> int:
    return sum(re.fullmatch(pattern, name) is not None for name in names)


def _check_activations(layers: Mapping[str, dict]) -> None:
    for name, layer in layers.items():
        if layer["type"] == "dagnn.ReLU" and layer["block"]["leak"] != 0.2:
            raise CheckpointError(f"layer {name!r} has slope {layer['block']['leak']}, expected 0.2")


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
    block = [f"conv{d}" for d in range(1, depth + 1)]
    convolutions = {
        "input_conv": (3, 3, 1, channels),
        **dict.fromkeys([*block, "upconv"], (3, 3, channels, channels)),
        "residual_conv": (3, 3, channels, 1),
    }
    check_tensors(parameters, _shapes(convolutions, ["img_up_f"]), "MatConvNet MS-LapSRN")
    _check_activations(layers)
    scales = [int(m[1]) for m in (re.match(r"x(\d+)SR_", name) for name in layers) if m]
    config = {"scale": max(scales), "depth": depth, "recursions": _recursions(layers), "channels": channels}
    tensors = _convolution(parameters, "input_conv", "conv_in.", 1, channels)
    tensors |= _block(parameters, block, "embedding_", channels) | _level(parameters, "", "", channels)
    return Weights("MSLapSRN", config, tensors)


def _lapsrn(parameters: Mapping[str, Tensor], layers: Mapping[str, dict]) -> Weights:
    channels, depth = _channels(parameters), _count(r"level1_conv\d+_f", parameters)
    levels = range(_count(r"level\d+_img_up_f", parameters), 0, -1)  # there the coarsest has the highest number
    convolutions = {"input_conv": (3, 3, 1, channels)}
    for level in levels:
        names = [f"level{level}_conv{d}" for d in range(1, depth + 1)] + [f"level{level}_upconv"]
        convolutions |= dict.fromkeys(names, (3, 3, channels, channels))
        convolutions[f"level{level}_residual_conv"] = (3, 3, channels, 1)
    check_tensors(parameters, _shapes(convolutions, [f"level{n}_img_up_f" for n in levels]), "MatConvNet LapSRN")
    _check_activations(layers)
    tensors = _convolution(parameters, "input_conv", "conv_in.", 1, channels)
    for index, level in enumerate(levels):
        tensors |= _level(parameters, f"level{level}_", f"levels.{index}.", channels)
        for d in range(depth):
            ours = f"levels.{index}.convs.{d}."
            tensors |= _convolution(parameters, f"level{level}_conv{d + 1}", ours, channels, channels)
    return Weights("LapSRN", {"scale": 2 ** len(levels), "depth": depth, "channels": channels}, tensors)


def _vdsr(model: Mapping[str, Any]) -> Weights:
    """A struct of two cell arrays, ``weight`` and ``bias``, with a cell a convolution."""
    cells = {"weight": model["weight"], "bias": model["bias"]}
    depth, channels = len(cells["weight"]), np.asarray(cells["weight"][0]).shape[-1]
    names = ["input_conv", *(f"conv{d}" for d in range(2, depth)), "output_conv"]
    records = [
        {"name": f"{name}_{kind[0].replace('w', 'f')}", "value": value}
        for kind, values in cells.items()
        for name, value in zip(names, values, strict=True)
    ]
    parameters = _parameters({"params": records})
    middle = dict.fromkeys(names[1:-1], (3, 3, channels, channels))
    convolutions = {"input_conv": (3, 3, 1, channels), **middle, "output_conv": (3, 3, channels, 1)}
    check_tensors(parameters, _shapes(convolutions, []), "VDSR")
    tensors = _convolution(parameters, "input_conv", "conv_in.", 1, channels)
    tensors |= _convolution(parameters, "output_conv", "conv_out.", channels, 1)
    tensors |= _block(parameters, middle, "middle_", channels)
    return Weights("VDSR", {"depth": depth, "channels": channels}, tensors)
