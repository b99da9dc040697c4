"""The optimizers and learning-rate schedules a configuration can name.

Schedules are pure functions of the step, so that resuming needs no state.
"""

import math
from collections.abc import Sequence

from torch import nn
from torch.optim import Adam, AdamW, Muon, Optimizer

from cmslap.training.config import OptimizerConfig, ScheduleConfig


def build(settings: OptimizerConfig, parameters: Sequence[nn.Parameter]) -> list[Optimizer]:
    """One optimizer, or Muon for the kernels between features and AdamW for everything else.

    Both share the learning rate: Muon's updates are scaled to the size of Adam's (Liu et al., arXiv 2502.16982).
    ``parameters`` have their gradients already, and keep them.
    """
    if settings.name == "muon":
        kernels = [parameter for parameter in parameters if _between_features(parameter)]
        others = [parameter for parameter in parameters if not _between_features(parameter)]
        matrices = [matrix for kernel in kernels for matrix in _matrices(kernel)]
        muon = Muon(matrices, settings.lr, settings.weight_decay, settings.betas[0], adjust_lr_fn="match_rms_adamw")
        return [muon, AdamW(others, settings.lr, tuple(settings.betas), settings.eps, settings.weight_decay)]
    cls = {"adam": Adam, "adamw": AdamW}[settings.name]
    return [cls(parameters, settings.lr, tuple(settings.betas), settings.eps, settings.weight_decay)]


def _between_features(parameter: nn.Parameter) -> bool:
    """Whether a parameter is one or several kernels of as many output as input channels."""
    return parameter.ndim == 4 and parameter.shape[1] > 1 and parameter.shape[0] % parameter.shape[1] == 0


def _matrices(kernel: nn.Parameter) -> list[nn.Parameter]:  # [n C, C, h, w] -> n times [C, C h w]
    """The convolutions that lie one after the other in ``kernel``, as matrices in its memory, gradients likewise."""
    matrices = []
    channels = kernel.shape[1]
    for weight, gradient in zip(kernel.detach().split(channels), kernel.grad.split(channels), strict=True):
        matrix = nn.Parameter(weight.view(channels, -1))
        matrix.grad = gradient.view(channels, -1)
        matrices.append(matrix)
    return matrices


def _cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * share)) / 2


def factor(schedule: ScheduleConfig, step: int, steps: int) -> float:
    """Learning rate of step 0 ... ``steps - 1`` as a share of the peak.

    Warmup rises linearly over its steps, ending at the peak, and the schedule proper starts after it. One-cycle
    rises along a cosine from 1/25 of the peak instead. Cosine and one-cycle reach ``final`` at the last step.
    """
    if step < schedule.warmup:
        if schedule.name == "onecycle":
            return _cosine(1 / 25, 1.0, step / schedule.warmup)
        return (step + 1) / schedule.warmup
    done = step - schedule.warmup
    if schedule.name == "step":
        return schedule.gamma ** (done // schedule.every)
    if schedule.name in ("cosine", "onecycle"):
        return _cosine(1.0, schedule.final, done / max(1, steps - schedule.warmup - 1))
    return 1.0
