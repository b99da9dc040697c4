"""What :func:`accelerate` did: which parts run fused, which were left alone and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace


@dataclass(frozen=True)
class Fused:
    """Modules whose work one operation does."""

    operation: str  # of cmslap.ops
    modules: tuple[str, ...]  # paths of the convolutions
    text: str  # what they are
    calls: int = 1  # in one forward pass


@dataclass(frozen=True)
class Skipped:
    """A module that runs as before."""

    module: str
    kind: str  # its class
    reason: str


@dataclass
class Report:
    """Print it; or read ``fused`` and ``left``."""

    fused: list[Fused] = field(default_factory=list)
    left: list[Skipped] = field(default_factory=list)

    def add(self, fused: Iterable[Fused], left: Iterable[Skipped]) -> None:
        """Add what happened in one graph; what is known already, of another, stays."""
        calls: Counter[Fused] = Counter()
        for row in fused:
            calls[replace(row, calls=0)] += row.calls
        rows = [replace(row, calls=count) for row, count in calls.items()]
        self.fused += [row for row in rows if row not in self.fused]
        self.left += [row for row in dict.fromkeys(left) if row not in self.left]

    def __str__(self) -> str:
        if not self.fused and not self.left:
            return "nothing compiled yet: the report fills at the first call"
        fused = len({name for row in self.fused for name in row.modules})
        left = len(self.left)
        head = f"{fused} convolution{'s' * (fused != 1)} fused, {left} module{'s' * (left != 1)} left alone"
        rows = [("fused", row.operation, _count(row.text, row.calls), _shortened([*row.modules])) for row in self.fused]
        rows += [("left alone", row.kind, row.reason, row.module or "(the module itself)") for row in self.left]
        return "\n".join([head, *_table(_merged(rows))])


def _count(text: str, calls: int) -> str:
    return text if calls == 1 else f"{text}, {calls} times"


def _merged(rows: Iterable[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """Rows that differ only in their module, as one."""
    modules: dict[tuple[str, ...], list[str]] = {}
    for *what, module in rows:
        modules.setdefault(tuple(what), []).append(module)
    return [(*what, _shortened(names)) for what, names in modules.items()]


def _shortened(names: list[str]) -> str:
    if len(names) <= 3:
        return ", ".join(names)
    return f"{names[0]}, {names[1]}, ..., {names[-1]} ({len(names)})"


def _table(rows: list[tuple[str, ...]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)][:-1]
    return ["  " + "  ".join([*(f"{c:<{w}}" for c, w in zip(row, widths, strict=False)), row[-1]]) for row in rows]
