"""What the kernels must reach on a GPU, and what they reached.

Shares of the matrix product measured in the same run; times as fast as what a user would otherwise run, and shares of
its memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

Records = Mapping[str, Mapping[str, Any]]  # of ``python -m bench --json``


@dataclass(frozen=True)
class Bar:
    """A value that must be ``bar`` and should be ``goal``, at least, or for memory at most."""

    name: str
    bar: float
    goal: float
    value: float | None  # None: not measured yet
    unit: str

    @property
    def text(self) -> str:
        wanted = f"(bar {_number(self.bar, self.unit)}, goal {_number(self.goal, self.unit)})"
        if self.value is None:
            return f"{self.name}: not measured {wanted}"
        sign = -1 if self.unit == "of eager's memory" else 1
        reached = [word for word, limit in (("goal", self.goal), ("bar", self.bar)) if sign * (self.value - limit) >= 0]
        verdict = f"{reached[0]} reached" if reached else "short of the bar"
        return f"{self.name}: {_number(self.value, self.unit)} {self.unit} {wanted}: {verdict}"


def _number(value: float, unit: str) -> str:
    return f"{value:.0%}" if unit == "of the matrix product" else f"{value:.2f}x"


def answered(records: Records) -> list[Bar]:
    """Every bar with its value by the best backend of ours that was measured."""
    cases = {
        result["case"]: (result, record["ceilings"]) for record in records.values() for result in record["results"]
    }

    def share(case: str) -> float | None:
        result, ceilings = cases.get(case, (None, None))
        ours = _ours(result)
        return result["gflop"] / min(row["median"] for row in ours) / ceilings["matmul_gflops"] if ours else None

    def times(case: str, baseline: str) -> float | None:
        result, _ = cases.get(case, (None, None))
        ours = _ours(result)
        if not ours or baseline not in result["timings"]:
            return None
        return result["timings"][baseline]["median"] / min(row["median"] for row in ours)

    def memory(case: str) -> float | None:
        result, _ = cases.get(case, (None, None))
        rows = [row["peak_bytes"] for row in _ours(result) if row.get("peak_bytes")]
        eager = result["timings"].get("eager", {}).get("peak_bytes") if rows else None
        return min(rows) / eager if eager else None

    return list(_bars(share, times, memory))


def _ours(result: Mapping[str, Any] | None) -> list[Mapping[str, Any]]:
    rows = result["timings"].items() if result else ()
    return [row for name, row in rows if name.startswith("cmslap ") and not name.startswith("cmslap graph")]


def _bars(
    share: Callable[[str], float | None],
    times: Callable[[str, str], float | None],
    memory: Callable[[str], float | None],
) -> Iterator[Bar]:
    tuned = "torch.compile max-autotune-no-cudagraphs"
    product, eager, compiled, less = "of the matrix product", "eager", "torch.compile", "of eager's memory"
    yield Bar("conv2d_lrelu, forward", 0.6, 0.8, share("conv2d_lrelu"), product)
    yield Bar("conv2d_lrelu, data gradient", 0.55, 0.75, share("conv2d_lrelu-data-gradient"), product)
    yield Bar("conv2d_lrelu, weight gradient", 0.55, 0.75, share("conv2d_lrelu-weight-gradient"), product)
    block = "recursive_embedding+backward"
    yield Bar("block, forward + backward", 1.8, 2.5, times(block, eager), "eager's speed")
    yield Bar("block, forward + backward", 1.4, 2.0, times(f"compiled-{block}", tuned), "max-autotune's speed")
    upsampling = times("tied_conv_transpose2d+backward", eager)
    yield Bar("tied transposed convolution, forward + backward", 2.0, 4.0, upsampling, "eager's speed")
    yield Bar("training step", 1.8, 2.5, times("training", eager), "eager's speed")
    yield Bar("training step", 1.4, 2.0, times("compiled-training", compiled), "torch.compile's speed")
    yield Bar("training step", 0.55, 0.55, memory("training"), less)
    yield Bar("training step, recompute", 0.55, 0.2, memory("recompute-training"), less)
