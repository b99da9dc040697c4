"""The .cmsw file: what comes out is to the bit what went in, and nothing else passes."""

import dataclasses
import hashlib
import json
import random
import struct

import numpy as np
import pytest
import torch

from cmslap.models import RLRDSR
from cmslap.video import cmsw, coding
from cmslap.video.cmsw import AdaptedWeights, CmswError


def weights(scenes=3, **config):
    network = RLRDSR(**config)
    common = coding.encode(cmsw.flat(network), 200)
    length = len(cmsw.flat(network))
    differences = [
        np.where(np.random.random(length) < 0.1, np.random.normal(0, 0.01, length), 0).astype(np.float32)
        for _ in range(scenes)
    ]
    parts = [common, *(coding.encode(difference, 50) for difference in differences)]
    return AdaptedWeights("RLRDSR", network.config(), "00ff" * 8, (640, 360), [32 * n for n in range(scenes)], parts)


@pytest.mark.parametrize(
    ("length", "zeros", "centroids"),
    [(1, 0, 1), (1, 1, 5), (2, 0, 1), (50, 0.5, 300), (9000, 0, 1000), (9000, 0.9, 300), (9000, 1, 300), (500, 0, 2)],
)
def test_values_come_back_near_and_always_the_same(length, zeros, centroids):
    values = np.random.laplace(0, 0.1, length).astype(np.float32)
    values[np.random.random(length) < zeros] = 0
    data = coding.encode(values, centroids)
    decoded = coding.decode(data, length)
    assert decoded.dtype == np.float32
    np.testing.assert_array_equal(decoded, coding.decode(bytes(data), length))
    np.testing.assert_array_equal(decoded == 0, values == 0)
    assert len(np.unique(decoded[decoded != 0])) <= centroids
    if centroids >= 300 and length == 9000 and zeros < 1:
        assert np.square(decoded - values).mean() < 1e-2 * np.square(values).mean()
    again = coding.encode(decoded, max(centroids, 1))
    np.testing.assert_array_equal(coding.decode(again, length), decoded)


def test_the_coder_reaches_the_entropy_of_its_symbols():
    values = np.random.choice([0, 0.5, -0.25, 1], 20000, p=[0.7, 0.2, 0.08, 0.02]).astype(np.float32)
    entropy = -sum(share * np.log2(share) for share in np.unique(values, return_counts=True)[1] / len(values))
    assert 8 * len(coding.encode(values, 300)) < 1.01 * entropy * len(values) + 500


def test_frequencies_are_exact_fractions():
    for size in (1, 2, 3, 300, 1000):
        counts = np.random.randint(1, 10**6, size)
        model = coding._model(counts)
        assert model.sum() == 1
        assert (model > 0).all()
        assert (model * 2**16 == np.round(model * 2**16)).all()


def test_weights_are_bit_equal_after_a_file(tmp_path):
    before = weights(recursions=3)
    cmsw.write(before, tmp_path / "a.cmsw")
    after = cmsw.read(tmp_path / "a.cmsw")
    assert after == before
    common = before.network()
    assert after.network().config() == common.config()
    image = torch.rand(1, 1, 9, 11)
    for one, two in zip([common, *before.scene_networks()], [after.network(), *after.scene_networks()], strict=True):
        np.testing.assert_array_equal(cmsw.flat(one), cmsw.flat(two))
        assert torch.equal(one(image)[-1], two(image)[-1])
    total = (tmp_path / "a.cmsw").stat().st_size
    assert before.bits[0] + sum(before.bits[1]) == 8 * total


def test_a_damaged_file_is_refused(tmp_path):
    data = cmsw.pack(weights())
    path = tmp_path / "a.cmsw"
    for _ in range(40):
        damaged = bytearray(data)
        damaged[random.randrange(len(data))] ^= 1 << random.randrange(8)
        path.write_bytes(damaged if random.random() < 0.5 else data[: random.randrange(len(data))])
        with pytest.raises(CmswError, match=r"a\.cmsw: not a \.cmsw file to use"):
            cmsw.read(path)


def forged(**changes):
    """A file with a right checksum and a header that lies."""
    data = cmsw.pack(weights())
    _, version, length = struct.unpack_from("<4sHI", data)
    header = json.loads(data[10 : 10 + length]) | changes
    text = json.dumps({key: value for key, value in header.items() if value is not None}).encode()
    body = struct.pack("<4sHI", b"CMSW", changes.get("version", version), len(text)) + text + data[10 + length : -32]
    return body + hashlib.sha256(body).digest()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": 2}, "version 2"),
        ({"network": "os.system"}, "is none of"),
        ({"network": ["RLRDSR"]}, "header lacks"),
        ({"network": "MSLapSRN"}, "config does not fit|unexpected keyword|not"),
        ({"config": None}, "header lacks"),
        ({"config": {"scale": 2, "recursions": 10**9, "channels": 32, "growth": 32}}, "absurd"),
        ({"config": {"scale": 2, "recursions": 4, "channels": 4096, "growth": 32}}, "claim"),
        ({"config": {"scale": 2, "recursions": 4, "channels": "32", "growth": 32}}, "something else than numbers"),
        ({"scenes": [0, 64, 32]}, "scenes"),
        ({"scenes": [1, 32, 64]}, "scenes"),
        ({"scenes": []}, "scenes"),
        ({"bytes": [1, 2, 3, 4]}, "add up"),
        ({"bytes": [-1, 2, 3, 4]}, "something else"),
        ({"size": [0, 5]}, "size"),
        ({"size": [1.5, 5]}, "something else"),
        ({"lambda": "much"}, "λ is no number"),
    ],
)
def test_a_forged_file_is_refused(changes, message, tmp_path):
    (tmp_path / "a.cmsw").write_bytes(forged(**changes))
    with pytest.raises(CmswError, match=message) as caught:
        cmsw.read(tmp_path / "a.cmsw")
    assert "\n" not in str(caught.value)


def test_forged_weights_raise_nothing_else():
    data = weights().parts[0]
    for _ in range(300):
        forged = bytearray(data)
        for _ in range(random.randint(1, 4)):
            forged[random.randrange(40 if random.random() < 0.5 else len(data))] = random.randrange(256)
        try:
            values = coding.decode(bytes(forged), 8580)
        except coding.CodingError:
            continue
        assert np.isfinite(values).all()


def test_no_such_file(tmp_path):
    with pytest.raises(CmswError, match="no such file"):
        cmsw.read(tmp_path / "none.cmsw")


def test_a_scene_without_a_difference_is_the_video_s_network():
    given = weights(scenes=1)
    empty = dataclasses.replace(given, parts=[given.parts[0], coding.encode(np.zeros(8580, np.float32), 300)])
    np.testing.assert_array_equal(cmsw.flat(empty.network()), cmsw.flat(empty.scene_networks()[0]))
    assert empty.bits[1][0] <= 128
