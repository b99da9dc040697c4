"""Triton kernels over NHWC tensors, installed as ``cmslap.kernels``. They have not run on a GPU yet."""
