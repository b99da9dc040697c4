"""Upscaling images: tiles, self-ensemble, colour and alpha."""
