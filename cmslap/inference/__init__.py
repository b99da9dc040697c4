"""Upscaling images: tiles, self-ensemble, colour and alpha."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cmslap.inference.plan import UpscaleError
    from cmslap.inference.upscaling import upscale

_HOMES = {"UpscaleError": "plan", "upscale": "upscaling"}  # imported when first used

__all__ = ["UpscaleError", "upscale"]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"cmslap.inference.{_HOMES[name]}"), name)
