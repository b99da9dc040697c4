"""Fused operations against what a user would otherwise run."""
