"""Render the documents' figures and draw the plots in docs/ from committed JSON: ``python -m bench.report``.

A block between ``<!-- begin: NAME -->`` and ``<!-- end: NAME -->`` is replaced by what ``BLOCKS[NAME]`` renders.
``--check`` writes nothing and says whether the documents are up to date; ``--plots FOLDER`` only draws the results of
one folder, into that folder.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

import cmslap
from bench.experiments import history
from bench.speed import plots
from bench.speed.command import SUITES
from bench.speed.load import noise
from bench.speed.networks import PlainMSLapSRN
from bench.speed.plots import group_of
from bench.speed.table import ceilings_text, seconds_text
from cmslap.checkpoints.checkpoint import ALIASES
from cmslap.files import replacing
from cmslap.inference.page import duration

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
WEIGHTS = ROOT / "cmslap" / "weights"
RESULTS = ROOT / "bench" / "results"
OFFICIAL = RESULTS / "evaluation" / "MSLapSRN_D5R8.json"
OFFICIAL_BF16 = OFFICIAL.with_name("MSLapSRN_D5R8-bf16.json")
CPU = RESULTS / "cpu"
THIRD_PARTY = CPU / "third-party.json"
BUSY = CPU / "busy.json"
ABLATION = RESULTS / "training" / "ablation.json"
RECIPES = ABLATION.with_name("recipes.json")
RECIPES_SEEDS = ABLATION.with_name("recipes-seeds.json")
TIME_TO_PSNR = ABLATION.with_name("time-to-psnr.json")
VIDEO = RESULTS / "video" / "sequence.json"
VIDEO_OWN_SIZE = RESULTS / "video" / "own-size.json"
VIDEO_RATES = RESULTS / "video" / "rates.json"
VIDEO_NNCODEC = RESULTS / "video" / "nncodec.json"
VIDEO_SPEED = RESULTS / "video" / "speed.json"
VIDEO_STAGES = RESULTS / "video" / "stages.json"
MASRN = ABLATION.with_name("masrn.json")
ASYMMETRIC = ABLATION.with_name("asymmetric.json")
HEAD_AND_BUTTERFLY = ("img_004", "img_003")  # names of Set5's images
HISTORIES = ABLATION.parent / "history"
DOCS = ROOT / "docs"
CARD = WEIGHTS / "README.md"
BENCHMARKS = DOCS / "benchmarks.md"
VIDEO_PAGE = DOCS / "video.md"
MASRN_PAGE = DOCS / "masrn.md"
COMPILE_PAGE = DOCS / "compile.md"
SHIPPED = sorted(path.name.removesuffix(".evaluation.json") for path in WEIGHTS.glob("*.evaluation.json"))
PYRAMIDS = [name for name in SHIPPED if name.startswith("cms-lapsrn")]
DEFAULT = ALIASES["cms-lapsrn"]

# Cases of the CPU suite in the README; docs/benchmarks.md has all.
HEADLINE = (
    "forward", "bfloat16-forward", "training", "photograph", "conv2d_lrelu+backward", "tied_conv_transpose2d+backward",
)  # fmt: skip

UNSTEADY = 0.2  # of the median, between the quartiles

# Hyun et al., 2024, Table 2: CMS-LapSRN (3rd ConV), PSNR in dB and SSIM.
PAPER = {
    ("set5", 2): (36.88, 0.955), ("set5", 4): (31.51, 0.884), ("set5", 8): (26.40, 0.756),
    ("set14", 2): (32.61, 0.908), ("set14", 4): (28.19, 0.770), ("set14", 8): (24.68, 0.629),
}  # fmt: skip


def _evaluation(path: Path) -> dict[tuple[str, int], dict[str, Any]]:
    """Rows of an evaluation JSON by (set, scale)."""
    return {(row["data"], row["scale"]): row for row in json.loads(path.read_text())["results"]}


def _cell(quality: dict[str, float]) -> str:
    return f"{quality['psnr']:.2f} / {quality['ssim']:.4f}"


def evaluation() -> str:
    """PSNR and SSIM of bicubic, the shipped pyramids and both published networks."""
    ours = {name: _evaluation(WEIGHTS / f"{name}.evaluation.json") for name in PYRAMIDS}
    official = _evaluation(OFFICIAL)
    names = [f"`{name}`" + " (default)" * (name == DEFAULT) for name in ours]
    columns = ["PSNR / SSIM", "bicubic", *names, "MS-LapSRN D5R8, official weights", "paper's CMS-LapSRN"]
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for key, row in ours[DEFAULT].items():
        cells = [_cell(results[key]["model"]) for results in (*ours.values(), official)]
        paper = "{:.2f} / {:.3f}".format(*PAPER[key])
        lines.append(f"| {key[0].capitalize()} {key[1]}x | {' | '.join([_cell(row['bicubic']), *cells, paper])} |")
    return "\n".join(lines)


def sisters() -> str:
    """PSNR and SSIM of bicubic and of the shipped networks that are no pyramids."""
    ours = {name: _evaluation(WEIGHTS / f"{name}.evaluation.json") for name in SHIPPED if name not in PYRAMIDS}
    columns = ["PSNR / SSIM", "bicubic", *(f"`{name}`" for name in ours)]
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for key, row in next(iter(ours.values())).items():
        cells = [_cell(row["bicubic"]), *(_cell(results[key]["model"]) for results in ours.values())]
        lines.append(f"| {key[0].capitalize()} {key[1]}x | {' | '.join(cells)} |")
    return "\n".join(lines)


def masrn() -> str:
    """What MASRN reaches in equally short trainings, with each of the original's faults put back."""
    record = json.loads(MASRN.read_text())
    config, runs = record["config"], record["runs"]
    sets = list(next(iter(runs.values()))["psnr"])
    lines = [f"| {' | '.join(['PSNR', *sets, 'loss'])} |", "|---" * (2 + len(sets)) + "|"]
    for name, run in runs.items():
        cells = ["diverged"] * (len(sets) + 1)
        if run["loss"] is not None:
            cells = [*(f"{run['psnr'][key]:.2f}" for key in sets), f"{run['loss']:.4f}"]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + (
        f"\n\nEach, with {config['model']['channels']} channels, {_schooling(record)}. "
        "The loss is the mean over the last tenth of the steps."
    )


