"""The figures drawn: speed-ups, and how cost grows with the image."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.speed.work import OPERATIONS
from cmslap.errors import UserError
from cmslap.files import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Record = Mapping[str, Any]
COLOURS = ("#c44e52", "#dd8452", "#937860", "#8172b3", "#4c72b0", "#64b5cd", "#8c8c8c", "#ccb974")
OURS = "#55a868"


class PlotError(UserError, ImportError):
    """Nothing here can draw."""


def check() -> None:
    """Raise PlotError unless matplotlib is installed."""
    if importlib.util.find_spec("matplotlib") is None:
        raise PlotError("--plot needs matplotlib, which is not installed: pip install cmslap[plot]")


def _figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure  # no pyplot: no display, no global state

    return Figure((width, height), dpi=100, layout="constrained")


def _save(figure: Figure, path: Path) -> None:
    with replacing(path) as temporary:
        figure.savefig(temporary)


def _where(record: Record) -> str:
    return record["device"] if record["on"] == "cuda" else f"{record['device']}, {record['threads']} threads"


def _title(result: Record) -> str:
    return f"{result['name']}\n{result['size']}"


def group_of(result: Record) -> str:
    """Which chart a case belongs to."""
    if result["case"].startswith("accelerate"):
        return "accelerated"
    first, _, rest = result["case"].partition("+")[0].partition("-")  # such as laptop-conv2d_lrelu+backward
    return "operations" if first in OPERATIONS or rest in OPERATIONS or "gradient" in rest else "networks"


def speedups(record: Record, path: Path, group: str | None = None) -> None:
    """Bars: how many times as long as ours every baseline took, in clusters of a case; of one group, or of all."""
    results = [result for result in record["results"] if (result["baseline"] or "").startswith("cmslap")]
    results = [result for result in results if group in (None, group_of(result))]
    if not results:
        return
    bars = [(result, _baselines(result)) for result in results]
    rows = sum(len(row) + 1 for _, row in bars)
    figure = _figure(9, 1.2 + 0.22 * rows)
    axes = figure.add_subplot()
    names = list(dict.fromkeys(name for _, row in bars for name in row))
    colours = {name: COLOURS[index % len(COLOURS)] for index, name in enumerate(names)}
    place, ticks = 0, []
    for result, row in bars:
        ticks.append((place + (len(row) - 1) / 2, _title(result)))
        for name, speedup in row.items():
            axes.barh(place, speedup - 1, left=1, color=colours[name])
            axes.text(max(speedup, 1), place, f" {speedup:.2f}x", va="center", fontsize=8)
            place += 1
        place += 1
    axes.axvline(1, color=OURS, linewidth=2)
    axes.set_yticks([tick for tick, _ in ticks], [label for _, label in ticks], fontsize=8)
    axes.set_xscale("log", base=2)
    axes.set_xlim(left=0.5)
    axes.xaxis.set_major_formatter("{x:g}x")
    axes.margins(x=0.08, y=0.01)  # room for the numbers
    axes.invert_yaxis()
    axes.set_xlabel("how many times as fast cmslap is (at the green line: as fast)")
    axes.set_title(_where(record), fontsize=10)
    handles = [axes.barh(0, 0, color=colour, label=name) for name, colour in colours.items()]
    figure.legend(handles=handles, fontsize=8, loc="outside lower center", ncols=6)
    _save(figure, path)


def _baselines(result: Record) -> dict[str, float]:
    return {name: row["speedup"] for name, row in result["timings"].items() if not name.startswith("cmslap")}


def scaling(record: Record, path: Path) -> None:
    """Time and peak memory against the image's pixels."""
    figure = _figure(9, 4.2)
    time, memory = figure.subplots(1, 2)
    names = list(dict.fromkeys(name for result in record["results"] for name in result["timings"]))
    for index, name in enumerate(names):
        rows = [(result["pixels"], result["timings"].get(name)) for result in record["results"]]
        rows = [(pixels, row) for pixels, row in rows if row]
        style = {"marker": "o", "label": name, "color": OURS if index == 0 else COLOURS[index - 1]}
        time.plot([pixels for pixels, _ in rows], [row["median"] for _, row in rows], **style)
        known = [(pixels, row["peak_bytes"] / 2**30) for pixels, row in rows if row.get("peak_bytes")]
        memory.plot([pixels for pixels, _ in known], [gib for _, gib in known], **style)
    _axes(time, record, "seconds an image")
    _axes(memory, record, "GiB at the peak, beyond input and weights")
    figure.suptitle(f"{record['results'][0]['name']}, {record['results'][0]['dtype']}: {_where(record)}", fontsize=10)
    _save(figure, path)


def _axes(axes: Axes, record: Record, label: str) -> None:
    axes.set(xscale="log", yscale="log", xlabel="pixels of the input", ylabel=label)
    pixels = [result["pixels"] for result in record["results"]]
    axes.set_xticks(pixels, [f"{round(count**0.5)}²" for count in pixels])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend()


PLOTS: dict[str, Callable[[Record, Path], None]] = {"cpu": speedups, "gpu": speedups, "scaling": scaling}
