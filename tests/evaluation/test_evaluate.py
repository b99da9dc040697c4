import math

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from cmslap import CMSLapSRN, LapSRN, load_model, ops
from cmslap.evaluation.evaluate import BenchmarkError, enlarge, evaluate, read_hr_image
from cmslap.imaging import ImageError, imresize
from cmslap.models import Network
from cmslap.ops import extension


class Bicubic(Network):
    """A "network" that does what bicubic does."""

    scales = (2, 4, 8)

    def __init__(self):
        super().__init__()
        self.parameter = nn.Parameter(torch.zeros((), dtype=torch.float64))

    def forward(self, y, scale):
        return [imresize(y, 2 ** (level + 1)) for level in range(scale.bit_length() - 1)]


@pytest.fixture
def threads():
    """Sets how many threads compute, until the test ends."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def means(report):
    return {scale: report.mean(scale) for scale in report.scales()}


def noise(*shape):
    return np.random.randint(0, 256, shape, dtype=np.uint8)


@pytest.mark.parametrize(
    ("folder", "published"),
    [
        ("set5", {2: (33.69, 0.9306), 4: (28.43, 0.8113), 8: (24.40, 0.6583)}),
        ("set14", {2: (30.25, 0.8695), 4: (26.01, 0.7034), 8: (23.10, 0.5643)}),
    ],
)
def test_bicubic_has_the_published_figures(folder, published, request):
    measured = means(evaluate(Bicubic(), request.getfixturevalue(folder), published))
    for scale, (psnr, ssim) in published.items():
        assert measured[scale].bicubic.psnr == pytest.approx(psnr, abs=0.01)
        assert measured[scale].bicubic.ssim == pytest.approx(ssim, abs=2e-4)


@pytest.mark.parametrize(
    ("weights", "published"),
    [
        ("MSLapSRN_D5R8.mat", {2: (37.78, 0.9600), 4: (31.74, 0.8902), 8: (26.34, 0.7558)}),
        ("LapSRN_x4.mat", {4: (31.54, 0.8865)}),
        ("VDSR_Official.mat", {2: (37.58, 0.9594), 3: (33.68, 0.9222), 4: (31.36, 0.8847)}),
    ],
)
def test_official_weights_have_the_published_figures(weights, published, official_weights, set5):
    measured = means(evaluate(load_model(official_weights / weights), set5, published))
    for scale, (psnr, ssim) in published.items():
        assert measured[scale].model.psnr == pytest.approx(psnr, abs=0.01)
        assert measured[scale].model.ssim == pytest.approx(ssim, abs=2e-4)


@pytest.mark.skipif(extension.MISSING is not None, reason=str(extension.MISSING))
def test_cpu_kernels_leave_psnr_as_it_is(set5, tmp_path):
    for name in ("img_003.png", "img_005.png"):  # the two smallest
        (tmp_path / name).symlink_to(set5 / name)
    rows = {}
    for backend in ("cpu", "reference"):
        with ops.use_backend(backend):
            rows[backend] = evaluate(load_model(), tmp_path, [2, 4]).rows
    for ours, plain in zip(rows["cpu"], rows["reference"], strict=True):
        assert ours.model.psnr == pytest.approx(plain.model.psnr, abs=1e-3)


@pytest.mark.skipif(extension.MISSING is not None, reason=str(extension.MISSING))
def test_thread_counts_and_runs_give_the_same_image(set5, threads):
    low = imresize(read_hr_image(set5 / "img_003.png"), 1 / 4)
    model, images = load_model(), []
    with ops.use_backend("cpu"):
        for count in (1, 2, 3, 3):
            threads(count)
            images.append(enlarge(model, low, 4))
    assert all(torch.equal(image, images[0]) for image in images[1:])


@pytest.mark.parametrize("shape", [(50, 41, 3), (50, 41)])
def test_a_network_that_interpolates_scores_as_bicubic(shape, tmp_path):
    Image.fromarray(noise(*shape)).save(tmp_path / "a.png")
    for row in evaluate(Bicubic(), tmp_path, [2, 4]).rows:
        assert row.model.psnr == pytest.approx(row.bicubic.psnr, abs=0.2)  # 4x is twice 2x, which is not quite 4x
        if row.scale == 2:
            assert row.model.psnr == pytest.approx(row.bicubic.psnr, abs=1e-6)
            assert row.model.ssim == pytest.approx(row.bicubic.ssim, abs=1e-6)


def test_rows_and_means(tmp_path):
    for name in ("b.png", "a.png"):
        Image.fromarray(noise(40, 44, 3)).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("not an image")
    report = evaluate(CMSLapSRN(depth=1, recursions=1, channels=4, shared_conv=1), tmp_path, [4, 2, 2])
    assert [(row.image, row.scale) for row in report.rows] == [("a.png", 2), ("a.png", 4), ("b.png", 2), ("b.png", 4)]
    assert report.data == tmp_path.name
    assert report.mean(4).model.psnr == pytest.approx((report.rows[1].model.psnr + report.rows[3].model.psnr) / 2)


def test_a_flat_image_is_perfect(tmp_path):
    Image.new("L", (32, 32), 77).save(tmp_path / "flat.png")
    assert evaluate(Bicubic(), tmp_path, [2]).mean(2).bicubic.psnr == math.inf


def test_enlarge_leaves_chroma_to_bicubic():
    model = CMSLapSRN(depth=1, recursions=1, channels=4, shared_conv=1)
    low = torch.rand(3, 9, 7, dtype=torch.float64)
    difference = enlarge(model, low, 2) - imresize(low, 2)
    assert difference.shape == (3, 18, 14)
    assert torch.allclose(difference[0], difference[1])  # luma moves R, G and B alike
    assert torch.allclose(difference[0], difference[2])


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK"])
def test_every_mode_is_read(mode, tmp_path):
    path = tmp_path / "image.tif"
    Image.fromarray(noise(14, 12, 3)).convert(mode).save(path)
    image = read_hr_image(path)
    assert image.shape == (1 if mode in ("1", "L", "LA") else 3, 14, 12)
    assert torch.equal(image, (image * 255).round() / 255)


def test_sixteen_bits_are_rounded_to_eight(tmp_path):
    values = np.random.randint(0, 65536, (14, 12), dtype=np.uint16)
    Image.fromarray(values).save(tmp_path / "deep.png")
    expected = torch.from_numpy(np.rint(values / 257) / 255)[None]
    assert torch.allclose(read_hr_image(tmp_path / "deep.png"), expected)


def test_floating_point_images_are_refused(tmp_path):
    Image.fromarray(np.random.rand(30, 30).astype(np.float32)).save(tmp_path / "float.tif")
    with pytest.raises(ImageError, match=r"float\.tif: a floating-point image"):
        evaluate(Bicubic(), tmp_path, [2])


def test_a_missing_folder(tmp_path):
    with pytest.raises(ImageError, match="no such folder"):
        evaluate(Bicubic(), tmp_path / "missing", [2])


def test_a_folder_without_images(tmp_path):
    (tmp_path / "notes.txt").write_text("none here")
    with pytest.raises(ImageError, match="no images in this folder"):
        evaluate(Bicubic(), tmp_path, [2])


@pytest.mark.parametrize("content", [b"", b"not an image at all", None])
def test_a_damaged_image_is_named(content, tmp_path):
    path = tmp_path / "bad.png"
    Image.fromarray(noise(60, 60, 3)).save(path)
    path.write_bytes(path.read_bytes()[:3000] if content is None else content)
    with pytest.raises(ImageError, match=r"bad\.png"):
        evaluate(Bicubic(), tmp_path, [2])


def test_a_image_too_small_for_the_scale_is_named(tmp_path):
    Image.fromarray(noise(26, 30, 3)).save(tmp_path / "small.png")
    evaluate(Bicubic(), tmp_path, [2, 4])
    with pytest.raises(BenchmarkError, match=r"small\.png: 30x26 pixels are too few for 8x"):
        evaluate(Bicubic(), tmp_path, [2, 8])


@pytest.mark.parametrize("scale", [0, 1, 3, -2])
def test_a_scale_the_network_does_not_serve(scale, tmp_path):
    with pytest.raises(BenchmarkError, match=f"powers of two.*{scale}"):
        evaluate(CMSLapSRN(depth=1, recursions=1, channels=4, shared_conv=1), tmp_path, [2, scale])


def test_more_levels_than_the_network_has(tmp_path):
    with pytest.raises(BenchmarkError, match="up to 2"):
        evaluate(LapSRN(scale=2, depth=1, channels=4), tmp_path, [2, 4])
