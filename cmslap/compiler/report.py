"""What :func:`accelerate` did: which parts run fused, which were left alone and why."""

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
        rows = [replace(row, calls=calls * row.calls) for row, calls in Counter(fused).items()]
        self.fused += [row for row in rows if row not in self.fused]
        self.left += [row for row in dict.fromkeys(left) if row not in self.left]

    def __str__(self) -> str:
        if not self.fused and not self.left:
            return "nothing compiled yet: the report fills at the first call"
        fused = len({name for row in self.fused for name in row.modules})
        left = len(self.left)
        head = f"{fused} convolution{'s' * (fused != 1)} fused, {left} module{'s' * (left != 1)} left alone"
        modules: dict[tuple[str, str, str], list[str]] = {}  # a line for all of which the same is said
        for row in self.fused:
            times = f", {row.calls} times" * (row.calls > 1)
            modules.setdefault(("fused", row.operation, row.text + times), []).extend(row.modules)
        for row in self.left:
            modules.setdefault(("left alone", row.kind, row.reason), []).append(row.module or "(the module itself)")
        widths = [max(map(len, column)) for column in zip(*modules, strict=True)]
        for row, names in modules.items():
            head += "\n  " + "  ".join([*map(str.ljust, row, widths), _shortened(names)])
        return head


def _shortened(names: list[str]) -> str:
    if len(names) <= 3:
        return ", ".join(names)
    return f"{names[0]}, {names[1]}, ..., {names[-1]} ({len(names)})"
