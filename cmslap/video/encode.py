"""``cmslap video encode``: a small video, and beside it the weights that make it large.

Every stage leaves a file in a folder beside the output, whole or not at all; what was killed goes on with the stage
it was at, and training with the seconds it had left.
"""

import dataclasses
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean

import numpy as np
import torch
from tqdm import tqdm

from cmslap.files import replacing
from cmslap.models import RLRDSR, Network
from cmslap.video import cmsw, coding, footage, scenes
from cmslap.video.adaptation import Adaptation, Schedule, reference_of
from cmslap.video.footage import Footage
from cmslap.video.frames import halved, padded
from cmslap.video.pipeline import ahead
from cmslap.video.reading import VideoReader, fingerprint
from cmslap.video.work import beside, identity, working_in
from cmslap.video.writing import Encoding, join, write_part

SCALE = 2
CENTROIDS = 1000, 300  # of the video's weights, of a scene's difference
_MULTIPLE = 4  # what the sides of a frame are padded to: half of them are even, as chroma of half the size needs
RATE, SCENE_RATE = 2e-3, 1e-3  # Adam's in the beginning: from nothing, from the video's weights
_OF_VIDEO = 0.5  # share of the time to train that the whole video gets
_PROBED = 4  # frames of a scene that bicubic interpolation is tried on
_ROUNDING = 0.25  # levels: what rounding alone errs by


@dataclass(frozen=True)
class Settings:
    """What decides the result; a run that was stopped goes on with the same alone."""

    bitrate: int  # bits a second of the small video
    minutes: float = 10  # of training, in all
    price: float = 0.003  # λ
    scene_frames: int | None = 32  # None finds cuts
    halving: str = "bicubic"
    preset: str = "medium"
    recursions: int = 4
    centroids: tuple[int, int] = CENTROIDS
    seed: int = 0


