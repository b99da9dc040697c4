"""How a kernel's tile shape is chosen: Triton's tuner times a few configurations once for each kind of call.

A kind is the channels, the operands' type and a size class (:func:`size_bucket`), so a training run on crops of many
sizes tunes each kernel a handful of times. Results are kept in Triton's cache folder (``TRITON_CACHE_DIR``) and read
back by later processes. Tuning happens within the first call of a kind: make that call before timing, or before
capturing a CUDA graph. Every launch may be repeated, since no kernel reads what it writes.

Later calls of the kind go past the tuner, which takes the host longer than the rest of the launch.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor
from triton.runtime.autotuner import Autotuner

INTERPRETED = triton.knobs.runtime.interpret


@dataclass(frozen=True)
class Configurations:
    """What to try, by the operands of the matrix products: 16-bit, TF32, or exact float32.

    ``operand`` names the kernel's argument whose dtype decides; ``interpreted`` is the one used in the interpreter,
    small so that tests meet tile borders.
    """

    operand: str
    half: Sequence[triton.Config]
    tf32: Sequence[triton.Config]
    ieee: Sequence[triton.Config]
    interpreted: triton.Config

    def fitting(self, dtype: torch.dtype, dot_precision: str) -> list[triton.Config]:
        """The configurations for operands of ``dtype``."""
        if INTERPRETED:
            return [self.interpreted]
        if dtype != torch.float32:
            return list(self.half)
        return list(self.tf32 if dot_precision == "tf32" else self.ieee)

    def tuned(self, *key: str, partial: str | None = None) -> Callable[[Any], TunedKernel]:
        """Decorator: tune the kernel anew for each value of the arguments in ``key`` and each dtype.

        ``partial`` names a tensor of which a tile shape writes its own rows only, the others being zero: those that
        the shapes tried and not taken have written are made zero again.
        """

        def prune(_: list[triton.Config], arguments: dict[str, Any], **constants: object) -> list[triton.Config]:
            return self.fitting(arguments[self.operand].dtype, constants["PRECISION"])

        def clear(arguments: dict[str, Any], reset_only: bool = False) -> None:
            if arguments[partial] is not None:
                arguments[partial].zero_()

        every = [self.interpreted] if INTERPRETED else [*self.half, *self.tf32, *self.ieee]
        settings = {"prune_configs_by": {"early_config_prune": prune}, "pre_hook": clear if partial else None}
        tuner = triton.autotune(every, list(key), cache_results=True, **settings)
        return lambda kernel: TunedKernel(tuner(kernel))


class TunedKernel:
    """A kernel and its tuner, which is asked at the first call of a kind."""

    def __init__(self, tuner: Autotuner) -> None:
        self.tuner = tuner
        self.chosen: dict[tuple[object, ...], tuple[dict[str, int], dict[str, Any]]] = {}

    def launch(
        self,
        grid: Callable[[dict[str, int]], tuple[int, ...]],  # of the tile shape
        *arguments: Tensor | float | None,  # the size class is the last
        **constants: int | str,
    ) -> None:
        kind = (arguments[-1], *constants.values(), *[getattr(argument, "dtype", None) for argument in arguments])
        if kind in self.chosen:
            tile, constants = self.chosen[kind]
            self.tuner.fn.run(*arguments, grid=grid(tile), warmup=False, **constants)
        else:
            self.tuner.run(*arguments, grid=grid, warmup=False, **constants)
            best = self.tuner.best_config
            self.chosen[kind] = best.kwargs, {**constants, **best.all_kwargs()}


def precision(dtype: torch.dtype) -> str:
    """How ``tl.dot`` multiplies float32: as cuDNN's convolutions are allowed to.

    ``fp32_precision`` is what counts; ``allow_tf32`` sets it, and cannot be read once it was set by itself.
    """
    return "tf32" if dtype == torch.float32 and torch.backends.cudnn.conv.fp32_precision == "tf32" else "ieee"


def size_bucket(pixels: int) -> int:
    """The size class of a launch: powers of four, all above a million pixels alike."""
    return min(max(pixels, 1).bit_length() // 2, 10)


@functools.cache
def multiprocessors(device: torch.device) -> int:
    """Multiprocessors of a GPU; the interpreter gets two."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 2
