"""The tuner: what it leaves behind, how often it is asked, and what its launches count on."""

import copy
import random

import pytest
import torch

from cmslap import ops

pytest.importorskip("triton")

from cmslap.kernels import conv, tiles, tuning, weight_gradient
from cmslap.kernels.tuning import INTERPRETED, TunedKernel


@pytest.mark.skipif(not INTERPRETED, reason="runs kernels in the interpreter")
def test_tile_shapes_that_lose_leave_no_sums_behind(monkeypatch):
    """The smaller shape, tried first, writes more rows of sums than the larger one, which is taken."""
    tuner = copy.copy(conv.conv_kernel.tuner)
    tuner.configs = [conv.CONFIGURATIONS.interpreted, conv._config(8, 16, 64, 4, 2)]
    tuner.early_config_prune = None
    tried = []

    def bench(call, quantiles):
        call()
        tried.append(call)
        return [1 / len(tried)] * 3

    tuner._do_bench = bench
    monkeypatch.setattr(conv, "conv_kernel", TunedKernel(tuner))
    results = []
    for backend in ("triton", "reference"):
        torch.manual_seed(0)
        u, weights, biases, upsample_bias = (
            torch.randn(shape, requires_grad=True) for shape in ((1, 16, 9, 17), (2, 16, 16, 3, 3), (2, 16), (16,))
        )
        with ops.use_backend(backend), torch.backends.cudnn.flags(allow_tf32=False):
            f = ops.lapsrn_level(u, weights, biases, 1, upsample_bias, 1, 1.0)
            results.append(torch.autograd.grad(f.square().sum(), (biases, upsample_bias)))
    assert tried
    assert tuner.best_config.kwargs["TILE_H"] == 8
    for value, expected in zip(*results, strict=True):
        torch.testing.assert_close(value, expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())


class Tuner:
    """Stands in for Triton's: notes who is asked to launch what."""

    def __init__(self):
        self.fn, self.asked, self.launched = self, [], []
        self.best_config = tuning.triton.Config({"TILE_H": 4}, num_warps=8)

    def run(self, *arguments, grid, warmup, **constants):
        if callable(grid):
            self.asked.append(arguments)
        else:
            self.launched.append((arguments, grid, constants))


def test_the_tuner_is_asked_once_a_kind():
    tuner = Tuner()
    kernel = TunedKernel(tuner)

    def launch(tensor, bucket=3, **constants):
        kernel.launch(lambda tile: (tile["TILE_H"], 1), tensor, None, 0.2, bucket, **constants)

    half, single = torch.empty(2, dtype=torch.bfloat16), torch.empty(2)
    kinds = [(half, 3, 64), (single, 3, 64), (half, 4, 64), (half, 3, 32)]
    for _ in range(3):
        for tensor, bucket, channels in kinds:
            launch(tensor, bucket, CIN=channels)
    assert len(tuner.asked) == len(kinds)
    assert len(tuner.launched) == 2 * len(kinds)
    arguments, grid, constants = tuner.launched[-1]
    assert arguments == (half, None, 0.2, 3)
    assert grid == (4, 1)
    assert constants == {"CIN": 32, **tuner.best_config.all_kwargs()}


def test_which_tensors_there_are_makes_a_kind():
    """A pass with a skip and without a bias is not one with a bias and without a skip."""
    tuner = Tuner()
    kernel, tensor = TunedKernel(tuner), torch.empty(2)
    kernel.launch(lambda tile: (1,), tensor, None, 3)
    kernel.launch(lambda tile: (1,), None, tensor, 3)
    assert len(tuner.asked) == 2


@pytest.mark.parametrize("setting", ["ieee", "tf32"])
def test_single_precision_follows_what_was_set_last(setting):
    cudnn = torch.backends.cudnn
    before = cudnn.conv.fp32_precision
    try:
        for allowed, kind in ((False, "ieee"), (True, "tf32")):
            cudnn.allow_tf32 = allowed
            assert tuning.precision(torch.float32) == kind
        cudnn.conv.fp32_precision = setting
        assert tuning.precision(torch.float32) == setting
        assert tuning.precision(torch.bfloat16) == "ieee"
    finally:
        cudnn.conv.fp32_precision = before


def test_the_weight_gradients_programs_run_in_one_round(monkeypatch):
    """As many shares as there are places for, two a multiprocessor, and no program more."""
    places = 264
    monkeypatch.setattr(weight_gradient, "multiprocessors", lambda device: places // 2)
    for depth in (1, 2, 3, 4, 5, 8, 10, random.randint(1, 200)):
        for channels in (16, 64, 128):
            shares = weight_gradient.share_count((depth, 4, 256, 256, channels), channels, torch.device("cpu"))
            programs = 3 * depth * tiles.ceil_div(channels, 64) ** 2
            assert shares * programs <= places or shares == 1
            assert (shares + 1) * programs > places
    assert weight_gradient.share_count((5, 4, 256, 256, 64), 64, torch.device("cpu")) == 17
    assert weight_gradient.share_count((1, 1, 9, 8, 64), 64, torch.device("cpu")) == 2  # a tile each


def test_integer_arithmetic_of_grids():
    a, b = random.randint(0, 10**9), random.randint(1, 10**4)
    assert tiles.ceil_div(a, b) == tuning.triton.cdiv(a, b)
    assert [tiles.channel_block(channels) for channels in (1, 16, 17, 48, 64, 65, 256)] == [16, 16, 32, 64, 64, 64, 64]