def asymmetric() -> str:
    """VDSR beside Asym_VDSR: size, time, PSNR after equal training."""
    if not ASYMMETRIC.exists():
        return "Not trained yet; `python -m bench.experiments.asymmetric` does."
    record = json.loads(ASYMMETRIC.read_text())
    rows = record["networks"]
    cases = {result["case"]: result for result in speeds(CPU)["cpu"]}
    sets = list(next(iter(rows.values()))["psnr"])
    columns = ["", "parameters", "file", "time, plain PyTorch", "time, cmslap", *(f"Set5 {key}" for key in sets)]
    lines = [f"| {' | '.join([*columns, 'head 4x', 'butterfly 4x'])} |", "|---" * (len(columns) + 2) + "|"]
    for name, row in rows.items():
        forward = cases[f"sister-{name.replace('_', '')}"]
        ours = _seconds(forward)
        plain = ours * min(timing["speedup"] for timing in _baselines(forward).values())
        cells = [f"{row['parameters']:,}", f"{row['bytes'] / 1e6:.2f} MB", seconds_text(plain), seconds_text(ours)]
        cells += [f"{row['psnr'][key]:.2f}" for key in sets]
        cells += [f"{row['images'][f'{image} 4x']:.2f}" for image in HEAD_AND_BUTTERFLY]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    run = forward["run"]
    return "\n".join(lines) + (
        f"\n\nEach {_schooling(record)}. The time is that of a {forward['name'].partition(',')[0]} pass of "
        f"{forward['size']}, float32, on {_processor(run)}, commit `{run['commit']}`; plain PyTorch's is that of "
        "eager channels_last or torch.compile, whichever is faster."
    )


