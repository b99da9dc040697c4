import json
import re

import pytest
import torch
from refusing import refused
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from cmslap import CMSLapSRN, LapSRN, load_model, save_model
from cmslap.checkpoints import checkpoint
from cmslap.checkpoints.checkpoint import CheckpointError
from cmslap.devices import DeviceError
from cmslap.models import NETWORKS


@pytest.fixture
def shipped(tmp_path, monkeypatch):
    """A weights folder of known content in place of the package's own."""
    monkeypatch.setattr(checkpoint, "SHIPPED", tmp_path)
    model = CMSLapSRN(depth=1, recursions=1, channels=4, shared_conv=1)
    for name in ("cms-lapsrn-d5r2", "cms-lapsrn-d5r8"):
        save_model(model, tmp_path / f"{name}.safetensors")
    return model


def test_round_trip(network, same, tmp_path):
    path = tmp_path / "deep" / "network.safetensors"
    save_model(network, path, {"trained_on": "noise"})
    loaded = load_model(path)
    assert same(network, loaded)
    assert loaded.config() == network.config()
    assert not loaded.training
    assert all(parameter.requires_grad for parameter in loaded.parameters())
    with safe_open(path, "pt") as file:
        header = file.metadata()
    assert header["trained_on"] == "noise"
    assert header["architecture"] == type(network).__name__
    assert json.loads(header["config"]) == network.config()


def test_loading_draws_no_random_numbers(network, tmp_path):
    save_model(network, tmp_path / "network.safetensors")
    before = torch.get_rng_state()
    load_model(tmp_path / "network.safetensors")
    assert torch.equal(torch.get_rng_state(), before)


def test_half_precision_files_load_in_float32(network, same, tmp_path):
    path = tmp_path / "half.safetensors"
    network.half()
    save_model(network, path)
    assert same(network.float(), load_model(path))


def test_save_refuses_other_networks_and_leaves_nothing(tmp_path):
    with pytest.raises(CheckpointError, match="got Conv2d"):
        save_model(nn.Conv2d(1, 1, 3), tmp_path / "conv.safetensors")
    assert not list(tmp_path.iterdir())


def test_shipped_names(shipped, same):
    assert checkpoint.shipped_names() == ["cms-lapsrn", "cms-lapsrn-d5r2", "cms-lapsrn-d5r8"]
    for name in checkpoint.shipped_names():
        assert same(shipped, load_model(name))
    assert same(shipped, load_model())


@pytest.mark.usefixtures("shipped")
def test_an_unknown_name_gets_the_nearest_and_all():
    refused("cms-lapsrn-d5r9", "'cms-lapsrn-d5r9'", "did you mean cms-lapsrn-d5r", "known: cms-lapsrn, cms-lapsrn-d5r2")
    refused("CMS-LapSRN", "did you mean cms-lapsrn?")
    refused("waifu", "no weights named 'waifu' (known")


def test_a_missing_file(tmp_path):
    refused(tmp_path / "missing.safetensors", "missing.safetensors: no such file")
    refused("missing.pth", "missing.pth: no such file")
    refused(tmp_path, "no such file")


def test_an_unknown_kind_of_file(tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(b"onnx")
    refused(path, "'.onnx'", ".safetensors, .pth, .pt, .mat")


@pytest.mark.parametrize("content", [b"", b"junk" * 100, b"\xff" * 64])
def test_not_safetensors(content, tmp_path):
    path = tmp_path / "junk.safetensors"
    path.write_bytes(content)
    refused(path, "junk.safetensors: not a safetensors file")


def test_a_truncated_file(network, tmp_path):
    path = tmp_path / "cut.safetensors"
    save_model(network, path)
    path.write_bytes(path.read_bytes()[:-10])
    refused(path, "not a safetensors file")


def rewrite(network, path, change=lambda tensors: tensors, **header):
    tensors = change({name: tensor.detach().clone() for name, tensor in network.state_dict().items()})
    described = {"architecture": type(network).__name__, "config": json.dumps(network.config())} | header
    save_file(tensors, path, {key: value for key, value in described.items() if value is not None})


def test_a_missing_tensor_is_named(network, tmp_path):
    path = tmp_path / "network.safetensors"
    rewrite(network, path, lambda tensors: {k: v for k, v in tensors.items() if k != "conv_in.bias"})
    refused(path, f"'conv_in.bias' [{network.channels}] is missing")


def test_an_unexpected_tensor_is_named(network, tmp_path):
    path = tmp_path / "network.safetensors"
    rewrite(network, path, lambda tensors: tensors | {"extra": torch.zeros(2, 3)})
    refused(path, "unexpected tensor 'extra' of shape [2, 3]")


def test_a_misshapen_tensor_is_named_with_both_shapes(network, tmp_path):
    path = tmp_path / "network.safetensors"
    rewrite(network, path, lambda tensors: tensors | {"conv_in.weight": torch.zeros(3, 1, 5, 5)})
    refused(path, f"'conv_in.weight' has shape [3, 1, 5, 5], expected [{network.channels}, 1, 3, 3]")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite(value, network, tmp_path):
    path = tmp_path / "network.safetensors"
    rewrite(network, path, lambda tensors: tensors | {"conv_in.bias": torch.full((network.channels,), value)})
    refused(path, "'conv_in.bias' holds values that are not finite")


def test_integer_tensors(network, tmp_path):
    path = tmp_path / "network.safetensors"
    rewrite(network, path, lambda tensors: tensors | {"conv_in.bias": torch.ones(network.channels, dtype=torch.int32)})
    refused(path, "'conv_in.bias' must be floating point")


@pytest.mark.parametrize(
    ("header", "said"),
    [
        ({"architecture": "EDSR"}, f"'EDSR' is none of {', '.join(sorted(NETWORKS))}"),
        ({"config": "{"}, "config is not JSON"),
        ({"config": "[1]"}, "config must be an object"),
        ({"config": '{"scale": 3}'}, "scale must be one of powers of two"),
        ({"config": '{"wheels": 4}'}, "wheels"),
    ],
)
def test_a_header_that_makes_no_sense(header, said, tmp_path):
    path = tmp_path / "network.safetensors"
    rewrite(LapSRN(depth=1, channels=4), path, **header)
    refused(path, said)


def test_bare_tensors_of_lapsrn_say_everything(same, tmp_path):
    model, path = LapSRN(scale=4, depth=2, channels=4), tmp_path / "bare.safetensors"
    rewrite(model, path, architecture=None, config=None)
    assert same(model, load_model(path))


def test_bare_tensors_of_the_recursive_networks_do_not(tmp_path):
    path = tmp_path / "bare.safetensors"
    rewrite(CMSLapSRN(channels=4), path, architecture=None, config=None)
    refused(path, "do not say recursions and shared_conv", "cmslap convert", "--recursions R --shared-conv S")


def test_somebody_elses_tensors(tmp_path):
    path = tmp_path / "other.safetensors"
    save_file({"head.0.weight": torch.zeros(64, 3, 3, 3)}, path)
    refused(path, "'head.0.weight' of shape [64, 3, 3, 3]", "none of AsymVDSR")


def test_no_tensors(tmp_path):
    path = tmp_path / "empty.safetensors"
    save_file({}, path)
    refused(path, "none of AsymVDSR")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA GPU")
@pytest.mark.parametrize("device", ["cuda", "cuda:3"])
def test_cuda_where_there_is_none(device):
    with pytest.raises(DeviceError, match=re.escape(f"device {device} does not exist here")):
        load_model(device=device)


def test_a_device_that_is_none():
    with pytest.raises(DeviceError, match="'toaster'"):
        load_model(device="toaster")
