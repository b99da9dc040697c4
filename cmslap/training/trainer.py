"""The network being trained, its loss, optimizer and averaged weights: one step from images to an update."""

import contextlib
import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from cmslap.checkpoints.checkpoint import load_model
from cmslap.checkpoints.weights import CheckpointError
from cmslap.devices import PRECISIONS
from cmslap.models import Network
from cmslap.training import graphs, optimizers
from cmslap.training.config import Config, LossConfig
from cmslap.training.data import ScaleBatch
from cmslap.training.distributed import Workers


def pixel_loss(output: Tensor, target: Tensor, loss: LossConfig) -> Tensor:  # [N, C, H, W] twice -> [N]
    """Mean over each image's pixels of |x| (l1) or sqrt(x² + eps²) (charbonnier), x the error, in float32."""
    error = output.float() - target
    error = error.abs() if loss.name == "l1" else torch.sqrt(error * error + loss.eps**2)
    return error.mean(dim=(1, 2, 3))


def pyramid_loss(
    outputs: list[Tensor],  # from the smallest to the largest: [N, C, h, w]
    targets: list[Tensor],  # as the outputs
    loss: LossConfig,
) -> Tensor:  # [N]
    """Sum over the levels of the weighted pixel losses. ``loss.level_weights`` count from the HR-sized output down."""
    weights = loss.level_weights or [1.0] * len(outputs)
    pairs = zip(reversed(outputs), reversed(targets), weights, strict=False)  # fewer levels than weights at low scales
    return sum(weight * pixel_loss(output, target, loss) for output, target, weight in pairs)


def _initialise(model: Network, path: str) -> None:
    """Start ``model`` from the weights in a file, or from shipped ones by their name."""
    weights = load_model(path)
    try:
        model.load_state_dict(weights.state_dict())
    except RuntimeError as error:
        held = f"{type(weights).__name__} {weights.config()}"
        raise CheckpointError(f"init = {path!r}: a {held}; here is {type(model).__name__} {model.config()}") from error


@contextlib.contextmanager
def _fastest_convolutions() -> Iterator[None]:
    """Let cuDNN time its algorithms, which pays for a step's few shapes and would not for validation's many."""
    before, torch.backends.cudnn.benchmark = torch.backends.cudnn.benchmark, True
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


class Trainer:
    """One process's copy; ``average`` is the network with the exponential moving average of the weights.

    Every process backpropagates its own images of the global batch, and the gradients are summed over the processes:
    all copies stay equal, and equal to what one process with the whole batch would have, but for rounding.
    """

    def __init__(self, config: Config, workers: Workers) -> None:
        self.config, self.workers = config, workers
        torch.manual_seed(config.seed)
        self.model = config.build_model()
        if config.init:
            _initialise(self.model, config.init)
        self.model.to(workers.device)
        self.average = copy.deepcopy(self.model).requires_grad_(False)
        self.forward = torch.compile(self.model, dynamic=False) if config.compile else self.model
        self.parameters = list(self.model.parameters())
        for parameter in self.parameters:
            parameter.grad = torch.zeros_like(parameter)  # a process without images sums zeros
        self.backpropagate = self._backpropagate
        if config.graph:
            graphs.require_gpu(workers.device)
            self.backpropagate = graphs.Graphs(self._backpropagate, self.parameters)
        self.optimizers = optimizers.build(config.optimizer, self.parameters)
        self.scaler = torch.amp.GradScaler(workers.device.type, enabled=PRECISIONS[config.precision] == torch.float16)

    def lr(self, step: int) -> float:
        """Learning rate of a step, the first being 0."""
        return self.config.optimizer.lr * optimizers.factor(self.config.schedule, step, self.config.steps)

    def learn(self, step: int, batches: list[ScaleBatch], *also_summed: Tensor) -> Tensor:  # [number of scales]
        """Update the weights with a step's images; each scale's mean loss, in the order of ``config.scales``.

        ``also_summed`` are replaced by their sums over the processes, in the message that sums the gradients.
        """
        losses = torch.zeros(len(self.config.scales), device=self.workers.device)
        with _fastest_convolutions():
            for batch in batches:
                losses[self.config.scales.index(batch.scale)] = self.backpropagate(batch)
        self.workers.sum([parameter.grad for parameter in self.parameters] + [losses, *also_summed])
        self._update(step)
        return losses

    def _backpropagate(self, batch: ScaleBatch) -> Tensor:  # []
        """Add this batch's gradients; its part of its scale's mean loss."""
        low, precision = batch.low, PRECISIONS[self.config.precision]
        if self.config.channels_last:
            low = low.to(memory_format=torch.channels_last)  # contiguous() would take one channel as it is
        with torch.autocast(low.device.type, precision, enabled=precision != torch.float32):
            outputs = self.forward(low, batch.scale)
        loss = pyramid_loss(outputs, batch.targets, self.config.loss).sum()
        self.scaler.scale(loss / self.config.batch).backward()
        return loss.detach() / batch.count

    def _update(self, step: int) -> None:
        for optimizer in self.optimizers:
            self.scaler.unscale_(optimizer)
        if self.config.optimizer.clip:
            nn.utils.clip_grad_norm_(self.parameters, self.config.optimizer.clip)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = self.lr(step)
            self.scaler.step(optimizer)
        self.scaler.update()
        self.model.zero_grad(set_to_none=False)
        decay = min(self.config.ema, (1 + step) / (10 + step))  # the first weights are soon forgotten
        torch._foreach_lerp_(list(self.average.parameters()), self.parameters, 1 - decay)

    def finite(self) -> bool:
        """Whether all weights are."""
        return all(bool(parameter.isfinite().all()) for parameter in self.parameters)

    def state(self) -> dict[str, Any]:
        return {
            "model": self.model.state_dict(),
            "ema": self.average.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "scaler": self.scaler.state_dict(),
        }

    def load(self, state: dict[str, Any]) -> None:
        """Go on from :meth:`state`, with this configuration's settings of the optimizer."""
        self.model.load_state_dict(state["model"])
        self.average.load_state_dict(state["ema"])
        self.scaler.load_state_dict(state["scaler"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
            for group in optimizer.param_groups:
                group.update(optimizer.defaults)
