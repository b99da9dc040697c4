"""What the caller has set for computations of its own does not change an enlarged image."""

import contextlib

import numpy as np
import pytest
import torch

import cmslap


@contextlib.contextmanager
def default_dtype(dtype):
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@contextlib.contextmanager
def deterministic():
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


SURROUNDINGS = {
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "meta device": lambda: torch.device("meta"),
    "float64": lambda: default_dtype(torch.float64),
    "float16": lambda: default_dtype(torch.float16),
    "deterministic": deterministic,
    "inference mode": torch.inference_mode,
    "no_grad": torch.no_grad,
}


@pytest.mark.parametrize("surroundings", SURROUNDINGS)
@pytest.mark.parametrize("by_name", [False, True])
def test_surroundings_do_not_leak_in(tmp_path, surroundings, by_name):
    model = cmslap.CMSLapSRN(depth=1, recursions=1, channels=16, shared_conv=1)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    cmslap.save_model(model, tmp_path / "net.safetensors")
    width = np.random.randint(5, 30)  # sizes whose resampling matrices are not there yet
    image = np.random.randint(0, 256, (7, width, 4), dtype=np.uint8)
    with SURROUNDINGS[surroundings]():
        found = cmslap.upscale(image, 3, str(tmp_path / "net.safetensors") if by_name else model)
        assert torch.get_default_dtype() == {"float64": torch.float64, "float16": torch.float16}.get(
            surroundings, torch.float32
        )
    np.testing.assert_array_equal(found, cmslap.upscale(image, 3, model))
