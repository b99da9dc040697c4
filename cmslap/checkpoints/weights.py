"""Weights in the names and layouts of our networks, whatever file they came from."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from cmslap.errors import UserError
from cmslap.models import NETWORKS, Network

_MOST_RECURSIONS = 1000  # what the tensors don't show; the papers' networks have 8


class CheckpointError(UserError, ValueError):
    """A checkpoint that cannot be found, read, or turned into one of our networks."""


class _SkipInit(TorchFunctionMode):
    """Build modules without starting values: no random numbers drawn, no time spent on them."""

    def __torch_function__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:  # noqa: ANN401
        kwargs = kwargs or {}
        if getattr(func, "__module__", None) == "torch.nn.init":
            return kwargs.get("tensor", args[0] if args else None)
        return func(*args, **kwargs)


@dataclass(frozen=True)
class Weights:
    """A network's name, its constructor's arguments and its state_dict.

    ``config`` may lack what bare tensors cannot say: the network's ``not_in_weights``.
    """

    architecture: str
    config: dict[str, int]
    tensors: dict[str, Tensor]

    def __post_init__(self) -> None:
        if self.architecture not in NETWORKS:
            raise CheckpointError(f"architecture {self.architecture!r} is none of {', '.join(sorted(NETWORKS))}")

    def build(self, **given: int | None) -> Network:
        """The network with these weights, on the CPU in float32 and in eval mode.

        ``given`` are arguments that ``config`` lacks; None stands for not given.
        """
        unsaid = [name for name in NETWORKS[self.architecture].not_in_weights if name not in self.config]
        given = {name: value for name, value in given.items() if value is not None}
        for name, value in given.items():
            if name not in unsaid and self.config.get(name) != value:
                said = f"{name}={self.config[name]}" if name in self.config else f"{self.architecture} has no {name}"
                raise CheckpointError(f"{name}={value} was given, but the file itself says {said}")
        if unsaid := [name for name in unsaid if name not in given]:
            options = " ".join(f"--{name.replace('_', '-')} {name[0].upper()}" for name in unsaid)
            raise CheckpointError(
                f"it holds bare tensors of {self.architecture}, which do not say {' and '.join(unsaid)}; "
                f"name them once with: cmslap convert IN OUT.safetensors {options}"
            )
        config = self.config | given
        self._check_claims(config)
        try:
            with torch.device("meta"), _SkipInit():  # takes no memory, whatever the file claims
                model = NETWORKS[self.architecture](**config)
        except (TypeError, ValueError, RuntimeError) as error:
            raise CheckpointError(f"config does not fit {self.architecture}: {error}") from None
        expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
        check_tensors(self.tensors, expected, self.architecture)
        model.load_state_dict({name: tensor.float() for name, tensor in self.tensors.items()}, assign=True)
        return model.eval()

    def _check_claims(self, config: dict[str, int]) -> None:
        """Refuse a configuration that is out of all proportion to the tensors before anything is made of it."""
        elements = sum(tensor.numel() for tensor in self.tensors.values())
        for name, value in config.items():
            if isinstance(value, bool) or not isinstance(value, int):
                raise CheckpointError(f"config {name} must be an integer, got {value!r:.60}")
            most = _MOST_RECURSIONS if name in NETWORKS[self.architecture].not_in_weights else elements
            if value > most:
                raise CheckpointError(f"config {name}={value} is absurd for {elements:,} weights; at most {most:,}")


def check_tensors(found: Mapping[str, Tensor], expected: Mapping[str, tuple[int, ...]], kind: str) -> None:
    """Raise a :class:`CheckpointError` naming the first tensor of ``found`` that is not as ``kind`` expects it."""
    for name, shape in expected.items():
        if name not in found:
            raise CheckpointError(f"not a {kind}: tensor {name!r} {list(shape)} is missing")
        if tuple(found[name].shape) != tuple(shape):
            raise CheckpointError(
                f"not a {kind}: tensor {name!r} has shape {list(found[name].shape)}, expected {list(shape)}"
            )
    for name, tensor in found.items():
        if name not in expected:
            raise CheckpointError(f"not a {kind}: unexpected tensor {name!r} of shape {list(tensor.shape)}")
        if not tensor.is_floating_point():
            raise CheckpointError(f"tensor {name!r} must be floating point, got {tensor.dtype}")
        if not np.isfinite(tensor.float().numpy()).all():
            raise CheckpointError(f"tensor {name!r} holds values that are not finite")


def infer(tensors: dict[str, Tensor]) -> Weights:
    """Which of our networks a bare state_dict belongs to."""
    for architecture, network in NETWORKS.items():
        config = network.config_of(tensors)
        if config is not None:
            return Weights(architecture, config, tensors)
    name, tensor = next(iter(tensors.items()), ("none", np.empty(0)))
    raise CheckpointError(
        f"none of {', '.join(sorted(NETWORKS))}: its first tensor is {name!r} of shape {list(tensor.shape)}"
    )
