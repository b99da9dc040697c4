"""The evaluation of small videos and their weights as text, JSON and a plot."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

from cmslap.files import replacing
from cmslap.provenance import provenance
from cmslap.video.evaluate import load_beside, rival, table
from cmslap.video.reading import VideoReader
from cmslap.video.writing import packets

WAYS = {"bicubic": "bicubic", "as": "AS-model", "os": "OS-model"}
_FEWEST_POINTS = 4  # of a curve, for BD-rate
Row = dict[str, float]


def report(original: Path, smalls: Sequence[Path], with_rival: bool, record: Path | None, plot: Path | None) -> None:
    """Print a table for each small video; write all of it to ``record``, and a drawing to ``plot``."""
    results = [evaluate(original, small, with_rival) for small in smalls]
    for result in results:
        print(f"\n{result['small']}\n{text(result)}")
    rates = bd_rates(results)
    for name, percent in rates.items():
        print(f"BD-rate of {name} against HEVC at full size: {percent:+.1f} %")
    if record is not None:
        data = {**provenance(), "original": original.name, "results": results, "bd_rate": rates}
        with replacing(record) as temporary:
            temporary.write_text(json.dumps(finite(data), indent=1, allow_nan=False) + "\n", encoding="utf-8")
    if plot is not None:
        draw(results, plot)


def evaluate(original: Path, small: Path, with_rival: bool) -> dict:
    """The table of one small video and its means; the rival's rate and PSNR."""
    weights = load_beside(small)
    rows = table(original, small, weights)
    result = {"small": small.name, "table": rows, "mean": means(rows), "weights_bits": weights.bits[0]}
    if with_rival:
        video_bits = 8 * sum(packet.size for packet in packets([small]))
        bits, psnr = rival(original, video_bits + weights.bits[0] + sum(weights.bits[1]), weights.scenes)
        pixels = weights.size[0] * weights.size[1] * sum(row["frames"] for row in rows)
        with VideoReader(original) as reader:
            seconds = float(sum(row["frames"] for row in rows) / reader.properties.rate)
        result["rival"] = {"bpp": bits / pixels, "bitrate": bits / seconds, "psnr": psnr, "mean_psnr": fmean(psnr)}
    return result


def means(rows: Sequence[Row]) -> Row:
    """Means over scenes of PSNR and bits a pixel."""
    return {key: fmean(row[key] for row in rows) for key in rows[0] if key.endswith(("_psnr", "_bpp"))}


def text(result: dict) -> str:
    """The paper's Table 1, with the means and HEVC at full size below."""
    lines = ["scene   " + "".join(f"{title:>9} dB      bpp" for title in WAYS.values())]
    entries = [(str(row["scene"]), row) for row in result["table"]] + [("mean", result["mean"])]
    for name, row in entries:
        lines.append(f"{name:8}" + "".join(f"{row[f'{way}_psnr']:12.2f} {row[f'{way}_bpp']:8.5f}" for way in WAYS))
    if "rival" in result:
        rival_of = result["rival"]
        lines.append(f"HEVC at full size: {rival_of['mean_psnr']:.2f} dB at {rival_of['bpp']:.5f} bpp")
    return "\n".join(lines)


def bd_rates(results: Sequence[dict]) -> dict[str, float]:
    """Mean difference in rate at equal PSNR to HEVC at full size, in percent, where there are points enough."""
    if len(results) < _FEWEST_POINTS or "rival" not in results[0]:
        return {}
    from bjontegaard import bd_rate

    def curve(points: list[tuple[float, float]]) -> tuple[list[float], list[float]]:
        return tuple(map(list, zip(*sorted(points), strict=True)))

    anchor = curve([(result["rival"]["bpp"], result["rival"]["mean_psnr"]) for result in results])
    found = {}
    for way, title in WAYS.items():
        test = curve([(result["mean"][f"{way}_bpp"], result["mean"][f"{way}_psnr"]) for result in results])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of curves that hardly overlap: the figure is then not a number
            found[title] = float(bd_rate(*anchor, *test, method="akima", min_overlap=0))
    return found


def finite(value: object) -> object:
    """``value`` with null for what JSON has no numbers for: PSNR of equal images, BD-rate of curves apart."""
    if isinstance(value, dict):
        return {key: finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def draw(results: Sequence[dict], path: Path) -> None:
    """PSNR against bits a pixel: a curve each for bicubic, the video's network, the scenes' and HEVC at full size."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    curves = {
        title: [(result["mean"][f"{way}_bpp"], result["mean"][f"{way}_psnr"]) for result in results]
        for way, title in WAYS.items()
    }
    if "rival" in results[0]:
        curves["HEVC at full size"] = [(result["rival"]["bpp"], result["rival"]["mean_psnr"]) for result in results]
    for (title, points), marker in zip(curves.items(), "osD^", strict=False):
        axes.plot(*zip(*sorted(points), strict=True), marker=marker, label=title)
    axes.set(xlabel="bits a pixel of the large video", ylabel="PSNR of luma, dB; mean over scenes")
    axes.grid(alpha=0.3)
    axes.legend()
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=120, format=path.suffix[1:] or "png")
    plt.close(figure)
