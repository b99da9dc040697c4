from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from cmslap import MASRN, CMSLapSRN
from cmslap.imaging import ImageError, find_images, luma, read_planes
from cmslap.imaging.resize import imresize
from cmslap.training.config import DataConfig
from cmslap.training.data import UNIT, DataError, TrainingImages

CPU = torch.device("cpu")
LUMA, RGB = CMSLapSRN(depth=1, channels=1, shared_conv=1), MASRN(channels=1)
COUNTS = {2: 3, 4: 2, 8: 4}


@pytest.fixture
def loaded(images):
    return TrainingImages(DataConfig([str(images)]), 16, LUMA, CPU)


def same(left, right):
    return all(
        a.scale == b.scale and torch.equal(a.low, b.low) and all(map(torch.equal, a.targets, b.targets))
        for a, b in zip(left, right, strict=True)
    )


def test_batch_is_a_function_of_seed_and_step_alone(loaded, images):
    first = loaded.batch(7, 1, COUNTS)
    loaded.batch(8, 1, COUNTS)
    torch.rand(3)
    assert same(first, loaded.batch(7, 1, COUNTS))
    assert same(first, TrainingImages(DataConfig([str(images)]), 16, LUMA, CPU).batch(7, 1, COUNTS))
    assert not same(first, loaded.batch(8, 1, COUNTS))
    assert not same(first, loaded.batch(7, 2, COUNTS))


@pytest.mark.parametrize("world", [2, 3, 5])
def test_shares_of_the_processes_make_up_the_batch(loaded, world):
    whole = {batch.scale: batch for batch in loaded.batch(3, 0, COUNTS)}
    parts = [batch for rank in range(world) for batch in loaded.batch(3, 0, COUNTS, rank, world)]
    for scale, batch in whole.items():
        mine = [part for part in parts if part.scale == scale]
        assert all(part.count == COUNTS[scale] for part in mine)
        torch.testing.assert_close(torch.cat([part.low for part in mine]), batch.low)
        torch.testing.assert_close(torch.cat([part.targets[-1] for part in mine]), batch.targets[-1])


def test_low_and_targets_are_the_patch_downsampled_to_each_level(loaded):
    for batch in loaded.batch(0, 0, COUNTS):
        high = batch.targets[-1]
        assert high.shape == (COUNTS[batch.scale], 1, 16, 16)
        torch.testing.assert_close(batch.low, imresize(high, scale=1 / batch.scale), rtol=0, atol=1e-6)
        assert len(batch.targets) == batch.scale.bit_length() - 1
        for level, target in enumerate(reversed(batch.targets)):
            torch.testing.assert_close(target, imresize(high, scale=0.5**level), rtol=0, atol=1e-6)


def test_a_network_without_levels_has_one_target_and_any_scale(images):
    loaded = TrainingImages(DataConfig([str(images)]), 12, RGB, CPU)
    for batch in loaded.batch(0, 0, {2: 1, 3: 2, 4: 3}):
        (high,) = batch.targets
        assert high.shape == (batch.count, 3, 12, 12)
        torch.testing.assert_close(batch.low, imresize(high, scale=1 / batch.scale), rtol=0, atol=1e-6)


def read_luma(path):
    return luma(read_planes(path))


@pytest.mark.parametrize("rotate", [False, True])
@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize(("network", "read"), [(LUMA, read_luma), (RGB, read_planes)])
def test_crops_are_pieces_of_the_images_turned_as_asked(images, rotate, flip, network, read):
    loaded = TrainingImages(DataConfig([str(images)], [1.0, 1.0], rotate, flip), 16, network, CPU)
    turns = [(k, f) for k in (range(4) if rotate else [0]) for f in ([0, 1] if flip else [0])]
    pieces = {}
    for path in find_images(images, recursive=True):
        image = (read(path) * UNIT).round().to(torch.int16).numpy()
        for top in range(image.shape[1] - 15):
            for left in range(image.shape[2] - 15):
                piece = image[:, top : top + 16, left : left + 16]
                for k, f in turns:
                    turned = np.rot90(piece, k, (1, 2))
                    pieces[(turned[..., ::-1] if f else turned).tobytes()] = (path.name, k, f)
    crops = loaded.crops(200, 16, np.random.default_rng(), slice(None)).numpy()
    seen = {pieces[crop.tobytes()] for crop in crops}  # KeyError: no such piece
    assert {name for name, *_ in seen} == {"0.png", "1.png", "2.png"}
    assert {(k, f) for _, k, f in seen} == set(turns)