def published() -> dict[str, dict[tuple[str, int], float]]:
    """PSNR of the published networks by (set, scale)."""
    official = {key: row["model"]["psnr"] for key, row in _evaluation(OFFICIAL).items()}
    return {"MS-LapSRN D5R8": official, "paper's CMS-LapSRN": {key: psnr for key, (psnr, _) in PAPER.items()}}


def precision() -> str:
    """PSNR in float32 and in bfloat16 on Set5."""
    pairs = {
        **{f"`{n}`": (WEIGHTS / f"{n}.evaluation.json", WEIGHTS / f"{n}.evaluation-bf16.json") for n in PYRAMIDS},
        "MS-LapSRN D5R8, official weights": (OFFICIAL, OFFICIAL_BF16),
    }
    lines = ["| PSNR on Set5, bfloat16 (float32) | 2x | 4x | 8x |", "|---|---|---|---|"]
    for name, (exact, rounded) in pairs.items():
        exact, rounded = (
            {key: row["model"]["psnr"] for key, row in _evaluation(path).items()} for path in (exact, rounded)
        )
        cells = (f"{rounded['set5', scale]:.3f} ({exact['set5', scale]:.3f})" for scale in (2, 4, 8))
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def weights() -> str:
    """Where the shipped weights come from, a line each."""
    return "\n".join(map(_origin, SHIPPED))


def _origin(name: str) -> str:
    record = json.loads((WEIGHTS / f"{name}.json").read_text())
    config, model = record["config"], record["config"]["model"]
    earlier = "earlier weights of that name" if config["init"] == name else f"`{config['init']}`"
    init = f" from {earlier}" if config["init"] else ""
    what = "MASRN"
    if model["name"] == "CMSLapSRN":
        shared = model["shared_conv"]
        what = f"CMS-LapSRN with D = {model['depth']}, R = {model['recursions']} and shared_conv = {shared}"
    return (
        f"- `{name}`: {what}, trained{init} for {record['step']:,} steps of batch {config['batch']} and HR patch "
        f"{_patches(record)}, {record['seconds'] / 60:.0f} minutes on {_processor(record)}{_mean(record)}."
    )


def _mean(record: dict[str, Any]) -> str:
    """What checkpoints were averaged for the weights, where some were."""
    if "mean_of" not in record:
        return ""
    return "; the mean of " + " and ".join(f"{each['parts']:g}× {name}" for name, each in record["mean_of"].items())


def _patches(record: dict[str, Any]) -> str:
    """The side of the HR patches, which a resumed run may have changed."""
    resumed = record.get("resumed", [])  # records of the first versions have none
    changed = [(part["step"], part["changes"]["patch"]) for part in resumed if "patch" in part["changes"]]
    first = changed[0][1][0] if changed else record["config"]["patch"]
    return str(first) + "".join(f", {now} after step {step:,}" for step, (_, now) in changed)


def _processor(record: dict[str, Any]) -> str:
    capability = f" ({record['capability']})" if "capability" in record else ""
    threads = [part["threads"] for part in (*record.get("earlier", ()), record)]  # a resumed run may have changed them
    few, many = min(threads), max(threads)
    count = f"{few} to {many}" if few < many else str(many)
    return f"{count} thread{'s' * (many > 1)} of {record['device']}{capability}"


def ablation() -> str:
    """A row for every way to share the upsampling's kernel: parameters, time of a step, PSNR after equal training."""
    record = json.loads(ABLATION.read_text())
    variants = record["variants"]
    fastest = min(row["step_seconds"] for row in variants.values())
    sets = list(next(iter(variants.values()))["psnr"])
    lines = [f"| {' | '.join(['PSNR', 'parameters', 'training step', *sets])} |", "|---" * (3 + len(sets)) + "|"]
    for name, row in variants.items():
        step = f"{seconds_text(row['step_seconds'])} ({row['step_seconds'] / fastest:.2f}x)"
        cells = [f"{row['parameters']:,}", step, *(f"{row['psnr'][key]:.2f}" for key in sets)]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", f"Each {_training(record)}."])


