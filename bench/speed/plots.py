"""The figures drawn: speed-ups, the roofline, and how cost grows with the image."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.speed import ceilings
from bench.speed.work import OPERATIONS
from cmslap.errors import UserError
from cmslap.files import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Record = Mapping[str, Any]
COLOURS = ("#c44e52", "#dd8452", "#937860", "#8172b3", "#4c72b0", "#64b5cd", "#8c8c8c", "#ccb974")
OURS = "#55a868"
GROUPS = ("networks", "operations", "accelerated")


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
    return f"{result['name']}\n{result['dtype']}, {result['size']}"


def group_of(result: Record) -> str:
    """Which chart a case belongs to."""
    if result["case"].startswith("accelerate"):
        return "accelerated"
    return "operations" if result["case"].partition("+")[0] in OPERATIONS else "networks"


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
            axes.barh(place, speedup, color=colours[name])
            axes.text(speedup, place, f" {speedup:.2f}x", va="center", fontsize=8)
            place += 1
        place += 1
    axes.axvline(1, color=OURS, linewidth=2)
    axes.set_yticks([tick for tick, _ in ticks], [label for _, label in ticks], fontsize=8)
    axes.margins(x=0.08, y=0.01)  # room for the numbers
    axes.invert_yaxis()
    axes.set_xlabel("how many times as fast cmslap is (at the green line: as fast)")
    axes.set_title(_where(record), fontsize=10)
    handles = [axes.barh(0, 0, color=colour, label=name) for name, colour in colours.items()]
    figure.legend(handles=handles, fontsize=8, loc="outside lower center", ncols=6)
    _save(figure, path)


def _baselines(result: Record) -> dict[str, float]:
    return {name: row["speedup"] for name, row in result["timings"].items() if not name.startswith("cmslap")}


def roofline(record: Record, path: Path) -> None:
    """The rate of every case by its arithmetic intensity, under what the ceilings allow: ours and plain PyTorch's."""
    top = record["ceilings"]
    arithmetic, memory = ceilings.arithmetic(top), ceilings.memory(top)
    results = [result for result in record["results"] if result["gflop"] and result["timings"]]
    figure = _figure(8, 5)
    axes = figure.add_subplot()
    intensities = [result["gflop"] / result["gbyte"] for result in results]
    span = [min([*intensities, arithmetic / memory]) / 2, max([*intensities, arithmetic / memory]) * 2]
    knee = arithmetic / memory
    axes.plot([span[0], knee, span[1]], [span[0] * memory, arithmetic, arithmetic], color="black", linewidth=1)
    axes.annotate(f"{memory:,.0f} GB/s", (span[0], span[0] * memory), textcoords="offset points", xytext=(6, 12))
    axes.annotate(f"{arithmetic:,.0f} GFLOP/s", (span[0], arithmetic), va="bottom")
    for number, (result, intensity) in enumerate(zip(results, intensities, strict=True), start=1):
        for name, colour in ((result["baseline"], OURS), ("eager", COLOURS[0])):
            if name in result["timings"]:
                rate = result["gflop"] / result["timings"][name]["median"]
                axes.plot(intensity, rate, "o", color=colour, markersize=5)
                axes.annotate(str(number), (intensity, rate), textcoords="offset points", xytext=(4, 3), fontsize=7)
    axes.set(xscale="log", yscale="log", xlabel="FLOP a byte", ylabel="GFLOP/s, counted as plain convolutions")
    axes.set_title(f"{_where(record)}: cmslap (green), eager (red), direct convolution's roofline", fontsize=10)
    legend = "\n".join(f"{n} {r['name']}, {r['size']}" for n, r in enumerate(results, start=1))
    figure.text(1.01, 0.5, legend, fontsize=7, va="center")
    with replacing(path) as temporary:
        figure.savefig(temporary, bbox_inches="tight")


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
