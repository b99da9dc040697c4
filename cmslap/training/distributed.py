"""Several processes under ``torchrun``: who they are, and the sum over them."""

import os
from dataclasses import dataclass

import torch
import torch.distributed as dist

# Its functions hold the group that stands when it is imported, now none. Imported later (by an optimizer's first step)
# it would keep ours past destroy_process_group, and Gloo's threads past the interpreter's end, where they abort.
import torch.distributed.nn
from torch import Tensor

from cmslap.devices import find_device


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


def start(device_name: str) -> Workers:
    """Join the other processes where ``torchrun`` started this one (NCCL on CUDA, Gloo on the CPU)."""
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    device = find_device(device_name)
    if device == torch.device("cuda"):
        device = find_device(f"cuda:{os.environ.get('LOCAL_RANK', 0)}")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if world > 1:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    return Workers(rank, world, device)


def stop(workers: Workers) -> None:
    if workers.world > 1:
        dist.destroy_process_group()
