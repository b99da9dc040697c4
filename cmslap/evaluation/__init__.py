"""Figures of merit, benchmark sets and their tables."""
