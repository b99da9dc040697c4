"""Triton kernels, installed as ``cmslap.kernels``."""
