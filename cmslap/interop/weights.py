"""Weights in the names and layouts of our networks, whatever file they came from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from cmslap.errors import UserError
from cmslap.models import CMSLapSRN, LapSRN, MSLapSRN

ARCHITECTURES: dict[str, type[nn.Module]] = {network.__name__: network for network in (CMSLapSRN, LapSRN, MSLapSRN)}


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
    """A network's name, its constructor's arguments and its state_dict."""

    architecture: str
    config: dict[str, int]
    tensors: dict[str, Tensor]

    def build(self) -> nn.Module:
        """The network with these weights, on the CPU in float32 and in eval mode."""
        if self.architecture not in ARCHITECTURES:
            raise CheckpointError(f"architecture {self.architecture!r} is none of {', '.join(sorted(ARCHITECTURES))}")
        try:
            with _SkipInit():
                model = ARCHITECTURES[self.architecture](**self.config)
        except (TypeError, ValueError, RuntimeError) as error:  # RuntimeError: more memory than there is
            raise CheckpointError(f"config does not fit {self.architecture}: {error}") from None
        expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
        check_tensors(self.tensors, expected, self.architecture)
        model.load_state_dict({name: tensor.float() for name, tensor in self.tensors.items()}, assign=True)
        return model.eval()


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
