"""The weights of a video in ``.cmsw``, and compressed by nncodec, the reference software of ISO/IEC 15938-17.

    python -m bench.experiments.video_nncodec movie.mp4 small.mp4 --python venv/bin/python --out nncodec.json

nncodec needs NumPy before 2, hence an interpreter of its own. It compresses the weights that ``small.cmsw`` decodes to,
the video's and each scene's difference, at several quantisers; so do fewer centroids. All are measured in bits and
in PSNR of luma over every 32nd frame. Writes JSON.
"""

from __future__ import annotations

import argparse
import bisect
import json
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import torch

from cmslap.files import write_json
from cmslap.provenance import provenance
from cmslap.video import coding
from cmslap.video.cmsw import flat, with_weights
from cmslap.video.evaluate import load_beside
from cmslap.video.reading import VideoReader

EVERY = 32  # frames
CENTROIDS = ((256, 64), (128, 32), (64, 16), (32, 8))  # of the video's weights, of a scene's difference
QUANTISERS = (-20, -24, -28, -32, -36, -40, -44)
_COMPRESS = """
import sys, tempfile
import numpy as np
from nncodec import nnc

given = np.load(sys.argv[1])
parts = {}
for key in given.files:
    part, name = key.split("/")
    parts.setdefault(part, {})[name] = given[key]
found = {}
for qp in map(int, sys.argv[3:]):
    for part, tensors in parts.items():
        with tempfile.NamedTemporaryFile() as file:
            data = nnc.compress(dict(tensors), bitstream_path=file.name, qp=qp, nonweight_qp=qp, use_dq=True,
                                return_bitstream=True, verbose=False)
        found[f"{qp}/{part}/bits"] = 8 * len(bytes(data))
        for name, tensor in nnc.decompress(data, verbose=False).items():
            found[f"{qp}/{part}/{name}"] = tensor
np.savez(sys.argv[2], **found)
"""


def compressed(python: str, parts: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Bits and decoded tensors of each part at each quantiser, by "quantiser/part/name"."""
    with tempfile.TemporaryDirectory() as folder:
        given, found = Path(folder) / "given.npz", Path(folder) / "found.npz"
        np.savez(given, **{f"{n}/{name}": tensor for n, part in enumerate(parts) for name, tensor in part.items()})
        subprocess.run([python, "-c", _COMPRESS, given, found, *map(str, QUANTISERS)], check=True)
        return dict(np.load(found))


@torch.inference_mode()
def psnr(original: Path, small: Path, starts: list[int], ways: dict[str, list]) -> dict[str, float]:
    """Of luma in dB, of each way's networks, one a scene."""
    errors = {name: [] for name in ways}
    with VideoReader(small) as low, VideoReader(original) as high:
        for number, (one, two) in enumerate(zip(low.frames(), high.frames(), strict=True)):
            if number % EVERY != EVERY // 2:
                continue
            image = torch.from_numpy(one.luma.astype(np.float32))[None, None] / one.white
            for name, networks in ways.items():
                shown = networks[bisect.bisect(starts, number) - 1](image)[-1][0, 0].clamp(0, 1).double().numpy()
                truth = two.luma / two.white
                errors[name].append(np.mean((shown[: truth.shape[0], : truth.shape[1]] - truth) ** 2))
    return {name: float(-10 * np.log10(np.mean(values))) for name, values in errors.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("original", type=Path)
    parser.add_argument("small", type=Path)
    parser.add_argument("--python", required=True, help="an interpreter that has nncodec")
    parser.add_argument("--out", type=Path, required=True, help="the JSON file to write")
    args = parser.parse_args()
    weights = load_beside(args.small)
    common, scenes = weights.network(), weights.scene_networks()
    names = [name for name, _ in common.named_parameters()]
    base = [parameter.detach().numpy() for parameter in common.parameters()]
    parts = [dict(zip(names, base, strict=True))]
    for scene in scenes:
        differences = [p.detach().numpy() - b for p, b in zip(scene.parameters(), base, strict=True)]
        parts.append(dict(zip(names, differences, strict=True)))
    found = compressed(args.python, parts)

    def decoded(qp: int, part: int) -> np.ndarray:
        return np.concatenate([found[f"{qp}/{part}/{name}"].ravel() for name in names]).astype(np.float32)

    ways = {"as": [common] * len(scenes), "os": scenes}
    for qp in QUANTISERS:
        ways[f"as {qp}"] = [with_weights(common, decoded(qp, 0))] * len(scenes)
        ways[f"os {qp}"] = [with_weights(common, flat(common) + decoded(qp, part)) for part in range(1, len(parts))]
    sizes = {}
    for centroids in CENTROIDS:
        coded = [coding.encode(flat(common), centroids[0])]
        coded += [coding.encode(flat(scene) - flat(common), centroids[1]) for scene in scenes]
        sizes[centroids] = [8 * len(data) for data in coded]
        values = [coding.decode(data, len(flat(common))) for data in coded]
        ways[f"as {centroids}"] = [with_weights(common, values[0])] * len(scenes)
        ways[f"os {centroids}"] = [with_weights(common, flat(common) + value) for value in values[1:]]
    quality = psnr(args.original, args.small, weights.scenes, ways)

    def result(name: str, bits: list[int]) -> dict[str, float]:
        """Bits of the video's weights and of a scene's difference on average, and what they give."""
        return {
            "as_bits": bits[0], "as_psnr": quality[f"as{name}"],
            "os_bits": float(np.mean(bits[1:])), "os_psnr": quality[f"os{name}"],
        }  # fmt: skip

    of_nncodec = {qp: [int(found[f"{qp}/{part}/bits"]) for part in range(len(parts))] for qp in QUANTISERS}
    record = {
        **provenance(), "frames_every": EVERY, "scenes": len(scenes),
        "cmsw": result("", [8 * len(part) for part in weights.parts]),
        "fewer": [{"centroids": key, **result(f" {key}", bits)} for key, bits in sizes.items()],
        "nncodec": [{"qp": qp, **result(f" {qp}", bits)} for qp, bits in of_nncodec.items()],
    }  # fmt: skip
    write_json(args.out, record)
    print(*map(json.dumps, [record["cmsw"], *record["fewer"], *record["nncodec"]]), sep="\n")


if __name__ == "__main__":
    main()
