"""Laplacian-pyramid super-resolution: networks, fused operations, training and inference."""

import importlib
from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from cmslap import ops
    from cmslap.checkpoints.checkpoint import load_model, save_model
    from cmslap.compiler import accelerate, restore
    from cmslap.inference.upscaling import upscale
    from cmslap.models import MASRN, RLRDSR, VDSR, AsymVDSR, CMSLapSRN, LapSRN, MSLapSRN

# Imported when first used: importing PyTorch takes longer than the command line's --help may.
_HOMES = {  # the networks' is cmslap.models
    "accelerate": "cmslap.compiler",
    "load_model": "cmslap.checkpoints.checkpoint",
    "restore": "cmslap.compiler",
    "save_model": "cmslap.checkpoints.checkpoint",
    "upscale": "cmslap.inference.upscaling",
}

__all__ = [
    "MASRN",
    "RLRDSR",
    "VDSR",
    "AsymVDSR",
    "CMSLapSRN",
    "LapSRN",
    "MSLapSRN",
    "accelerate",
    "load_model",
    "ops",
    "restore",
    "save_model",
    "upscale",
]


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name == "ops":
        return importlib.import_module("cmslap.ops")
    value = globals()[name] = getattr(importlib.import_module(_HOMES.get(name, "cmslap.models")), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
