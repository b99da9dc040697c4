import os

import pytest
import torch
from refusing import refused
from torch import nn

from cmslap import CMSLapSRN, LapSRN, MSLapSRN, load_model
from cmslap.checkpoints.checkpoint import read_weights


class Trap:
    """Runs code when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def saved(contents, path):
    torch.save(contents, path)
    return path


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"state_dict": state, "epoch": 3},
        lambda state: {"model": state, "optimizer": {"lr": 0.1}},
        lambda state: {"params_ema": state},
        lambda state: {f"module.{name}": tensor for name, tensor in state.items()},
        lambda state: {"model": {f"module._orig_mod.{name}": tensor for name, tensor in state.items()}},
    ],
)
@pytest.mark.parametrize("suffix", [".pth", ".pt"])
def test_state_dicts_in_their_usual_wrappings(wrap, suffix, same, tmp_path):
    model = LapSRN(scale=4, depth=1, channels=4)
    assert same(model, load_model(saved(wrap(model.state_dict()), tmp_path / f"model{suffix}")))


def test_parameters_and_the_old_format(same, tmp_path):
    model = LapSRN(scale=4, depth=1, channels=4)
    path = tmp_path / "model.pth"
    torch.save(dict(model.named_parameters()), path, _use_new_zipfile_serialization=False)
    assert same(model, load_model(path))


@pytest.mark.parametrize(
    "model",
    [
        MSLapSRN(scale=8, depth=2, recursions=3, channels=4),
        CMSLapSRN(scale=8, depth=2, recursions=3, channels=4, shared_conv=2),
    ],
)
def test_recursions_must_be_given(model, same, tmp_path):
    path = saved(model.state_dict(), tmp_path / "model.pth")
    refused(path, "do not say recursions", "cmslap convert")
    shared = {"shared_conv": 2} if isinstance(model, CMSLapSRN) else {}
    assert same(model, read_weights(path).build(recursions=3, **shared))


def test_the_public_ms_lapsrn_ports_are_refused(tmp_path):
    state = {"conv_input.weight": torch.zeros(64, 1, 3, 3)}
    state["features.recursive_block.block.conv_0.weight"] = torch.zeros(64, 64, 3, 3)
    path = saved({"epoch": 1, "state_dict": state, "optimizer": {}}, tmp_path / "best.pt")
    refused(path, "'features.recursive_block.block.conv_0.weight'", "port of MS-LapSRN", "from 4x on")


def test_the_public_lapsrn_ports_are_refused_by_their_upsampling(tmp_path):
    state = {"conv_input.weight": torch.zeros(64, 1, 3, 3)}
    state["convt_F1.0.cov_block.20.weight"] = torch.zeros(64, 64, 4, 4)
    refused(
        saved(state, tmp_path / "model.pth"),
        "'convt_F1.0.cov_block.20.weight'",
        "[64, 64, 4, 4]",
        "expected [64, 64, 3, 3]",
    )


def test_a_pickled_model_is_refused_without_running_it(tmp_path):
    refused(saved({"epoch": 1, "model": nn.Conv2d(1, 1, 3)}, tmp_path / "model.pth"), "Conv2d", "state_dict()")
    trap = tmp_path / "sprung"
    refused(saved({"model": Trap(trap)}, tmp_path / "trap.pth"), "mkdir", "could run any code")
    assert not trap.exists()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_torchscript_is_refused(tmp_path):
    path = tmp_path / "model.pt"
    torch.jit.save(torch.jit.trace(nn.Conv2d(1, 1, 3), torch.rand(1, 1, 5, 5)), path)
    refused(path, "TorchScript", "state_dict()")


@pytest.mark.parametrize("content", [b"", b"junk" * 100, "zip", "old"])
def test_damaged_files(content, tmp_path):
    path = tmp_path / "model.pth"
    if isinstance(content, str):
        torch.save({"a": torch.rand(1000)}, path, _use_new_zipfile_serialization=content == "zip")
        content = path.read_bytes()[:-300]
    path.write_bytes(content)
    refused(path, "model.pth: not a PyTorch checkpoint")


@pytest.mark.parametrize(
    ("contents", "said"),
    [
        ({}, "holds no state_dict"),
        ([1, 2], "holds no state_dict"),
        ({"epoch": 3}, "entry 'epoch' is a int"),
        ({0: torch.zeros(1)}, "entry 0"),
        ({"head.weight": torch.zeros(2, 3)}, "'head.weight' of shape [2, 3]"),
        ({"embedding_weight": torch.zeros(())}, "CMSLapSRN"),
    ],
)
def test_other_contents(contents, said, tmp_path):
    refused(saved(contents, tmp_path / "model.pth"), said)
