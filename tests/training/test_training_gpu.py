"""What training does for a GPU, as far as it shows on a CPU, and on a GPU where there is one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from cmslap import ops
from cmslap.checkpoints.checkpoint import load_model
from cmslap.training import graphs, trainer
from cmslap.training.config import ConfigError
from cmslap.training.data import TrainingImages
from cmslap.training.distributed import Workers
from cmslap.training.loop import train
from cmslap.training.trainer import Trainer

CPU = torch.device("cpu")
on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


class ConvolutionInputs(TorchDispatchMode):
    """Notes the inputs of all convolutions, and what cuDNN may do meanwhile."""

    def __init__(self):
        super().__init__()
        self.inputs, self.benchmark = [], set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is torch.ops.aten.convolution.default:
            self.inputs.append(args[0])
            self.benchmark.add(torch.backends.cudnn.benchmark)
        return function(*args, **(kwargs or {}))


def images_of(config):
    return TrainingImages(config.data, config.patch, config.build_model(), CPU, announce=False)


@pytest.mark.parametrize("channels_last", [True, False])
def test_plain_pytorch_convolves_channels_last(configure, monkeypatch, channels_last):
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)  # whatever ran before in this process
    config = configure(channels_last=channels_last)
    with ops.use_backend("reference"), ConvolutionInputs() as seen:
        Trainer(config, Workers(0, 1, CPU)).learn(0, images_of(config).batch(0, 0, {2: 2, 4: 3}))
    maps = [x for x in seen.inputs if x.shape[1] > 1]
    assert maps
    assert len(seen.inputs) > len(maps)
    # An image is contiguous either way; its strides say which one is meant, and features go on as they say.
    for x in [seen.inputs[0], *maps]:
        assert (x.stride()[1] == 1 and x.stride()[3] == x.shape[1]) == channels_last
    assert seen.benchmark == {True}
    assert not torch.backends.cudnn.benchmark


@pytest.fixture
def eager(monkeypatch):
    """In place of CUDA graphs: repeats the call, which has warmed up as a capture does; counts recordings."""
    recorded = []

    def record(function):
        for _ in range(graphs.WARM_UPS):
            function()
        loss = torch.full((), torch.nan)
        recorded.append(function)
        return lambda: loss.copy_(function()), loss

    monkeypatch.setattr(graphs, "require_gpu", lambda device: None)
    monkeypatch.setattr(graphs, "record", record)
    return recorded


def runs(config):
    entries = map(json.loads, (Path(config.out) / "log.jsonl").read_text().splitlines())
    return [(entry["step"], entry["losses"]) for entry in entries], load_model(Path(config.out) / "last.safetensors")


def assert_equal(left, right):
    (losses, model), (other_losses, other_model) = runs(left), runs(right)
    assert losses == other_losses
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, other_model.state_dict()[name]), name


@pytest.mark.parametrize(("precision", "optimizer"), [("float32", "muon"), ("float16", "adam")])
def test_graphs_train_as_without(configure, eager, monkeypatch, precision, optimizer):
    """To the bit, through a kill and a resumption: warming up leaves no gradients. A run records each scale once."""
    settings = {"precision": precision, "optimizer": {"name": optimizer, "clip": 0.1}}
    plain = configure(**settings)
    train(plain)
    replayed = configure(out=plain.out + "-graph", graph=True, **settings)
    learn = Trainer.learn

    def killed(trainer, step, *rest):
        if step == 7:
            raise KeyboardInterrupt
        return learn(trainer, step, *rest)

    monkeypatch.setattr(Trainer, "learn", killed)
    with pytest.raises(KeyboardInterrupt):
        train(replayed)
    assert len(eager) == 2
    monkeypatch.setattr(Trainer, "learn", learn)
    assert train(replayed, resume=True) == 0
    assert len(eager) == 4
    assert_equal(plain, replayed)


def test_every_size_of_a_batch_has_a_graph(configure, eager):
    """Two processes share a step's images unevenly, and each may have other numbers of them."""
    plain, replayed = (Trainer(configure(graph=graph), Workers(0, 1, CPU)) for graph in (False, True))
    images = images_of(configure())
    parts = [(0, 2), (1, 2), (0, 1), (2, 3)]
    for step in range(12):
        rank, world = parts[step % len(parts)]
        batches = images.batch(step, 0, {2: 1, 4: 3}, rank, world)
        assert torch.equal(plain.learn(step, batches), replayed.learn(step, batches))
    sizes = {(batch.scale, len(batch.low)) for r, w in parts for batch in images.batch(0, 0, {2: 1, 4: 3}, r, w)}
    assert len(eager) == len(sizes)
    for ours, theirs in zip(replayed.parameters, plain.parameters, strict=True):
        assert torch.equal(ours, theirs)


def test_graphs_need_a_gpu(configure):
    with pytest.raises(ConfigError, match=r"graph = true: CUDA graphs need a CUDA GPU, and this run is on cpu; leave"):
        train(configure(graph=True, device="cpu"))


@pytest.mark.cuda
@on_gpu
@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_cuda_graphs_follow_the_plain_path(configure, precision):
    plain = configure(device="cuda", precision=precision)
    train(plain)
    replayed = configure(device="cuda", precision=precision, graph=True, out=plain.out + "-graph", steps=12)
    train(replayed)
    for (_, ours), (_, theirs) in zip(runs(replayed)[0], runs(plain)[0], strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4 if precision == "float32" else 0.02)
    longer = configure(device="cuda", precision=precision, graph=True, out=replayed.out, steps=15)
    assert train(longer, resume=True) == 0


@pytest.mark.cuda
@on_gpu
@pytest.mark.parametrize("graph", [False, True])
def test_a_step_does_not_wait_for_the_gpu(configure, graph):
    config = configure(device="cuda", graph=graph)
    device = torch.device("cuda")
    trained = trainer.Trainer(config, Workers(0, 1, device))
    images = TrainingImages(config.data, config.patch, trained.model, device, announce=False)
    for step in range(40):  # until every size of crops has its table of taps
        trained.learn(step, images.batch(step, 0, {2: 2, 4: 3}))
    torch.cuda.set_sync_debug_mode("error")
    try:
        trained.learn(40, images.batch(39, 0, {2: 2, 4: 3}))
    finally:
        torch.cuda.set_sync_debug_mode("default")
