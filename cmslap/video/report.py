"""The evaluation of small videos and their weights as text, JSON and a plot."""

import itertools
import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

from cmslap.files import replacing, write_json
from cmslap.provenance import provenance
from cmslap.video.evaluate import load_beside, rival, table
from cmslap.video.reading import VideoReader
from cmslap.video.writing import packets

WAYS = {"bicubic": "bicubic", "as": "AS-model", "os": "OS-model"}
RIVAL = "HEVC at full size"
_FEWEST_POINTS = 4  # of a curve, for BD-rate
Row = dict[str, float]


def report(original: Path, smalls: Sequence[Path], with_rival: bool, record: Path | None, plot: Path | None) -> None:
    """Print a table for each small video; write all of it to ``record``, and a drawing to ``plot``."""
    results = [evaluate(original, small, with_rival) for small in smalls]
    for result in results:
        print(f"\n{result['small']}\n{text(result)}")
    differences = bjontegaard_of(results)
    for found in differences:
        print(
            f"{found['curve']} against {RIVAL}, λ = {found['lambda']}: "
            f"BD-rate {found['bd_rate']:+.1f} %, BD-PSNR {found['bd_psnr']:+.2f} dB"
        )
    if record is not None:
        data = {**provenance(), "original": original.name, "results": results, "bjontegaard": differences}
        write_json(record, finite(data))
    if plot is not None:
        draw(results, plot)


def evaluate(original: Path, small: Path, with_rival: bool) -> dict:
    """The table of one small video and its means; the rival's rate and PSNR."""
    weights = load_beside(small)
    rows = table(original, small, weights)
    result = {
        "small": small.name,
        "lambda": weights.price,
        "table": rows,
        "mean": means(rows),
        "weights_bits": weights.bits[0],
    }
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
        lines.append(f"{RIVAL}: {rival_of['mean_psnr']:.2f} dB at {rival_of['bpp']:.5f} bpp")
    return "\n".join(lines)


Curve = list[tuple[float, float]]  # bits a pixel and PSNR, at ascending rates


def curves(results: Sequence[dict]) -> dict[str, Curve]:
    """A curve each for bicubic, the video's network, the scenes' for each λ, and HEVC at full size."""
    found = {}
    several = len({result["lambda"] for result in results}) > 1
    for result in results:
        for way, title in WAYS.items():
            name = f"{title}, λ = {result['lambda']}" if several and way == "os" else title
            found.setdefault(name, set()).add((result["mean"][f"{way}_bpp"], result["mean"][f"{way}_psnr"]))
        if "rival" in result:
            found.setdefault(RIVAL, set()).add((result["rival"]["bpp"], result["rival"]["mean_psnr"]))
    return {name: sorted(points) for name, points in found.items()}


def bjontegaard_of(results: Sequence[dict]) -> list[dict[str, object]]:
    """Mean differences to HEVC at full size of each curve with points enough: in rate at equal PSNR in percent, and in
    PSNR at equal rate in dB; not a number where the curves have no such PSNR or rate in common.
    """
    from bjontegaard import bd_psnr, bd_rate

    found = []
    for price in dict.fromkeys(result["lambda"] for result in results):
        tests = curves([result for result in results if result["lambda"] == price])
        anchor = tests.pop(RIVAL, [])
        for name, curve in tests.items():
            if min(len(anchor), len(curve)) < _FEWEST_POINTS:
                continue
            columns = [list(column) for points in (anchor, curve) for column in zip(*points, strict=True)]
            settings = {"method": "akima", "require_matching_points": False, "min_overlap": 0}
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of curves that hardly overlap
                rate, psnr = float(bd_rate(*columns, **settings)), float(bd_psnr(*columns, **settings))
            found.append({"curve": name, "lambda": price, "bd_rate": rate, "bd_psnr": psnr})
    return found


def finite(value: object) -> object:
    """``value`` with null for what JSON has no numbers for: PSNR of equal images, BD-rate of curves apart."""
    if isinstance(value, dict):
        return {key: finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def draw(results: Sequence[dict], path: Path) -> None:
    """PSNR against bits a pixel: :func:`curves`."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    for (title, points), marker in zip(curves(results).items(), itertools.cycle("osD^vP")):
        axes.plot(*zip(*points, strict=True), marker=marker, label=title)
    axes.set(xlabel="bits a pixel of the large video", ylabel="PSNR of luma, dB; mean over scenes")
    axes.grid(alpha=0.3)
    axes.legend()
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=120, format=path.suffix[1:] or "png")
    plt.close(figure)
