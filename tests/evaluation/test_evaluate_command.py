import json

import numpy as np
import pytest
from PIL import Image

from cmslap import MASRN, CMSLapSRN, save_model
from cmslap.cli import main


@pytest.fixture
def weights(tmp_path):
    path = tmp_path / "tiny.safetensors"
    save_model(CMSLapSRN(depth=1, recursions=1, channels=4, shared_conv=1), path)
    return str(path)


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for name in ("a.png", "b.png"):
        pixels = np.random.randint(0, 256, (40, 36, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / name)
    Image.new("L", (32, 32), 128).save(folder / "flat.png")
    return str(folder)


def test_table_and_json_say_the_same(weights, images, tmp_path, capsys):
    out = tmp_path / "figures.json"
    assert main(["evaluate", "--data", images, "-s", "2", "-s", "4", "-m", weights, "--json", str(out)]) == 0
    table = capsys.readouterr().out
    assert table.count("images") == 2
    record = json.loads(out.read_text())
    assert record["model"]["name"] == "tiny.safetensors"
    assert record["model"]["config"] == {"scale": 8, "depth": 1, "recursions": 1, "channels": 4, "shared_conv": 1}
    assert len(record["model"]["sha256"]) == 64
    assert record["provenance"]["torch"]
    assert [result["scale"] for result in record["results"]] == [2, 4]
    result = record["results"][1]
    assert [image["image"] for image in result["images"]] == ["a.png", "b.png", "flat.png"]
    assert result["images"][2]["bicubic"]["psnr"] is None  # equal images
    assert f"{result['model']['ssim']:.4f}" in table
    assert np.mean([image["model"]["ssim"] for image in result["images"]]) == pytest.approx(result["model"]["ssim"])


@pytest.mark.parametrize(
    ("network", "scales"),
    [(CMSLapSRN(depth=1, recursions=1, channels=4, shared_conv=1), [2, 4, 8]), (MASRN(channels=8), [2, 3, 4])],
)
def test_scales_are_the_networks_own_by_default(network, scales, images, tmp_path):
    weights, out = tmp_path / "own.safetensors", tmp_path / "figures.json"
    save_model(network, weights)
    assert main(["evaluate", "--data", images, "-m", str(weights), "--json", str(out)]) == 0
    assert [result["scale"] for result in json.loads(out.read_text())["results"]] == scales


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--data", "{images}", "--data", "nowhere"], "nowhere: no such folder"),
        (["--data", "{images}", "-s", "3"], "powers of two"),
        (["--data", "{images}", "-m", "nothing.safetensors"], "nothing.safetensors: no such file"),
    ],
)
def test_mistakes_end_in_one_line(arguments, said, weights, images, capsys):
    arguments = [argument.format(images=images) for argument in arguments]
    if "-m" not in arguments:
        arguments += ["-m", weights]
    assert main(["evaluate", *arguments]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert said in captured.err
    assert captured.err.count("\n") == 1


def test_data_is_required(capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["evaluate", "-s", "2"])
    assert exit_.value.code == 2
    assert "--data" in capsys.readouterr().err
