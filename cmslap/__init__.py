"""Laplacian-pyramid super-resolution: networks, fused operations, training and inference."""

__version__ = "0.1.0"

from cmslap import ops
from cmslap.checkpoints.checkpoint import load_model, save_model
from cmslap.compiler import accelerate, restore
from cmslap.inference import upscale
from cmslap.models import CMSLapSRN, LapSRN, MSLapSRN

__all__ = ["CMSLapSRN", "LapSRN", "MSLapSRN", "accelerate", "load_model", "ops", "restore", "save_model", "upscale"]
