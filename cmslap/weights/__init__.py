"""Weights that come with the package: ``<name>.safetensors``, each with the record of its training beside it."""
