"""Render the README's figures from committed JSON: ``python -m bench.report`` (``--check`` only compares).

A block between ``<!-- begin: NAME -->`` and ``<!-- end: NAME -->`` is replaced by what ``BLOCKS[NAME]`` renders.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

from cmslap.files import replacing
from cmslap.interop.checkpoint import ALIASES

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
WEIGHTS = ROOT / "cmslap" / "weights"
OFFICIAL = ROOT / "bench" / "results" / "evaluation" / "MSLapSRN_D5R8.json"
OFFICIAL_BF16 = OFFICIAL.with_name("MSLapSRN_D5R8-bf16.json")
CPU_SUITE = ROOT / "bench" / "results" / "cpu" / "bench.json"
SHIPPED = ALIASES["cms-lapsrn"]

# Hyun et al., 2024, Table 2: CMS-LapSRN (3rd ConV), PSNR in dB and SSIM.
PAPER = {
    ("set5", 2): (36.88, 0.955), ("set5", 4): (31.51, 0.884), ("set5", 8): (26.40, 0.756),
    ("set14", 2): (32.61, 0.908), ("set14", 4): (28.19, 0.770), ("set14", 8): (24.68, 0.629),
}  # fmt: skip


def _results(path: Path) -> dict[tuple[str, int], dict[str, Any]]:
    """Rows of an evaluation JSON by (set, scale)."""
    return {(row["data"], row["scale"]): row for row in json.loads(path.read_text())["results"]}


def _cell(quality: dict[str, float]) -> str:
    return f"{quality['psnr']:.2f} / {quality['ssim']:.4f}"


def evaluation() -> str:
    """PSNR and SSIM of bicubic, the shipped weights and both published networks."""
    ours, official = _results(WEIGHTS / f"{SHIPPED}.evaluation.json"), _results(OFFICIAL)
    lines = [
        f"| PSNR / SSIM | bicubic | `{SHIPPED}` (shipped) | MS-LapSRN D5R8, official weights | paper's CMS-LapSRN |",
        "|---|---|---|---|---|",
    ]
    for key, row in ours.items():
        name, scale = key
        paper = "{:.2f} / {:.3f}".format(*PAPER[key])
        cells = (_cell(row["bicubic"]), f"**{_cell(row['model'])}**", _cell(official[key]["model"]), paper)
        lines.append(f"| {name.capitalize()} {scale}x | {' | '.join(cells)} |")
    return "\n".join(lines)


def precision() -> str:
    """PSNR in float32 and in bfloat16 on Set5."""
    pairs = {
        f"`{SHIPPED}`": (WEIGHTS / f"{SHIPPED}.evaluation.json", WEIGHTS / f"{SHIPPED}.evaluation-bf16.json"),
        "MS-LapSRN D5R8, official weights": (OFFICIAL, OFFICIAL_BF16),
    }
    lines = ["| PSNR on Set5, bfloat16 (float32) | 2x | 4x | 8x |", "|---|---|---|---|"]
    for name, (exact, rounded) in pairs.items():
        exact, rounded = (
            {key: row["model"]["psnr"] for key, row in _results(path).items()} for path in (exact, rounded)
        )
        cells = (f"{rounded['set5', scale]:.3f} ({exact['set5', scale]:.3f})" for scale in (2, 4, 8))
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def weights() -> str:
    """Where the shipped weights come from, in one sentence."""
    record = json.loads((WEIGHTS / f"{SHIPPED}.json").read_text())
    config = record["config"]
    model = config["model"]
    threads = f"{record['threads']} thread{'s' * (record['threads'] > 1)}"
    return (
        f"Shipped weights: `{SHIPPED}`, CMS-LapSRN with D = {model['depth']}, R = {model['recursions']} and "
        f"shared_conv = {model['shared_conv']}, trained for {record['step']:,} steps of batch {config['batch']} and HR "
        f"patch {config['patch']}: {record['seconds'] / 60:.0f} minutes on {threads} of {record['device']}."
    )


def speed() -> str:
    """The CPU suite: milliseconds, and how many times as long every peer took in the same run."""
    record = json.loads(CPU_SUITE.read_text())
    lines = ["| on a CPU | `cmslap` | against |", "|---|---|---|"]
    for case in record["results"]:
        (_, ours), *peers = case["timings"].items()
        against = ", ".join(f"{name} {timing['speedup']:.2f}x" for name, timing in peers)
        lines.append(f"| {case['name']}, {case['size']} | {1e3 * ours['median']:.0f} ms | {against} |")
    lines.append("")
    lines.append(
        f"Medians of {record['rounds']} rounds in turns, {record['threads']} threads of {record['device']}, PyTorch "
        f"{record['torch']}, commit `{record['commit']}`."
    )
    return "\n".join(lines)


BLOCKS = {"evaluation": evaluation, "precision": precision, "weights": weights, "speed": speed}


def render(text: str) -> str:
    """``text`` with every marked block rendered anew."""
    for name, block in BLOCKS.items():
        pattern = re.compile(rf"(<!-- begin: {name} -->\n).*?(<!-- end: {name} -->)", re.DOTALL)
        if not pattern.search(text):
            raise SystemExit(f"{README.name} has no block named {name}")
        text = pattern.sub(lambda match, block=block: f"{match[1]}{block()}\n{match[2]}", text)
    return text


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if the README is out of date")
    check = parser.parse_args().check
    current = README.read_text()
    rendered = render(current)
    if check:
        print("README.md is up to date" if rendered == current else "README.md is out of date: python -m bench.report")
        return int(rendered != current)
    with replacing(README) as temporary:
        temporary.write_text(rendered)
    return 0


if __name__ == "__main__":
    sys.exit(main())
