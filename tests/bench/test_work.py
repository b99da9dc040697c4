"""The work that is measured: that it runs, as what it says, and its arithmetic."""

import dataclasses

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from bench.speed import work
from bench.speed.work import Setting
from cmslap import ops

TINY = Setting(side=8, channels=16, depth=3, recursions=2)
LAYOUTS = (torch.channels_last, torch.contiguous_format)


@pytest.fixture(autouse=True)
def _few_inputs(monkeypatch):
    monkeypatch.setattr(work, "CACHES", 1)


def counted(piece):
    """GFLOP of one call, counted by PyTorch."""
    call = piece.drive(piece.function)
    with FlopCounterMode(display=False) as counter, ops.use_backend("reference"):
        call()
    return 1e-9 * counter.get_total_flops()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("name", work.OPERATIONS)
def test_operations(name, backward, layout):
    """residual_head's upsampling of the image is left out of the count."""
    piece = work.operation(name, backward, dataclasses.replace(TINY, layout=layout))
    maps = [x for arguments in piece.inputs for x in arguments if x.ndim == 4 and x.shape[-1] > 4]
    assert all(x.is_contiguous(memory_format=layout) and x.requires_grad == backward for x in maps)
    if name == "dense_recursion" and backward:  # where PyTorch takes a depthwise weight gradient for a full one
        assert counted(piece) > piece.gflop
    else:
        assert counted(piece) == pytest.approx(piece.gflop, rel=0.2 if name == "residual_head" else 1e-6)


def test_inputs_rotate():
    piece = work.operation("conv2d_lrelu", False, TINY)
    seen = []
    call = piece.drive(lambda x, *_: seen.append(x.data_ptr()))
    for _ in range(2 * len(piece.inputs)):
        call()
    assert len(piece.inputs) > 1
    assert len(set(seen)) == len(piece.inputs)
    assert seen[: len(piece.inputs)] == seen[len(piece.inputs) :]


def test_inputs_outgrow_the_caches(monkeypatch):
    monkeypatch.setattr(work, "CACHES", 10_000)
    assert len(work.operation("conv2d_lrelu", False, TINY).inputs) == 3  # of 4096 bytes each


@pytest.mark.parametrize("scale", [2, 4])
def test_network_forward(scale):
    """The first and last convolutions, to and from one channel, are left out of the count."""
    piece = work.forward(scale, TINY)
    assert counted(piece) == pytest.approx(piece.gflop, rel=0.2)
    assert [image.shape[-1] for image in piece.function(*piece.inputs[0])] == [16, 32][: scale // 2]


def test_training_step_learns():
    piece = work.training_step(4, False, dataclasses.replace(TINY, batch=2))
    before = [parameter.clone() for parameter in piece.function.parameters()]
    piece.drive(piece.function)()
    assert all((a != b).any() for a, b in zip(before, piece.function.parameters(), strict=True))
    assert piece.gflop == 3 * work.forward(4, dataclasses.replace(TINY, batch=2)).gflop


def test_paper_setting():
    """A step over three levels of 40 convolutions and one upsampling, three passes: 12.5 TFLOP."""
    gflop, gbyte = work.network_work(Setting(dtype=torch.bfloat16, batch=16, side=64), 8)
    pixels = 16 * (64**2 + 128**2 + 256**2)
    assert gflop * 3e9 == pytest.approx(3 * 41 * 2 * 9 * 64 * 64 * pixels)
    assert gbyte * 1e9 == pytest.approx((80 + 5) * 128 * pixels)


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("name", work.THIRD_PARTY)
def test_third_party_networks(name, backward):
    """The gradient of the image is not asked for, and so saves a little of the count."""
    piece = work.third_party(name, backward, TINY)
    assert counted(piece) == pytest.approx(piece.gflop, rel=0.1 if backward else 1e-6)


def test_bytes_of_a_third_party_network():
    maps = (1 + 16) + 18 * (16 + 16) + (16 + 1)
    assert work.third_party("VDSR", False, TINY).gbyte == pytest.approx(1e-9 * 4 * maps * 8 * 8)


def test_plain_pairs_are_the_same_network():
    piece = work.sister("AsymVDSR", 2, dataclasses.replace(TINY, side=24))
    with ops.use_backend("reference"):
        (image,), (pairs,) = (network(*piece.inputs[0]) for network in (piece.function, piece.reference))
    assert piece.reference is not piece.function
    torch.testing.assert_close(pairs, image)
