"""``cmslap video evaluate``: what the weights gain, what they cost, and what the bits would have bought elsewhere."""

import bisect
import dataclasses
import math
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from cmslap.imaging import imresize
from cmslap.models import Network
from cmslap.video.cmsw import AdaptedWeights, read
from cmslap.video.encode import spans
from cmslap.video.frames import Frame, cropped_or_padded, padded
from cmslap.video.pipeline import ahead, side_by_side
from cmslap.video.reading import VideoError, VideoReader, fingerprint
from cmslap.video.writing import Encoding, packets, write_part

Enlarge = Callable[[int, Tensor], Tensor]  # number of the scene, [1, 1, h, w] -> [1, 1, 2h, 2w]
_RATE_TRIES = 6
_RATE_ERROR = 0.01  # how far from the wanted bits the rival may end


def load_beside(small: Path) -> AdaptedWeights:
    """The weights of ``small``: those beside it, if they are its own. Raises CmswError, :class:`VideoError`."""
    path = small.with_suffix(".cmsw")
    weights = read(path)
    if weights.video != fingerprint(small):
        raise VideoError(f"{path}: these are another video's weights, not those of {small}")
    return weights


def enlargers(weights: AdaptedWeights) -> dict[str, Enlarge]:
    """Bicubic interpolation, the video's network, and each scene's, as the table calls them."""
    return {
        "bicubic": lambda scene, low: imresize(low, 2.0),
        "as": by_networks([weights.network()] * len(weights.scenes)),
        "os": by_networks(weights.scene_networks()),
    }


def by_networks(networks: list[Network]) -> Enlarge:
    def enlarge(scene: int, low: Tensor) -> Tensor:
        return networks[scene](low.contiguous(memory_format=torch.channels_last))[-1]

    return enlarge


def psnr_of_scenes(
    original: Path, small: Path, starts: list[int], ways: dict[str, Enlarge], quiet: bool = False
) -> dict[str, list[float]]:
    """PSNR in dB of luma for each scene and each way to enlarge: of the mean square error over a scene's frames.

    Results are rounded to the video's levels first, as a receiver shows them.
    """

    @torch.inference_mode()
    def errors(number: int, pair: tuple[Frame, Frame]) -> list[float]:
        low, high = pair
        scene = bisect.bisect(starts, number) - 1
        image = torch.from_numpy(low.luma.astype(np.float32))[None, None] / low.white
        shown = ((enlarge(scene, image)[0, 0].clamp(0, 1) * high.white).round().numpy() for enlarge in ways.values())
        return [_error(high, luma[: high.luma.shape[0], : high.luma.shape[1]]) for luma in shown]

    with VideoReader(original) as large, VideoReader(small) as low_reader:
        of_frames = side_by_side(errors, enumerate(ahead(_pairs(large, low_reader, original))))
        of_frames = list(tqdm(of_frames, "comparing", low_reader.properties.frames, disable=quiet or None))
    return {name: _psnr(of_way, starts) for name, of_way in zip(ways, zip(*of_frames, strict=True), strict=True)}


def _pairs(large: VideoReader, small: VideoReader, original: Path) -> Iterator[tuple[Frame, Frame]]:
    height, width = large.properties.height, large.properties.width
    if (-(-height // 4) * 2, -(-width // 4) * 2) != (small.properties.height, small.properties.width):
        raise VideoError(f"{small.path}: its frames are not half as large as those of {original}")
    try:
        yield from zip(small.frames(), large.frames(), strict=True)
    except ValueError:
        raise VideoError(f"{small.path}: it has not as many frames as {original}") from None


def _error(frame: Frame, luma: np.ndarray) -> float:
    """The mean square difference from the frame's luma, which is to be in the same levels."""
    return float(np.mean(((luma - frame.luma.astype(np.float64)) / frame.white) ** 2))


def _psnr(errors: Sequence[float], starts: list[int]) -> list[float]:
    """Of each scene, of the errors of all frames."""
    means = [np.mean(errors[first:last]) for first, last in spans(starts, len(errors))]
    return [-10 * math.log10(error) if error > 0 else math.inf for error in means]


def bits_of_scenes(path: Path, starts: list[int], frames: int) -> list[int]:
    """Bits of the compressed frames shown in each scene."""
    found = sorted((packet.pts, packet.size) for packet in packets([path]))
    sizes = np.array([size for _, size in found])
    return [8 * int(sizes[first:last].sum()) for first, last in spans(starts, frames)]


def table(original: Path, small: Path, weights: AdaptedWeights, quiet: bool = False) -> list[dict[str, float]]:
    """A row a scene: PSNR and bits a pixel of bicubic, the video's network and the scene's (equations 4 to 6)."""
    psnr = psnr_of_scenes(original, small, weights.scenes, enlargers(weights), quiet)
    return rows(psnr, weights, small)


def rows(psnr: dict[str, list[float]], weights: AdaptedWeights, small: Path) -> list[dict[str, float]]:
    total = sum(1 for _ in packets([small]))
    of_video = bits_of_scenes(small, weights.scenes, total)
    common, differences = weights.bits
    result = []
    for number, (first, last) in enumerate(spans(weights.scenes, total)):
        pixels = weights.size[0] * weights.size[1] * (last - first)
        bicubic = of_video[number]
        shared = bicubic + common / len(weights.scenes)
        result.append(
            {
                "scene": number + 1, "first": first, "frames": last - first,
                **{f"{name}_psnr": values[number] for name, values in psnr.items()},
                "bicubic_bpp": bicubic / pixels, "as_bpp": shared / pixels,
                "os_bpp": (shared + differences[number]) / pixels, "difference_bits": differences[number],
            }
        )  # fmt: skip
    return result


def rival(original: Path, bits: int, starts: list[int], preset: str = "medium") -> tuple[float, list[float]]:
    """HEVC at full size in about ``bits`` for all frames: its bits, and PSNR of luma for each scene.

    The encoder's rate control misses the rate on short videos, so the rate asked for is corrected until it fits.
    """
    with tempfile.TemporaryDirectory() as folder:
        part = Path(folder) / "rival.nut"
        with VideoReader(original) as reader:
            seconds = reader.properties.frames / reader.properties.rate
        asked = bits / float(seconds)
        for _ in range(_RATE_TRIES):
            with VideoReader(original) as reader:
                like = reader.properties
                even = (-(-like.height // 2) * 2, -(-like.width // 2) * 2)
                like = dataclasses.replace(like, height=even[0], width=even[1])
                frames = (padded(frame, 2) for frame in ahead(reader.frames()))
                write_part(frames, part, Encoding("hevc", None, round(asked), preset), like)
            got = 8 * sum(packet.size for packet in packets([part]))
            if abs(got / bits - 1) < _RATE_ERROR:
                break
            asked *= bits / got
        return got, _psnr_of_same_size(original, part, starts)


def _psnr_of_same_size(original: Path, other: Path, starts: list[int]) -> list[float]:
    with VideoReader(original) as first, VideoReader(other) as second:
        height, width = first.properties.height, first.properties.width
        pairs = zip(first.frames(), second.frames(), strict=True)
        errors = [_error(one, cropped_or_padded(two, height, width).luma) for one, two in pairs]
    return _psnr(errors, starts)
