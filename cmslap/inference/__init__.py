"""Upscaling images: tiles, self-ensemble, colour and alpha."""

from cmslap.inference.forward import super_resolve
from cmslap.inference.plan import UpscaleError
from cmslap.inference.upscaling import upscale

__all__ = ["UpscaleError", "super_resolve", "upscale"]
