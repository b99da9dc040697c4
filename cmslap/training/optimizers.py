"""The optimizers a configuration can name."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn
from torch.optim import Adam, AdamW, Muon, Optimizer

from cmslap.training.config import OptimizerConfig


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