class Encoder:
    """The stages, each in a function that finds its result if it is there already."""

    def __init__(
        self, source: Path, work: Path, settings: Settings, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self.source, self.work, self.settings, self.clock = source, work, settings, clock

    @property
    def small(self) -> Path:
        return self.work / "small.mp4"

    def shrink(self) -> None:
        """The small video, with sound and all."""
        if self.small.exists():
            return
        part = self.work / "small.nut"
        with VideoReader(self.source) as reader:
            like = reader.properties
            height, width = (-(-side // _MULTIPLE) * _MULTIPLE // SCALE for side in (like.height, like.width))
            like = dataclasses.replace(like, height=height, width=width)
            frames = (halved(padded(frame, _MULTIPLE), self.settings.halving) for frame in reader.frames())
            frames = tqdm(ahead(frames), "halving, encoding", like.frames, unit="frame", disable=None)
            write_part(frames, part, Encoding("hevc", None, self.settings.bitrate, self.settings.preset), like)
            join([part], reader, self.small)
        part.unlink()

    def film(self) -> Footage:
        """Luma of what was encoded, decoded again, beside that of the source."""
        path = self.work / "footage.bin"
        if not path.with_suffix(".json").exists():
            with VideoReader(self.small) as small, VideoReader(self.source) as source:
                number = small.properties.frames
                pairs = zip(small.frames(), (padded(frame, _MULTIPLE) for frame in source.frames()), strict=True)
                pairs = tqdm(pairs, "decoding", number, unit="frame", disable=None)
                footage.write(pairs, path, number, SCALE)
        return Footage(path)

    def scenes(self, frames: int) -> list[int]:
        """The frame each scene begins with."""
        if self.settings.scene_frames is not None:
            return scenes.fixed(frames, self.settings.scene_frames)
        with VideoReader(self.small) as reader:
            return scenes.cuts((frame.luma for frame in reader.frames()), reader.properties.white)

    def adapt(self, film: Footage, starts: list[int]) -> list[bytes]:
        """The encoded weights of the video, and each scene's difference."""
        seconds = 60 * self.settings.minutes
        with tqdm(total=seconds, unit="s", disable=None, bar_format=_BAR) as bar:
            bar.set_description("training on the video")
            video, common = self.adapt_video(film, starts, _OF_VIDEO * seconds, bar)
            parts = [video]
            for number, (first, last) in enumerate(spans(starts, film.frames)):
                bar.set_description(f"training on scene {number + 1} of {len(starts)}")
                schedule = self._schedule((1 - _OF_VIDEO) * seconds / len(starts), SCENE_RATE, self.settings.price)
                parts.append(self.adapt_scene(film, (first, last), common, schedule, f"scene-{number:05d}", bar))
        return parts

    def _schedule(self, seconds: float, rate: float = RATE, price: float = 0.0) -> Schedule:
        return Schedule(seconds, rate, price=price, seed=self.settings.seed)

    def adapt_video(
        self, film: Footage, starts: list[int], seconds: float, bar: tqdm | None = None
    ) -> tuple[bytes, Network]:
        """The encoded weights of the network trained on all frames, and the network they decode to."""

        def train(state: Path) -> bytes:
            torch.manual_seed(self.settings.seed)
            network = RLRDSR(SCALE, self.settings.recursions)
            places, shares = film.kept(0, film.frames), shares_of_frames(film, starts)
            adaptation = Adaptation(network, film, places, self._schedule(seconds), shares=shares, clock=self.clock)
            adaptation.run(state, bar)
            return coding.encode(cmsw.flat(network), self.settings.centroids[0])

        data = self._once("video", train, bar, seconds)
        template = RLRDSR(SCALE, self.settings.recursions)
        weights = coding.decode(data, sum(parameter.numel() for parameter in template.parameters()))
        return data, cmsw.with_weights(template, weights)

    def adapt_scene(
        self,
        film: Footage,
        span: tuple[int, int],  # its first frame, and that of the next
        common: Network,
        schedule: Schedule,
        name: str,
        bar: tqdm | None = None,
    ) -> bytes:
        """The encoded difference of the network trained further on the frames of one scene."""

        def train(state: Path) -> bytes:
            network = cmsw.with_weights(common, cmsw.flat(common))
            places, reference = film.kept(*span), reference_of(common)
            Adaptation(network, film, places, schedule, reference, clock=self.clock).run(state, bar)
            return coding.encode(cmsw.flat(network) - cmsw.flat(common), self.settings.centroids[1])

        return self._once(name, train, bar, schedule.seconds)

    def _once(self, name: str, train: Callable[[Path], bytes], bar: tqdm | None, seconds: float) -> bytes:
        """What ``train`` makes, or has made before; its state is needed no longer then."""
        done, state = self.work / f"{name}.bin", self.work / f"{name}.pt"
        if done.exists():
            if bar is not None:
                bar.update(seconds)
            return done.read_bytes()
        data = train(state)
        with replacing(done) as temporary:
            temporary.write_bytes(data)
        state.unlink()
        return data


_BAR = "{desc}: {percentage:3.0f}%|{bar}| {n:.0f}/{total:.0f} s, {remaining} left{postfix}"


def spans(starts: list[int], frames: int) -> Iterator[tuple[int, int]]:
    """The first frame of each scene and that of the next."""
    return zip(starts, [*starts[1:], frames], strict=True)


def shares_of_frames(film: Footage, starts: list[int]) -> np.ndarray:  # [frames kept], in all 1
    """How often to draw a frame: the more, the less bicubic interpolation errs in its scene.

    PSNR counts ratios of errors, their mean differences: the root stands between the two.
    """
    shares = np.empty(len(film.kept(0, film.frames)))
    for span in spans(starts, film.frames):
        places = film.kept(*span)
        probed = places[:: -(-len(places) // _PROBED)]
        shares[places] = max(_ROUNDING, fmean(film.interpolation_error(place) for place in probed)) ** -0.5
    return shares / shares.sum()


def encode(source: Path, out: Path, settings: Settings) -> cmsw.AdaptedWeights:
    """Write ``out`` and its ``.cmsw``. Raises VideoError, and OutputError of ``cmslap.files``."""
    work = beside(out)
    with working_in(work, {"source": identity(source), **asdict(settings)}):
        encoder = Encoder(source, work, settings)
        encoder.shrink()
        film = encoder.film()
        starts = encoder.scenes(film.frames)
        parts = encoder.adapt(film, starts)
        with VideoReader(source) as reader:
            size = reader.properties.width, reader.properties.height
        config = RLRDSR(SCALE, settings.recursions).config()
        weights = cmsw.AdaptedWeights("RLRDSR", config, fingerprint(encoder.small), size, starts, parts, settings.price)
        with replacing(out) as temporary:
            shutil.copyfile(encoder.small, temporary)
        cmsw.write(weights, out.with_suffix(".cmsw"))
    return weights