def recipes() -> str:
    """The first recipes, each tried once."""
    return _recipes(RECIPES)


def recipes_seeds() -> str:
    """Those that were tried with several seeds."""
    return _recipes(RECIPES_SEEDS)


def _recipes(path: Path) -> str:
    """A row for every recipe: what it changes, what it reaches."""
    report = json.loads(path.read_text())
    sets = list(report["runs"][0]["psnr"])
    lines = [f"| {' | '.join(['recipe', *sets, 'mean'])} |", "|---" * (2 + len(sets)) + "|"]
    for run in report["runs"]:
        changed = ", ".join(f"`{key} = {json.dumps(value)}`" for key, value in run["changes"].items())
        psnr = [f"{value:.2f}" for value in (*run["psnr"].values(), run["mean"])]
        if len(run.get("seeds", ())) > 1:
            psnr[-1] = f"{run['mean']:.3f} (spread {run['spread']:.3f}, {len(run['seeds'])} seeds)"
        lines.append(f"| {' | '.join([changed or 'base', *psnr])} |")
    return "\n".join([*lines, "", f"Base: {_training(report | report['runs'][0])}."])


def time_to_psnr() -> str:
    """How long training takes to a PSNR with our kernels and without."""
    record = json.loads(TIME_TO_PSNR.read_text())
    validation = record["config"]["validation"]
    ours, eager = (record["runs"][name]["seconds"] for name in ("cmslap", "eager"))
    return (
        f"To reach {record['psnr']:.2f} dB takes plain PyTorch {seconds_text(eager)}, {eager / ours:.2f} times as long "
        f"as the {seconds_text(ours)} on the operations of this package: the same steps on the same images. Each "
        f"{_training(record)}; PSNR is the mean over {', '.join(validation['data'])} and all scales."
    )


def video() -> str:
    """Content-adaptive video on a sequence of clips: the paper's table for each bit rate, and what it shows."""
    return _video(VIDEO)


def video_own_size() -> str:
    """The same on clips that were not shrunk."""
    return _video(VIDEO_OWN_SIZE)


def _video(path: Path) -> str:
    record = json.loads(path.read_text())
    return "\n\n".join(
        "\n".join([*_video_table(result), "", *_video_gains(record, result)]) for result in record["rates"].values()
    )


def video_gains() -> str:
    """The same without the table."""
    record = json.loads(VIDEO.read_text())
    return "\n\n".join("\n".join(_video_gains(record, result)) for result in record["rates"].values())


def _video_table(result: dict[str, Any]) -> list[str]:
    lines = ["| scene | bicubic | bpp | AS-model | bpp | OS-model | bpp | HEVC at full size |", "|---" * 8 + "|"]
    for row, full_size in zip(result["table"], result["rival"]["psnr"], strict=True):
        cells = [f"{row[f'{way}_{kind}']:{form}}" for way in ("bicubic", "as", "os") for kind, form in _VIDEO_CELLS]
        lines.append(f"| {row['scene']} | {' | '.join([*cells, f'{full_size:.2f}'])} |")
    return lines


