"""Results of the CPU kernels in memory that earlier results left."""

import os
import random
import subprocess
import sys

import pytest
import torch

from cmslap import ops
from cmslap.ops import extension
from cmslap.ops.cpu import CPU, reuses_memory

pytestmark = pytest.mark.skipif(extension.MISSING is not None, reason=str(extension.MISSING))
needs_reuse = pytest.mark.skipif(
    extension.MISSING is None and not reuses_memory(), reason="this PyTorch takes no memory from elsewhere"
)


def large(seed):
    """Features, and the weight of the convolution that leaves them as they are."""
    x = torch.rand(1, 32, 64, 64, generator=torch.Generator().manual_seed(seed))
    weight = torch.zeros(32, 32, 3, 3)
    weight[:, :, 1, 1] = torch.eye(32)
    return x.contiguous(memory_format=torch.channels_last), weight


@needs_reuse
def test_memory_is_used_again():
    with ops.use_backend("cpu"):
        result = ops.conv2d_lrelu(*large(0))
        place = result.data_ptr()
        del result
        assert ops.conv2d_lrelu(*large(1)).data_ptr() == place


@needs_reuse
@pytest.mark.parametrize(("rows", "fits"), [(56, True), (40, False)])
def test_memory_up_to_a_third_larger_is_used_again(rows, fits):
    """In a process of its own, where no other test has left memory that fits better."""
    code = f"""
import torch
from cmslap import ops
x, weight = torch.rand(1, 32, 64, 64).contiguous(memory_format=torch.channels_last), torch.zeros(32, 32, 3, 3)
weight[:, :, 1, 1] = torch.eye(32)
def place(rows):
    result = ops.conv2d_lrelu(x[:, :, :rows], weight)
    torch.testing.assert_close(result, x[:, :, :rows], atol=1e-5, rtol=0)
    return result.data_ptr()
first = place(64)
assert (place({rows}) == first) == {fits}
assert place(64) == first  # it came back in its whole size
"""
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "CMSLAP_BACKEND": "cpu"})


def test_what_lives_keeps_its_memory():
    alive, order = {}, random.Random(torch.initial_seed())
    with ops.use_backend("cpu"):
        for seed in range(60):
            x, weight = large(seed)
            part = ops.conv2d_lrelu(x, weight)[:, : order.randint(1, 32)]  # a view keeps all of it
            alive[seed] = part if order.random() < 0.5 else part.numpy()
            del part
            if len(alive) > 5:
                del alive[order.choice(list(alive))]
            for kept, result in alive.items():
                expected = large(kept)[0][:, : result.shape[1]]
                torch.testing.assert_close(torch.as_tensor(result), expected, atol=1e-5, rtol=0)


def test_large_results_are_filled_where_pytorch_fills_fresh_memory():
    torch.use_deterministic_algorithms(True)
    try:
        library = CPU.forward["conv2d_lrelu"].__self__
        for dtype in (torch.bfloat16, torch.float32):
            shape = 2, 64, 40, 40
            fresh = library.empty(shape, dtype=dtype, device="cpu", memory_format=torch.channels_last)
            assert fresh.isnan().all()
            assert fresh.is_contiguous(memory_format=torch.channels_last)
    finally:
        torch.use_deterministic_algorithms(False)
