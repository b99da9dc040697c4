"""A page to look at: enlarged images under a slider and a magnifier, in one file without outside links.

``compare.html`` is the page, a Jinja template; ``img-comparison-slider`` is a web component of that name with its
licence.
"""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources

import torch

from cmslap import __version__
from cmslap.evaluation.evaluate import Quality, mean
from cmslap.files import replacing


@dataclass(frozen=True)
class Version:
    """One way to enlarge an image: the result and what is known about it."""

    name: str
    image: str  # data URI
    seconds: float | None = None
    quality: Quality | None = None


@dataclass(frozen=True)
class Comparison:
    """An image and its versions, all of one size; the first is bicubic."""

    name: str
    source: tuple[int, int]  # width and height of what was enlarged
    size: tuple[int, int]  # and of the results
    versions: list[Version]
    point: tuple[float, float]  # where to look first, as fractions of width and height


def render(comparisons: Sequence[Comparison], title: str, note: str) -> str:
    """The page, as HTML. ``note`` says at its foot how the images were made."""
    from jinja2 import Environment, StrictUndefined  # takes a while, and most of what is enlarged has no page

    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined)
    environment.filters |= {"decibel": _decibel, "duration": duration}
    environment.tests["finite"] = math.isfinite
    folder = resources.files("cmslap.inference")
    licence, slider = (
        (folder / "img-comparison-slider" / name).read_text(encoding="utf-8") for name in ("LICENSE", "index.js")
    )
    measured = [c for c in comparisons if all(v.quality is not None for v in c.versions if v.seconds is not None)]
    return environment.from_string((folder / "compare.html").read_text(encoding="utf-8")).render(
        title=title,
        note=note,
        comparisons=comparisons,
        measured=len(measured),
        means=_means(measured),
        slider=f"/*\n{licence}*/\n" + slider.partition("//# sourceMappingURL")[0],  # the map is not here
    )


def _means(measured: Sequence[Comparison]) -> list[tuple[str, Quality, float]]:
    """Each version's name, mean quality and seconds in all, where there are several images with the same versions."""
    if len(measured) < 2 or len({tuple(version.name for version in c.versions) for c in measured}) > 1:
        return []
    columns = zip(*(c.versions for c in measured), strict=True)
    return [
        (column[0].name, mean([version.quality for version in column]), sum(version.seconds for version in column))
        for column in columns
        if column[0].quality is not None
    ]


def write_page(
    comparisons: Sequence[Comparison], path: str | os.PathLike[str], device: torch.device, precision: str
) -> None:
    """Write a page of images enlarged on ``device`` in ``precision``."""
    count = "one image" if len(comparisons) == 1 else f"{len(comparisons)} images"
    factors = {f"{comparison.size[0] / comparison.source[0]:.3g}×" for comparison in comparisons}
    place = f"{torch.get_num_threads()} CPU threads" if device.type == "cpu" else torch.cuda.get_device_name(device)
    note = f"cmslap {__version__}, PyTorch {torch.__version__}, {precision}, on {place}. Times are of one run each."
    title = f"{count}, enlarged {factors.pop()}" if len(factors) == 1 else f"{count}, enlarged"
    with replacing(path) as temporary:
        temporary.write_text(render(comparisons, title, note), encoding="utf-8")


def _decibel(psnr: float) -> str:
    return f"{psnr:.2f}" if math.isfinite(psnr) else "∞"


def duration(seconds: float) -> str:
    """ "35 ms", "2.4 s", "3 min 20 s"."""
    milliseconds, tenths, whole = (round(seconds * unit) for unit in (1000, 10, 1))
    if milliseconds < 1000:
        return f"{max(1, milliseconds)} ms"
    if tenths < 600:
        return f"{tenths / 10} s"
    return f"{whole // 60} min {whole % 60} s"
