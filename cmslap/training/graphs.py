"""Forward and backward pass as CUDA graphs: one launch where there are hundreds, which small networks are bound by.

What a graph holds is addresses. So images are copied into buffers that stay, and gradients are added to those that the
parameters keep. The optimizer and the sum over processes are outside: they come once a step, not once a scale.
"""

import functools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from cmslap.training.config import ConfigError
from cmslap.training.data import ScaleBatch

WARM_UPS = 3  # passes before the recording: kernels are compiled and tuned, libraries take their workspaces


def require_gpu(device: torch.device) -> None:
    """Raise :class:`ConfigError` where there are no CUDA graphs."""
    if device.type != "cuda":
        raise ConfigError(f"graph = true: CUDA graphs need a CUDA GPU, and this run is on {device}; leave graph out")


@functools.cache
def _pool() -> tuple[int, int]:
    """Memory that all graphs share, as none runs beside another or needs what it made the last time."""
    return torch.cuda.graph_pool_handle()


def record(function: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
    """The launches of ``function`` as a graph: what replays it, and the tensor into which each replay puts the result.

    Runs ``function`` a few times first, on a stream of its own, as a capture asks for.
    """
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM_UPS):
            function()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    # Other threads, such as the one that watches over NCCL, may call CUDA meanwhile.
    with torch.cuda.graph(graph, pool=_pool(), capture_error_mode="thread_local"):
        result = function()
    return graph.replay, result


class Graphs:
    """Does what ``backpropagate`` does by replaying a graph for each kind of batch, recorded at the first of its kind.

    A kind is the scale and the shapes. The loss that a call returns lasts until the next call.
    """

    def __init__(self, backpropagate: Callable[[ScaleBatch], Tensor], parameters: Sequence[nn.Parameter]) -> None:
        self.backpropagate = backpropagate
        self.gradients = [parameter.grad for parameter in parameters]
        self.recorded: dict[tuple[object, ...], tuple[list[Tensor], Callable[[], None], Tensor]] = {}

    def __call__(self, batch: ScaleBatch) -> Tensor:  # []
        images = [batch.low, *batch.targets]
        kind = (batch.scale, batch.count, *(image.shape for image in images))
        if kind not in self.recorded:
            self.recorded[kind] = self._record(batch)
        buffers, replay, loss = self.recorded[kind]
        torch._foreach_copy_(buffers, images)
        replay()
        return loss

    def _record(self, batch: ScaleBatch) -> tuple[list[Tensor], Callable[[], None], Tensor]:
        """Buffers for such batches, their graph, and its loss. Gradients stay as they are."""
        low, *targets = buffers = [image.clone() for image in (batch.low, *batch.targets)]
        kept = [gradient.clone() for gradient in self.gradients]
        replay, loss = record(lambda: self.backpropagate(ScaleBatch(batch.scale, batch.count, low, targets)))
        torch._foreach_copy_(self.gradients, kept)
        return buffers, replay, loss