def test_random_resize_shrinks_larger_crops(images):
    loaded = TrainingImages(DataConfig([str(images)], [0.5, 1.0]), 16, LUMA, CPU)
    assert (loaded.sides.min(), loaded.sides.max()) == (16, 32)
    crop = torch.randint(0, UNIT, (1, 1, 32, 32), dtype=torch.int16)
    batch = loaded._scale_batch(2, 1, crop)
    expected = imresize(crop[0, 0].float() / UNIT, scale=0.5).clamp(0, 1)
    torch.testing.assert_close(batch.targets[-1][0, 0], expected, rtol=0, atol=1e-6)
    only_largest = loaded.crops(50, 32, np.random.default_rng(), slice(None))  # one image has 32 pixels both ways
    assert only_largest.shape == (50, 1, 32, 32)


def test_luma_is_studio_range_and_gray_stays_as_it_is(tmp_path):
    rgb = np.random.randint(0, 256, (5, 6, 3), dtype=np.uint8)
    Image.fromarray(rgb).save(tmp_path / "rgb.png")
    expected = (rgb @ [65.481, 128.553, 24.966] / 255 + 16) / 255
    np.testing.assert_allclose(read_luma(tmp_path / "rgb.png")[0], expected, rtol=1e-12)
    Image.fromarray(rgb[..., 0]).save(tmp_path / "gray.png")
    np.testing.assert_array_equal(read_luma(tmp_path / "gray.png")[0], rgb[..., 0] / 255)
    Image.fromarray(rgb[..., 0].astype(np.uint16) * 257).save(tmp_path / "gray16.png")
    np.testing.assert_allclose(read_luma(tmp_path / "gray16.png")[0], rgb[..., 0] / 255, rtol=1e-12)


def test_gray_is_three_equal_planes_for_a_network_of_rgb(tmp_path):
    gray = np.random.randint(0, 256, (16, 16), dtype=np.uint8)
    Image.fromarray(gray).save(tmp_path / "gray.png")
    loaded = TrainingImages(DataConfig([str(tmp_path)], [1.0, 1.0], rotate=False, flip=False), 16, RGB, CPU)
    (crop,) = loaded.crops(1, 16, np.random.default_rng(), slice(None))
    assert np.array_equal(crop, np.broadcast_to((gray / 255 * UNIT).round(), (3, 16, 16)))


def test_small_images_are_left_out_by_name(images, capsys):
    loaded = TrainingImages(DataConfig([str(images)]), 32, LUMA, CPU)
    assert len(loaded) == 1
    said = capsys.readouterr().err
    assert "2 image(s) smaller than the 32-pixel patch" in said
    assert "0.png" in said
    assert "1.png" in said
    with pytest.raises(DataError, match=r"no image of at least 64x64 pixels, the patch, in .*images"):
        TrainingImages(DataConfig([str(images)]), 64, LUMA, CPU)


def test_folders_that_cannot_be(tmp_path):
    with pytest.raises(ImageError, match=r"nowhere: no such folder"):
        TrainingImages(DataConfig([str(tmp_path / "nowhere")]), 64, LUMA, CPU)
    (tmp_path / "notes.txt").write_text("no image")
    with pytest.raises(ImageError, match="no images in this folder"):
        TrainingImages(DataConfig([str(tmp_path)]), 64, LUMA, CPU)
