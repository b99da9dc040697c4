"""Upscaling images: tiles, self-ensemble, colour and alpha."""

from cmslap.inference.plan import UpscaleError
from cmslap.inference.upscaling import super_resolve, upscale

__all__ = ["UpscaleError", "super_resolve", "upscale"]
