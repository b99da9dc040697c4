"""A page to look at: enlarged images under a slider and a magnifier, in one file without outside links.

``compare.html`` is the page; ``img-comparison-slider`` is a web component of that name with its licence.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from importlib import resources
from statistics import fmean
from string import Template

import torch

from cmslap import __version__
from cmslap.evaluation.evaluate import Quality
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
    folder = resources.files("cmslap.inference")
    component = folder.joinpath("img-comparison-slider")
    licence, slider = (component.joinpath(name).read_text(encoding="utf-8") for name in ("LICENSE", "index.js"))
    return Template(folder.joinpath("compare.html").read_text(encoding="utf-8")).substitute(
        title=escape(title),
        note=escape(note),
        summary=_summary(comparisons),
        pictures="\n".join(_picture(comparison) for comparison in comparisons),
        slider=f"/*\n{licence}*/\n" + slider.partition("//# sourceMappingURL")[0],  # the map is not here
    )


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


def _picture(comparison: Comparison) -> str:
    name, (width, height) = escape(comparison.name), comparison.size
    source, (x, y) = "{} × {}".format(*comparison.source), comparison.point
    return f"""\
<section class="picture" data-x="{x:.4f}" data-y="{y:.4f}" style="--ratio: {width} / {height}; --natural: {width}px">
  <header><h2>{name}</h2><p>{source} → {width} × {height} pixels</p></header>
  <div class="stage" hidden>
    <img-comparison-slider role="slider" tabindex="0" aria-label="Divider between two versions of {name}"
      aria-valuemin="0" aria-valuemax="100" aria-valuenow="50">
      <img slot="first" alt="" width="{width}" height="{height}">
      <img slot="second" alt="" width="{width}" height="{height}">
    </img-comparison-slider>
    <div class="lens"></div>
    <label class="side left"><span class="hidden">Left of the divider</span>
      <select data-slot="first">{_options(comparison.versions, 0)}</select></label>
    <label class="side right"><span class="hidden">Right of the divider</span>
      <select data-slot="second">{_options(comparison.versions, 1)}</select></label>
  </div>
  <div class="views" tabindex="0" role="group"
    aria-label="Magnified views of {name}; arrow keys move them, plus and minus change the magnification">
{"".join(_view(comparison, version) for version in comparison.versions)}  </div>
</section>"""


def _options(versions: Sequence[Version], chosen: int) -> str:
    marks = [" selected" if index == min(chosen, len(versions) - 1) else "" for index in range(len(versions))]
    pairs = zip(marks, versions, strict=True)
    return "".join(f"<option{mark}>{escape(version.name)}</option>" for mark, version in pairs)


def _view(comparison: Comparison, version: Version) -> str:
    (width, height), name = comparison.size, escape(version.name)
    alt = f"{escape(comparison.name)}, {name}"
    return f"""\
    <figure>
      <div class="view"><img alt="{alt}" width="{width}" height="{height}" src="{version.image}"></div>
      <figcaption><b>{name}</b>{_facts(version, comparison.versions[0])}</figcaption>
    </figure>
"""


def _facts(version: Version, bicubic: Version) -> str:
    facts = []
    if version.quality is not None:
        facts.append(f"<span>{_decibel(version.quality.psnr)} dB, SSIM {version.quality.ssim:.4f}</span>")
        if version is not bicubic and math.isfinite(version.quality.psnr) and math.isfinite(bicubic.quality.psnr):
            gain = version.quality.psnr - bicubic.quality.psnr
            facts.append(f'<span class="{"gain" if gain > 0 else "loss"}">{gain:+.2f} dB over bicubic</span>')
    if version.seconds is not None:
        facts.append(f"<span>{duration(version.seconds)}</span>")
    return "<br>".join(facts)


def _summary(comparisons: Sequence[Comparison]) -> str:
    """Means over the images as a table, where there are several with the same versions."""
    measured = [c for c in comparisons if all(v.quality is not None for v in c.versions if v.seconds is not None)]
    if len(measured) < 2 or len({tuple(version.name for version in c.versions) for c in measured}) > 1:
        return ""
    rows = []
    for versions in zip(*(c.versions for c in measured), strict=True):
        if versions[0].quality is None:
            continue
        psnr, ssim = map(fmean, zip(*(version.quality for version in versions), strict=True))
        rows.append(
            f'<tr><th scope="row">{escape(versions[0].name)}</th><td>{_decibel(psnr)}</td><td>{ssim:.4f}</td>'
            f"<td>{duration(sum(version.seconds for version in versions))}</td></tr>"
        )
    return (
        f"  <table><caption>Mean over {len(measured)} images, beside their originals</caption>\n"
        '  <thead><tr><th scope="col">version</th><th scope="col">PSNR, dB</th><th scope="col">SSIM</th>'
        '<th scope="col">time in all</th></tr></thead>\n  <tbody>\n' + "\n".join(rows) + "\n  </tbody></table>"
    )


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