def _video_gains(record: dict[str, Any], result: dict[str, Any]) -> list[str]:
    table, rival = result["table"], result["rival"]["psnr"]
    gains, settings, (width, height) = result["summary"], result["settings"], record["size"]
    both = gains["scenes_where_os_beats_as_beats_bicubic"]
    shown, price, bits = fmean(row["os_psnr"] for row in table), settings["price"], 100 * gains["bits_with_price"]
    rates = {way: fmean(row[f"{way}_bpp"] for row in table) for way in ("bicubic", "as", "os")}
    return [
        f"On average the AS-model gains {gains['as_gain']:+.2f} dB over bicubic, the OS-model",
        f"{gains['os_gain']:+.2f} dB over the AS-model; both gain in {both} of {len(table)} scenes. The",
        f"AS-model's weights add {rates['as'] / rates['bicubic'] - 1:.1%} to the bits of the small video, the",
        f"OS-model's differences another {rates['os'] / rates['as'] - 1:.1%}. At λ = {price}",
        f"a difference takes {bits:.0f} % of the bits that it takes at λ = 0; on scenes trained with both, the",
        f"OS-model gains {gains['os_gain_where_free']:+.2f} dB with the price, {gains['free_gain']:+.2f} dB without.",
        f"At equal rate, {result['total_bpp']:.4f} bpp in all, HEVC at full size has {fmean(rival):.2f} dB and the",
        f"OS-model {shown:.2f} dB. {len(table)} scenes of 32 frames of {width}×{height} from",
        f"{len(record['clips'])} clips, each cropped{'' if record.get('own_size') else ' and shrunk'} to that; small",
        f"video at {settings['bitrate'] / 1000:.0f} kbit/s;",
        f"{settings['minutes']:g} minutes of a core to train on all, {60 * result['scene_minutes']:.0f} seconds on a",
        f"scene; {record['device']}, commit `{record['commit']}`.",
    ]


def video_rates() -> str:
    """Bjøntegaard differences of each curve over bit rates to HEVC at full size."""
    record = json.loads(VIDEO_RATES.read_text())
    lines = ["| against HEVC at full size | λ | BD-PSNR, dB | BD-rate |", "|---" * 4 + "|"]
    for row in record["bjontegaard"]:
        rate = "no PSNR in common" if row["bd_rate"] is None else f"{row['bd_rate']:+.0f} %"
        lines.append(f"| {row['curve']} | {row['lambda']} | {row['bd_psnr']:+.2f} | {rate} |")
    return "\n".join(lines)


def video_nncodec() -> str:
    """Bits and PSNR of a video's weights in .cmsw, with fewer centroids, and by nncodec."""
    record = json.loads(VIDEO_NNCODEC.read_text())
    rows = [("`.cmsw`, 1000 and 300 centroids", record["cmsw"])]
    rows += [("`.cmsw`, {} and {}".format(*entry["centroids"]), entry) for entry in record["fewer"]]
    rows += [(f"nncodec, qp {entry['qp']}", entry) for entry in record["nncodec"]]
    lines = ["| coded by | AS-model, kbit | PSNR | OS-model's difference, kbit | PSNR |", "|---" * 5 + "|"]
    for name, row in rows:
        bits = [f"{row[f'{way}_bits'] / 1000:.1f} | {row[f'{way}_psnr']:.3f}" for way in ("as", "os")]
        lines.append(f"| {name} | {' | '.join(bits)} |")
    return "\n".join(lines)


def video_speed() -> str:
    """A frame's network in float32 and in bfloat16, beside what else runs it."""
    rows = _speeds_in(VIDEO_SPEED)
    rates = [f"{result['images'] / _seconds(result):.1f} by `{result['case']}`" for result in rows]
    return f"{_rows(rows)}\n\nFrames a second: {', '.join(rates)}."


def video_stages() -> str:
    """How long encode, decode and evaluate of one video take."""
    record = json.loads(VIDEO_STAGES.read_text())
    stages, (width, height) = record["stages"], record["size"]
    taken = ", ".join(f"`{name}` {duration(stage['seconds'])}" for name, stage in stages.items())
    return (
        f"{record['frames'] / record['rate']:.1f} seconds of {width}×{height}, small video at "
        f"{record['bitrate'] / 1000:.0f} kbit/s, `--budget {record['budget_minutes']:g}`: {taken}; "
        f"{duration(sum(stage['seconds'] for stage in stages.values()))} in all, on {_processor(record)}, commit "
        f"`{record['commit']}`. No command took more than "
        f"{max(stage['peak_bytes'] for stage in stages.values()) / 2**20:.0f} MiB of memory."
    )


