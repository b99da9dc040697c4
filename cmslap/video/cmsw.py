"""The ``.cmsw`` file: a network for a video, and for each of its scenes what changes.

    CMSW, version (u16), bytes of the header (u32), header (JSON), weights of the video, those of each scene's
    difference, SHA-256 of all that. Little-endian.

The header tells the network and its configuration, the video's fingerprint and full size, the frame each scene begins
with, the price λ the scenes' weights were trained with, and the bytes of each part. ``cmslap.video.coding`` makes the
parts. Nothing in the file is executed.
"""

import hashlib
import itertools
import json
import os
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from cmslap.checkpoints.weights import Weights
from cmslap.errors import UserError
from cmslap.files import replacing
from cmslap.models import NETWORKS, Network
from cmslap.video import coding

VERSION = 1
_START = struct.Struct("<4sHI")
_DIGEST = hashlib.sha256().digest_size
_KEYS = {"network": str, "config": dict, "video": str, "size": list, "scenes": list, "bytes": list}
_LARGEST = 2**28  # bytes of a file: guards memory


class CmswError(UserError, OSError):
    """A ``.cmsw`` file that cannot be read, or is another video's."""


@dataclass(frozen=True)
class AdaptedWeights:
    """What a ``.cmsw`` file holds; the parts still encoded."""

    architecture: str
    config: dict[str, int]
    video: str  # fingerprint of the small video
    size: tuple[int, int]  # width, height of the large video
    scenes: list[int]  # frame each begins with, the first 0
    parts: list[bytes]  # weights of the video; difference of each scene
    price: float | None = None  # λ, where the file tells it

    @property
    def bits(self) -> tuple[int, list[int]]:
        """What the video's weights cost, with all that is in the file once; what each scene's difference costs."""
        sizes = [8 * len(part) for part in self.parts]
        return 8 * len(pack(self)) - sum(sizes[1:]), sizes[1:]

    def network(self) -> Network:
        """The video's network, in float32 on the CPU."""
        return self._networks()[0]

    def scene_networks(self) -> list[Network]:
        """The network of each scene."""
        return self._networks()[1]

    def _networks(self) -> tuple[Network, list[Network]]:
        template = _template(self.architecture, self.config)
        length = sum(parameter.numel() for parameter in template.parameters())
        common, *differences = [coding.decode(part, length) for part in self.parts]
        of_scenes = [with_weights(template, common + difference) for difference in differences]
        return with_weights(template, common), of_scenes


def _template(architecture: str, config: dict[str, int]) -> Network:
    """The network without weights: it takes no memory, whatever the file claims."""
    with torch.device("meta"):
        return NETWORKS[architecture](**config)


def flat(network: Network) -> np.ndarray:  # [n] float32
    """All weights of a network, in the order of its parameters."""
    return torch.cat([parameter.detach().flatten() for parameter in network.parameters()]).cpu().numpy()


def with_weights(template: Network, weights: np.ndarray) -> Network:
    """A network as ``template``, with the weights that :func:`flat` gave."""
    named = dict(template.named_parameters())
    pieces = torch.from_numpy(weights).split([parameter.numel() for parameter in named.values()])
    shapes = (parameter.shape for parameter in named.values())
    tensors = {name: piece.view(shape) for name, piece, shape in zip(named, pieces, shapes, strict=True)}
    return Weights(type(template).__name__, template.config(), tensors).build()


def pack(weights: AdaptedWeights) -> bytes:
    """The bytes of the file."""
    header = {
        "network": weights.architecture, "config": weights.config, "video": weights.video, "size": list(weights.size),
        "scenes": weights.scenes, "lambda": weights.price, "bytes": [len(part) for part in weights.parts],
    }  # fmt: skip
    text = json.dumps(header, separators=(",", ":")).encode()
    data = _START.pack(b"CMSW", VERSION, len(text)) + text + b"".join(weights.parts)
    return data + hashlib.sha256(data).digest()


def write(weights: AdaptedWeights, path: str | os.PathLike[str]) -> None:
    with replacing(path) as temporary:
        temporary.write_bytes(pack(weights))


def read(path: str | os.PathLike[str]) -> AdaptedWeights:
    """Read a ``.cmsw`` file, and see that it is whole and can be served. Raises :class:`CmswError`."""
    path = Path(path)
    if not path.is_file():
        raise CmswError(f"{path}: no such file; `cmslap video encode` writes it beside the small video")
    try:
        if path.stat().st_size > _LARGEST:
            raise CmswError(f"it has more than {_LARGEST >> 20} MiB")
        weights = unpack(path.read_bytes())
        weights.network()
        return weights
    except (UserError, ValueError, TypeError) as error:
        raise CmswError(f"{path}: not a .cmsw file to use: {error}") from None


def unpack(data: bytes) -> AdaptedWeights:
    """What the bytes of a file mean. Raises :class:`CmswError`, or ValueError where the JSON is none."""
    if len(data) < _START.size + _DIGEST or data[:4] != b"CMSW":
        raise CmswError("it does not begin as one")
    _, version, length = _START.unpack_from(data)
    if version != VERSION:
        raise CmswError(f"it has version {version}, and this program reads {VERSION}")
    body, digest = data[:-_DIGEST], data[-_DIGEST:]
    if hashlib.sha256(body).digest() != digest:
        raise CmswError("it is damaged or cut off (its checksum is wrong)")
    header = _check(json.loads(body[_START.size : _START.size + length]))
    offsets = [_START.size + length, *header["bytes"]]
    ends = list(itertools.accumulate(offsets))
    if ends[-1] != len(body):
        raise CmswError("its parts do not add up to its length")
    parts = [body[begin:end] for begin, end in itertools.pairwise(ends)]
    return AdaptedWeights(
        header["network"], header["config"], header["video"], tuple(header["size"]), header["scenes"], parts,
        header.get("lambda"),
    )  # fmt: skip


def _check(header: object) -> dict:
    """The header, if it is one that an encoder writes."""
    if not isinstance(header, dict) or any(not isinstance(header.get(key), kind) for key, kind in _KEYS.items()):
        raise CmswError("its header lacks something")
    if header["network"] not in NETWORKS:
        raise CmswError(f"its network {header['network']!r:.40} is none of {', '.join(sorted(NETWORKS))}")
    numbers = [*header["size"], *header["scenes"], *header["bytes"]]
    if not all(type(number) is int and number >= 0 for number in (*numbers, *header["config"].values())):
        raise CmswError("its header has something else than numbers")
    size, scenes, sizes = header["size"], header["scenes"], header["bytes"]
    ascending = all(first < second for first, second in itertools.pairwise(scenes))
    if len(size) != 2 or min(size) < 1 or len(sizes) != 1 + len(scenes) or scenes[:1] != [0] or not ascending:
        raise CmswError("its scenes or its size are not a video's")
    if not isinstance(header.get("lambda"), float | int | None):
        raise CmswError("its λ is no number")
    if max(header["config"].values(), default=0) > 4096:
        raise CmswError("its network's configuration is absurd")
    return header
