"""Exported files compute what the network does, at any size, without this package."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch

import cmslap
from cmslap.checkpoints.export import ExportError, export
from cmslap.cli import main
from cmslap.models import NETWORKS

SMALL = {"depth": 3, "recursions": 2, "channels": 4, "shared_conv": 1}


def small(architecture):
    """A small network of that class with every weight random."""
    import inspect

    known = inspect.signature(NETWORKS[architecture]).parameters
    network = NETWORKS[architecture](**{name: value for name, value in SMALL.items() if name in known})
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return network.eval()


def image_of(network, batch, height, width):
    return torch.rand(batch, network.image_channels, height, width)


def expected(network, image, scale):
    with torch.no_grad():
        return network.double()(image.double(), scale)[-1].numpy()


@pytest.mark.parametrize("architecture", NETWORKS)
def test_onnx_in_onnx_runtime(architecture, tmp_path):
    pytest.importorskip("onnxscript", reason="the extra `export` is not installed")
    onnxruntime = pytest.importorskip("onnxruntime", reason="the extra `export` is not installed")
    network, path = small(architecture), tmp_path / "network.onnx"
    scale = int(np.random.choice(network.scales[:3]))
    assert 0 <= export(network, path, scale) <= 1e-5
    session = onnxruntime.InferenceSession(path)
    for size in ((1, 7, 5), (3, 16, 9)):
        image = image_of(network, *size)
        (enlarged,) = session.run(["enlarged"], {"image": image.numpy()})
        truth = expected(network, image, scale)
        assert np.linalg.norm(enlarged - truth) <= 1e-5 * np.linalg.norm(truth)
    about = session.get_modelmeta().custom_metadata_map
    assert (about["architecture"], json.loads(about["config"])) == (architecture, network.config())
    assert {node.domain for node in pytest.importorskip("onnx").load(path).graph.node} == {""}  # ONNX's own operators


def test_pt2_runs_where_cmslap_is_not(tmp_path):
    truths = {}
    for architecture in NETWORKS:
        network = small(architecture)
        scale, image = int(np.random.choice(network.scales[:3])), image_of(network, 2, 9, 6)
        export(network, tmp_path / f"{architecture}.pt2", scale)
        torch.save(image, tmp_path / f"{architecture}.image")
        truths[architecture] = expected(network, image, scale)
    program = (
        "import sys, torch; sys.modules['cmslap'] = None\n"
        "for name in sys.argv[1:]:\n"
        "    run = torch.export.load(f'{name}.pt2').module()\n"
        "    torch.save(run(torch.load(f'{name}.image')), f'{name}.enlarged')"
    )
    subprocess.run([sys.executable, "-c", program, *NETWORKS], cwd=tmp_path, check=True)
    for architecture, truth in truths.items():
        enlarged = torch.load(tmp_path / f"{architecture}.enlarged").detach().numpy()
        assert np.linalg.norm(enlarged - truth) <= 1e-5 * np.linalg.norm(truth), architecture


def test_a_file_that_computes_something_else_is_not_written(tmp_path, monkeypatch):
    from cmslap.checkpoints import export as module

    monkeypatch.setitem(
        module._WRITERS, ".pt2", lambda program, path, about: lambda image: program.module()(image) + 1e-3
    )
    with pytest.raises(ExportError, match="differs from the network"):
        export(small("CMSLapSRN"), tmp_path / "network.pt2", 2)
    assert list(tmp_path.iterdir()) == []


def test_the_command(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cmslap.save_model(small("CMSLapSRN"), "tiny.safetensors")
    assert main(["export", "tiny.safetensors", "tiny.pt2", "-s", "2"]) == 0
    assert capsys.readouterr().out.startswith("tiny.pt2: CMSLapSRN, 2x, ")
    for arguments, said in (
        (["tiny.safetensors", "tiny.pt2"], "tiny.pt2 exists; give --overwrite"),
        (["tiny.safetensors", "tiny.tflite"], "tiny.tflite: the file must end in .onnx or .pt2"),
        (["tiny.safetensors", "other.pt2", "-s", "3"], "tiny.safetensors: scale must be"),
        (["none.safetensors", "other.pt2"], "none.safetensors: no such file"),
    ):
        assert main(["export", *arguments]) == 1
        assert capsys.readouterr().err.startswith(f"cmslap export: error: {said}")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tiny.pt2", "tiny.safetensors"]
