"""Several processes under ``torchrun``: who they are, and the sum over them."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from cmslap.errors import UserError


class DeviceError(UserError, RuntimeError):
    """A device that is not there."""


@dataclass
class Workers:
    """This process among the ``world`` processes of the run."""

    rank: int
    world: int
    device: torch.device

    @property
    def first(self) -> bool:
        """Whether this is the one process that writes files and prints."""
        return self.rank == 0

    def sum(self, tensors: list[Tensor]) -> None:
        """Replace every tensor by its sum over the processes, in one message."""
        if self.world == 1:
            return
        flat = torch.cat([tensor.flatten().float() for tensor in tensors])
        dist.all_reduce(flat)
        for tensor, total in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(total.view_as(tensor))


def _device(name: str, local_rank: int) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise DeviceError(f"device = {name!r}: expected auto, cpu, cuda or cuda:N") from error
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise DeviceError(f"device = {name!r}: no CUDA device is available here; use cpu or auto")
        device = torch.device("cuda", local_rank if device.index is None else device.index)
        if device.index >= torch.cuda.device_count():
            raise DeviceError(f"device = {str(device)!r}: there are {torch.cuda.device_count()} CUDA devices")
    elif device.type != "cpu":
        raise DeviceError(f"device = {name!r}: expected auto, cpu, cuda or cuda:N")
    return device


def start(device_name: str) -> Workers:
    """Join the other processes where ``torchrun`` started this one (NCCL on CUDA, Gloo on the CPU)."""
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    device = _device(device_name, int(os.environ.get("LOCAL_RANK", 0)))
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if world > 1:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    return Workers(rank, world, device)


def stop(workers: Workers) -> None:
    if workers.world > 1:
        dist.destroy_process_group()
