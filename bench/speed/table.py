"""Figures as text that explains itself."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from bench.speed import ceilings
from bench.speed.load import noise

WIDTH = 30  # of a name


def heading(record: Mapping[str, Any]) -> str:
    """What ran where, what the device can do at most, and what the columns mean."""
    threads = "" if record["on"] == "cuda" else f", {record['threads']} threads"
    return f"""\
cmslap {record["cmslap"]}, PyTorch {record["torch"]}, {record["device"]}{threads}
{ceilings_text(record["ceilings"])}

time       of one call: the median of all turns; half of the turns lie in the range behind it
cmslap is  how many times as fast as this row cmslap ran: 1.00x as fast, 2.00x in half the time, 0.50x in twice the time
of limit   share of what the ceilings allow for the work counted as plain convolutions; Winograd's algorithm does with
           fewer multiplications, so more than 100% is possible
memory     the most a call took beyond inputs and weights
[...]      what another backend than the row's ran
"eager" is plain PyTorch in channels_last memory, "eager NCHW" in its ordinary layout.
"""


def ceilings_text(*tops: Mapping[str, Any]) -> str:
    """What one run's device can do at most, or from the least to the most of several runs."""
    arithmetic = _range([ceilings.arithmetic(top) for top in tops])
    memory = _range([ceilings.memory(top) for top in tops])
    return f"Ceilings measured: {arithmetic} GFLOP/s of {tops[0]['dtype']} arithmetic, {memory} GB/s of memory."


def _range(values: Sequence[float]) -> str:
    least, most = f"{min(values):,.0f}", f"{max(values):,.0f}"
    return most if least == most else f"{least} to {most}"


def brief(result: Mapping[str, Any]) -> str:
    """One case in one line: the first one's time, and how many times as fast as every other it is."""
    timings = dict(result["timings"])
    line = f"{result['name']}, {result['size']}: "
    failed = [f"{name} failed: {reason}" for name, reason in result["failed"].items()]
    if not timings:
        return line + "; ".join(failed)
    first = timings.pop(result["baseline"])
    share = f" ({first['share_of_floor']:.0%} of limit)" if "share_of_floor" in first else ""
    line += f"{result['baseline']} {seconds_text(first['median'])}{share}{_others_ran(result['baseline'], first)}"
    others = [f"{timing['speedup']:.2f}x {name}" for name, timing in timings.items()]
    return "; ".join([line + (", which is " if others else "") + ", ".join(others), *failed])


def _others_ran(name: str, timing: Mapping[str, Any]) -> str:
    """Which operations of a row of ours another backend ran, in brackets."""
    own = name.rpartition(" ")[2]
    foreign = [
        f"{operation} by {' and '.join(backend for backend in backends if backend != own)}"
        for operation, backends in timing.get("backends", {}).items()
        if name.startswith("cmslap ") and backends != [own]
    ]
    return f" [{', '.join(foreign)}]" if foreign else ""


def table(result: Mapping[str, Any]) -> str:
    """One case."""
    lines = [f"{result['name']}, {result['dtype']}, {result['size']}"]
    if result["baseline"] and not result["baseline"].startswith("cmslap"):
        lines[0] += f"   (cmslap has no time: ratios are those of {result['baseline']})"
    lines += [f"  {noise([result])}"] * bool(noise([result]))
    lines += [
        f"  {name:<{WIDTH}}{_row(timing)}{_others_ran(name, timing)}" for name, timing in result["timings"].items()
    ]
    lines += [f"  {name:<{WIDTH}}absent: {reason}" for name, reason in result["absent"].items()]
    lines += [f"  {name:<{WIDTH}}failed: {reason}" for name, reason in result["failed"].items()]
    return "\n".join(lines)


def _row(timing: Mapping[str, Any]) -> str:
    time = f"{seconds_text(timing['median']):>10}  ({seconds_text(timing['low'])} to {seconds_text(timing['high'])})"
    return f"{time:<36}cmslap is {timing['speedup']:5.2f}x" + "".join(f"  {column}" for column in _columns(timing))


def _columns(timing: Mapping[str, Any]) -> Iterator[str]:
    if "share_of_floor" in timing:
        yield f"{timing['share_of_floor']:4.0%} of limit"
    if "images_per_second" in timing:
        yield f"{timing['images_per_second']:.3g} images/s"
    if timing.get("peak_bytes") is not None:
        yield f"memory {bytes_text(timing['peak_bytes'])}"
    if timing.get("joules") is not None:
        yield f"{timing['joules']:.3g} J"


def seconds_text(seconds: float) -> str:
    """Three digits and a unit."""
    for unit, name in ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs")):
        if seconds >= unit or unit == 1e-6:
            return f"{_three_digits(seconds / unit)} {name}"
    raise AssertionError("the last unit serves all")


def _three_digits(value: float) -> str:
    return f"{value:.{2 if value < 9.995 else 1 if value < 99.95 else 0}f}"


def bytes_text(count: float) -> str:
    return f"{_three_digits(count / 2**30)} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"
