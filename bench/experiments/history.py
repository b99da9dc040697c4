"""A long training as one curve: the validation PSNR of each scale against the pixels trained on.

    python -m bench.experiments.history runs/first runs/second --out bench/results/training/history/d5r2.json

The runs are those ``cmslap train`` made, in order. One whose log begins with that of the run before it was resumed from
a copy of it, perhaps with another patch or batch; any other began anew, from the weights of the run before it.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from itertools import takewhile
from pathlib import Path
from typing import Any

from cmslap.files import replacing, write_json


def history(runs: list[Path]) -> dict[str, Any]:
    """Points ``{"pixels", "psnr"}`` of all runs, and each run's own configuration."""
    points, stretches, pixels, before = [], [], 0, []
    for run in runs:
        log = [json.loads(line) for line in (run / "log.jsonl").read_text(encoding="utf-8").splitlines()]
        record = json.loads((run / "record.json").read_text(encoding="utf-8"))
        config = record["config"]
        a_step = config["batch"] * config["patch"] ** 2
        known = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(before, log, strict=False)))
        start = before[known - 1]["step"] if known else 0
        for entry in log[known:]:
            if "psnr" in entry:
                points.append({"pixels": pixels + (entry["step"] - start) * a_step, "psnr": entry["psnr"]})
        pixels += (log[-1]["step"] - start) * a_step
        stretches.append({"steps": log[-1]["step"] - start, "config": config, "commit": record["commit"]})
        before = log
    return {"points": points, "runs": stretches, "device": record["device"], "threads": record["threads"]}


def draw(found: Mapping[str, Any], published: Mapping[str, Mapping[tuple[str, int], float]], path: Path) -> None:
    """One panel a scale, one curve a set; ``published``: other networks' PSNR by (set, scale), drawn as lines."""
    from matplotlib.figure import Figure  # no pyplot: no display, no global state

    cells = [tuple(name.removesuffix("x").rsplit(" ", 1)) for name in found["points"][0]["psnr"]]
    scales = sorted({int(scale) for _, scale in cells})
    figure = Figure((4 * len(scales), 4), dpi=100, layout="constrained")
    panels = dict(zip(scales, figure.subplots(1, len(scales), squeeze=False)[0], strict=True))
    pixels = [point["pixels"] / 1e6 for point in found["points"]]
    for index, (data, scale) in enumerate((data, int(scale)) for data, scale in cells):
        color, axes = f"C{index // len(scales)}", panels[scale]
        axes.plot(pixels, [point["psnr"][f"{data} {scale}x"] for point in found["points"]], color=color, label=data)
        for style, (name, values) in zip((":", "--"), published.items(), strict=False):
            axes.axhline(values[data, scale], color=color, linestyle=style, linewidth=1, label=f"{data}, {name}")
    for scale, axes in panels.items():
        axes.set(title=f"{scale}x", xlabel="million HR pixels trained on", ylabel="PSNR, dB")
        axes.grid(alpha=0.3)
    figure.legend(*panels[scales[0]].get_legend_handles_labels(), fontsize=8, loc="outside lower center", ncols=3)
    with replacing(path) as temporary:
        figure.savefig(temporary)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, help="folders of runs, in order")
    parser.add_argument("--out", type=Path, required=True, help="the JSON file to write")
    args = parser.parse_args()
    found = history(args.runs)
    write_json(args.out, found)


if __name__ == "__main__":
    main()