def _training(record: dict[str, Any]) -> str:
    """A configuration's training, as the end of a sentence."""
    model = record["config"]["model"]
    return f"D{model['depth']}R{model['recursions']} {_schooling(record)}"


def _schooling(record: dict[str, Any]) -> str:
    config = record["config"]
    return (
        f"trained from scratch for {config['steps']:,} steps of batch {config['batch']}, HR patch {config['patch']}, "
        f"{config['precision']}, optimizer `{config['optimizer']['name']}`, on {_processor(record)}, commit "
        f"`{record['commit']}`"
    )


def accelerate() -> str:
    """What ``accelerate`` says of a recursive network in plain PyTorch."""
    network = PlainMSLapSRN(channels=64, depth=5, recursions=8, levels=2)
    report = cmslap.accelerate(network)
    network(torch.rand(1, 1, 64, 64))  # recording gradients, which leaves nothing for Inductor to compile
    return f"```\n{report}\n```"


def third_party() -> str:
    """Networks in plain PyTorch by the compiler's backend, beside PyTorch's own."""
    return _rows(_speeds_in(THIRD_PARTY))


def speeds(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """A device's results by suite, each with its record as ``run``; several files or steps may have those of a suite.

    What was measured on a machine kept busy is not among them.
    """
    found: dict[str, list[dict[str, Any]]] = {}
    for path in sorted(folder.glob("*.json")):
        for result in _speeds_in(path):
            if not result["run"].get("busy"):
                found.setdefault(result["run"]["suite"], []).append(result)
    return {suite: _joined(rows) for suite, rows in found.items()}


def _speeds_in(path: Path) -> list[dict[str, Any]]:
    """Of one suite's file, or of the summary of `make gpu`, which has several."""
    content = json.loads(path.read_text())
    several = content.get("records", {"": content}).values() if isinstance(content, dict) else ()
    known = [record for record in several if record.get("suite") in SUITES]
    return [result | {"run": record} for record in known for result in record["results"]]


def _joined(found: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row of the same work against the same of ours, where the baselines were measured at different times."""
    rows: dict[tuple[object, ...], dict[str, Any]] = {}
    for result in found:
        row = rows.setdefault(tuple(result[key] for key in ("name", "size", "dtype", "baseline")), result)
        row["timings"] |= {name: timing for name, timing in result["timings"].items() if name not in row["timings"]}
    return list(rows.values())


def gpus() -> list[Path]:
    """The folders with results of a GPU."""
    return sorted(path for path in RESULTS.iterdir() if path.is_dir() and "gpu" in speeds(path))


def claim() -> str:
    """The README's first figure: the 4x forward pass against the fastest float32 runtime of the same run."""
    result = next(result for result in speeds(CPU)["cpu"] if result["case"] == "forward")
    against = {name: row["speedup"] for name, row in _baselines(result).items() if not name.startswith("cmslap")}
    fastest = min(against, key=against.__getitem__)
    return (
        f"On {_processor(result['run'])} its 4x forward pass is {against[fastest]:.1f} times as fast as with "
        f"{fastest}, the fastest of the {len(against)} alternatives measured in the same run."
    )


def headline() -> str:
    """The rows of a CPU's speed that most users ask for."""
    return _rows([result for result in speeds(CPU)["cpu"] if result["case"] in HEADLINE])


def cpu_speed() -> str:
    if "cpu" not in speeds(CPU):
        return "Nothing has been measured on a CPU yet; `python -m bench` does."
    return _speed([result for result in speeds(CPU)["cpu"] if group_of(result) != "accelerated"], CPU)


def cpu_busy() -> str:
    """Rows measured while other processes kept all processors busy."""
    rows = _speeds_in(BUSY)
    return _rows(rows, f"Beside {rows[0]['run']['busy']} processes that compute all the time: ")


def gpu_speed() -> str:
    if not gpus():
        return (
            "Nothing has been measured on a GPU yet; where there is one, `make gpu` does, in calls under ten minutes."
        )
    return "\n\n".join(f"{_speed(speeds(folder)['gpu'], folder)}\n\n{_bars(folder)}".rstrip() for folder in gpus())


def _bars(folder: Path) -> str:
    """What the kernels must reach on a GPU, and what they reached."""
    summary = folder / "summary.json"
    return "\n".join(f"- {bar['text']}" for bar in json.loads(summary.read_text())["bars"]) if summary.exists() else ""


def _speed(found: Sequence[dict[str, Any]], folder: Path) -> str:
    """All of a device's rows, the plots, and where they come from."""
    rows = [result for result in found if result["timings"]]
    return "\n\n".join([_table(rows, share=True), *_plots_of(folder), _slower(rows), _origin_of_speed(rows)])


def _rows(rows: Sequence[dict[str, Any]], beside: str = "") -> str:
    """Rows without the roofline, what is slower, and where they come from."""
    return f"{_table(rows, share=False)}\n\n{_slower(rows)} {beside}{_origin_of_speed(rows)}"


def _table(rows: Sequence[dict[str, Any]], share: bool) -> str:
    """A row a case: the time, on request the share of the roofline, how many times as long each baseline took."""
    columns = list(dict.fromkeys(_column(name) for result in rows for name in _baselines(result)))
    head = ["", "time", *["of roofline"] * share, *columns]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for result in rows:
        ours = result["timings"][result["baseline"]]
        against = {
            _column(name): f"{'~' * (_unsteady(ours) or _unsteady(timing))}{timing['speedup']:.2f}x"
            for name, timing in _baselines(result).items()
        }
        cells = [f"{result['name']}, {result['size']}", seconds_text(ours["median"])]
        cells += [f"{ours['share_of_floor']:.0%}" if "share_of_floor" in ours else ""] * share
        lines.append(f"| {' | '.join(cells + [against.get(column, '') for column in columns])} |")
    return "\n".join(lines)


def _unsteady(timing: dict[str, float]) -> bool:
    """Whether half of the turns differ by more than a share of their median."""
    return timing["high"] - timing["low"] > UNSTEADY * timing["median"]


def _seconds(result: dict[str, Any]) -> float:
    """What we take."""
    return result["timings"][result["baseline"]]["median"]


def _origin_of_speed(rows: Sequence[dict[str, Any]]) -> str:
    """Where rows come from, which may be several runs, on machines of one name that differ in speed."""
    runs = list({id(result["run"]): result["run"] for result in rows}.values())
    where = runs[0]["device"] if runs[0]["on"] == "cuda" else _processor(runs[0])
    runtimes = "".join(f", {name} {version}" for name, version in runs[0]["runtimes"].items())
    commits = " and ".join(f"`{commit}`" for commit in dict.fromkeys(run["commit"] for run in runs))
    turns = [timing.get("rounds", 0) for result in rows for timing in result["timings"].values()]  # 0: an older record
    fewest = f"{min(turns)} to" if min(turns) else "up to"
    sentences = [
        f"{where}, PyTorch {runs[0]['torch']}{runtimes}, medians of {fewest} {max(run['rounds'] for run in runs)} "
        f"turns, commit {commits}.",
        ceilings_text(*(run["ceilings"] for run in runs)),
        *[f"~: the middle half of the turns spans more than {UNSTEADY:.0%} of the median."]
        * any(_unsteady(timing) for result in rows for timing in result["timings"].values()),
        *[noise(rows)] * (not runs[0].get("busy")),
    ]
    return " ".join(filter(None, sentences))


def _baselines(result: dict[str, Any]) -> dict[str, dict[str, float]]:
    return {name: timing for name, timing in result["timings"].items() if name != result["baseline"]}


def _column(name: str) -> str:
    """Both precisions of a baseline share a column; a row's name says which."""
    return name.removesuffix(" bf16").removesuffix("-no-cudagraphs")


def _slower(found: Sequence[dict[str, Any]]) -> str:
    rows = [
        f"{result['name']} ({name} {timing['speedup']:.2f}x)"
        for result in found
        for name, timing in _baselines(result).items()
        if timing["speedup"] < 1 and not name.startswith("cmslap")
    ]
    return f"Slower than a baseline: {', '.join(rows)}." if rows else "No baseline was faster in any of these rows."


def _plots_of(folder: Path) -> list[str]:
    drawn = [name for name in PLOTS if (DOCS / _plot_name(name, folder)).exists()]
    return [f"![{PLOTS[plot][2]}]({_plot_name(plot, folder)})" for plot in drawn]


def _plot_name(name: str, folder: Path) -> str:
    return f"{name}-{folder.name}.png"


def draw(folder: Path, out: Path) -> None:
    """Draw what the results in ``folder`` have to show into ``out``."""
    found = speeds(folder)
    for name, (suites, plot, _) in PLOTS.items():
        for suite in suites:
            if suite in found:
                plot(found[suite][0]["run"] | {"results": found[suite]}, out / _plot_name(name, folder))


# What is drawn from which suites, and what it shows, for those who do not see it.
PLOTS = {
    "speed-networks": (("cpu", "gpu"), partial(plots.speedups, group="networks"), "speed-ups of networks"),
    "speed-operations": (("cpu", "gpu"), partial(plots.speedups, group="operations"), "speed-ups of operations"),
    "scaling": (("scaling",), plots.scaling, "time and memory by the size of the image"),
}
_VIDEO_CELLS = (("psnr", ".2f"), ("bpp", ".4f"))
BLOCKS = {
    "video": video,
    "video-gains": video_gains,
    "video-own-size": video_own_size,
    "video-rates": video_rates,
    "video-nncodec": video_nncodec,
    "video-speed": video_speed,
    "video-stages": video_stages,
    "evaluation": evaluation,
    "sisters": sisters,
    "masrn": masrn,
    "asymmetric": asymmetric,
    "precision": precision,
    "weights": weights,
    "accelerate": accelerate,
    "third-party": third_party,
    "ablation": ablation,
    "recipes": recipes,
    "recipes-seeds": recipes_seeds,
    "time-to-psnr": time_to_psnr,
    "claim": claim,
    "headline": headline,
    "cpu-speed": cpu_speed,
    "cpu-busy": cpu_busy,
    "gpu-speed": gpu_speed,
}


def render(path: Path) -> str:
    """A document with every block in it rendered anew."""

    def rendered(match: re.Match[str]) -> str:
        if match[2] not in BLOCKS:
            raise SystemExit(f"{path.name}: no block is called {match[2]}; there are {', '.join(BLOCKS)}")
        return f"{match[1]}{BLOCKS[match[2]]()}\n{match[3]}"

    pattern = r"(<!-- begin: (\S+) -->\n).*?(<!-- end: \2 -->)"
    return re.sub(pattern, rendered, path.read_text(), flags=re.DOTALL)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if a document is out of date")
    parser.add_argument("--plots", type=Path, metavar="FOLDER", help="only draw a folder's results, into it")
    args = parser.parse_args()
    if args.plots:
        draw(args.plots, args.plots)
        return 0
    if not args.check:
        for folder in (CPU, *gpus()):
            draw(folder, DOCS)
        for path in sorted(HISTORIES.glob("*.json")):
            history.draw(json.loads(path.read_text()), published(), DOCS / f"training-{path.stem}.png")
        from cmslap.video.report import draw as draw_video  # needs PyAV

        draw_video(json.loads(VIDEO_RATES.read_text())["results"], DOCS / "video-rates.png")
    pages = README, CARD, BENCHMARKS, VIDEO_PAGE, MASRN_PAGE, COMPILE_PAGE
    stale = [path for path in pages if render(path) != path.read_text()]
    if args.check:
        print("\n".join(f"{path.name} is out of date: python -m bench.report" for path in stale) or "all up to date")
        return int(bool(stale))
    for path in stale:
        text = render(path)
        with replacing(path) as temporary:
            temporary.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
