"""--precision: what it accepts, and what it refuses where the processor has no such arithmetic."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

import cmslap
from cmslap.devices import PrecisionError, inference_autocast

CPU = torch.device("cpu")


def test_names():
    assert not inference_autocast("float32", CPU)._enabled
    with pytest.raises(PrecisionError, match=r"float32, bfloat16, bf16, float16, fp16, got 'half'"):
        inference_autocast("half", CPU)
    with pytest.raises(PrecisionError, match="precision"):
        cmslap.upscale(np.zeros((6, 6), np.uint8), 2, cmslap.CMSLapSRN(2, 1, 1, 2, 1), precision="int8")


def test_float16_takes_a_gpu():
    with pytest.raises(PrecisionError, match=r"fp16 .*no float16 kernels for a CPU; use float32"):
        inference_autocast("fp16", CPU)


@pytest.mark.parametrize("command", ["upscale", "evaluate"])
def test_a_processor_without_bfloat16_is_an_error(command, tmp_path):
    """Not float32 in disguise. Here the processor is one that CMSLAP_ISA has told so."""
    Image.new("L", (48, 48)).save(tmp_path / "in.png")
    arguments = {"upscale": ["in.png", "-o", "out.png"], "evaluate": ["--data", "."]}[command]
    run = subprocess.run(
        [sys.executable, "-m", "cmslap", command, *arguments, "--precision", "bf16"],
        cwd=tmp_path, env={**os.environ, "CMSLAP_ISA": "portable"}, capture_output=True, text=True,
    )  # fmt: skip
    assert run.returncode == 1
    assert "CMSLAP_ISA=portable leaves it out; use float32" in run.stderr or "extension" in run.stderr
    assert run.stderr.count("\n") == 1
    assert not (tmp_path / "out.png").exists()


@pytest.mark.parametrize("network", [cmslap.CMSLapSRN(4, 2, 2, 16, 1), cmslap.LapSRN(4, 2, 16)])
def test_the_image_is_not_rounded(network):
    """Networks whose residual is nothing give the upsampled image to float32's precision."""
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if "conv_res" in name:
                parameter.zero_()
    y = torch.rand(1, 1, 12, 9)
    exact = network(y)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = network(y)
    torch.testing.assert_close(rounded, exact, rtol=1e-6, atol=1e-6)
