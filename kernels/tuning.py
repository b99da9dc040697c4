"""How a kernel's tile shape is chosen: Triton's tuner times a few configurations once for each kind of call.

A kind is the channels, the operands' type and a size class (:func:`size_bucket`), so a training run on crops of many
sizes tunes each kernel a handful of times. Results are kept in Triton's cache folder (``TRITON_CACHE_DIR``) and read
back by later processes. Tuning happens within the first call of a kind: make that call before timing, or before
capturing a CUDA graph. Every launch may be repeated, since no kernel reads what it writes.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import triton

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

    def tuned(self, *key: str) -> Callable[[Any], Any]:
        """Decorator: tune the kernel anew for each value of the arguments in ``key`` and each dtype."""

        def prune(_: list[triton.Config], arguments: dict[str, Any], **constants: object) -> list[triton.Config]:
            return self.fitting(arguments[self.operand].dtype, constants["PRECISION"])

        every = [self.interpreted] if INTERPRETED else [*self.half, *self.tf32, *self.ieee]
        return triton.autotune(every, list(key), prune_configs_by={"early_config_prune": prune}, cache_results=True)


def precision(dtype: torch.dtype) -> str:
    """How ``tl.dot`` multiplies float32: as cuDNN's convolutions are allowed to."""
    return "tf32" if dtype == torch.float32 and torch.backends.cudnn.allow_tf32 else "ieee"


def size_bucket(pixels: int) -> int:
    """The size class of a launch: powers of four, all above a million pixels alike."""
    return min(max(pixels, 1).bit_length() // 2, 10)


@functools.cache
def multiprocessors(device: torch.device) -> int:
    """Multiprocessors of a GPU; the interpreter gets two."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 2
