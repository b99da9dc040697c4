"""Upscaling images: tiles, self-ensemble, colour and alpha."""

from cmslap.inference.tiling import receptive_field_radius
from cmslap.inference.upscaling import UpscaleError, super_resolve, upscale

__all__ = ["UpscaleError", "receptive_field_radius", "super_resolve", "upscale"]
