"""Whole runs: what they leave behind, and what survives kills, signals and full disks."""

from __future__ import annotations

import contextlib
import copy
import errno
import fcntl
import functools
import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch import nn

from cmslap import CMSLapSRN, cli, ops
from cmslap.checkpoints.checkpoint import load_model, save_model
from cmslap.checkpoints.weights import CheckpointError
from cmslap.devices import DeviceError
from cmslap.files import OutputError
from cmslap.ops import dispatch, extension
from cmslap.provenance import provenance
from cmslap.training import directory, loop
from cmslap.training.config import from_dict
from cmslap.training.data import TrainingImages
from cmslap.training.distributed import Workers
from cmslap.training.log import Log
from cmslap.training.loop import RunError, train
from cmslap.training.trainer import Trainer

CPU = torch.device("cpu")
TIMINGS = ("images_per_second", "data_share")


def lines(config):
    """The log without what depends on the clock."""
    text = (Path(config.out) / "log.jsonl").read_text()
    return [{k: v for k, v in json.loads(line).items() if k not in TIMINGS} for line in text.splitlines()]


def weights(config, name="last"):
    return load_model(Path(config.out) / f"{name}.safetensors").state_dict()


def assert_equal_runs(left, right):
    assert lines(left) == lines(right)
    for name, tensor in weights(left).items():
        assert torch.equal(tensor, weights(right)[name]), name


@pytest.mark.skipif(extension.MISSING is not None, reason=str(extension.MISSING))
def test_backends_give_the_same_training_curve(configure, tmp_path):
    """Means over 20 steps: when rounding turns an activation's sign, φ' and so the next single losses jump.

    A start that differs by 1e-7 makes the reference's own single losses jump as much, by up to 1e-3 at this rate.
    """
    model = {"name": "CMSLapSRN", "depth": 2, "recursions": 2, "channels": 16, "shared_conv": 2}
    curves, seed = {}, random.randrange(2**31)
    for backend in ("reference", "cpu"):
        settings = {"steps": 200, "batch": 3, "model": model, "optimizer": {"lr": 1e-4}, "seed": seed}
        config = configure(out=str(tmp_path / backend), checkpoint_every=200, **settings)
        with ops.use_backend(backend):
            assert train(config) == 0
        curves[backend] = np.mean(np.reshape([entry["loss"] for entry in lines(config)], (10, 20)), axis=1)
    np.testing.assert_allclose(curves["cpu"], curves["reference"], rtol=1e-3)
    assert curves["cpu"][-1] < 0.95 * curves["cpu"][0]


@pytest.fixture
def validation(tmp_path, image):
    folder = tmp_path / "holdout"
    folder.mkdir()
    image(32, 40).save(folder / "a.png")
    return {"data": [str(folder)], "every": 4}


def test_a_run_leaves_log_weights_record_and_curves(configure, validation):
    config = configure(validation=validation, log_every=5)
    assert train(config) == 0
    out = Path(config.out)
    names = {"last.pt", "last.safetensors", "best.safetensors", "log.jsonl", "record.json", "curves.png"}
    names |= {"previous.pt", ".lock"}
    assert {path.name for path in out.iterdir()} == names

    entries = lines(config)
    assert [e["step"] for e in entries if "loss" in e] == [5, 10, 12]
    assert [e["step"] for e in entries if "psnr" in e] == [4, 8, 12]
    assert all(set(e["losses"]) == {"2x", "4x"} for e in entries if "loss" in e)
    for entry in map(json.loads, (out / "log.jsonl").read_text().splitlines()):
        assert "psnr" in entry or (0 <= entry["data_share"] < 1 and entry["images_per_second"] > 0)

    made = json.loads((out / "record.json").read_text())
    assert (made["step"], made["images"], made["processes"]) == (12, 3, 1)
    assert made["config"]["data"]["train"] == ["images"]  # a name and no path
    assert [e["step"] for e in made["loss"]] == [5, 10, 12]
    assert [e["step"] for e in made["validation"]] == [4, 8, 12]
    assert (made["torch"], made["device"]) == (torch.__version__, provenance()["device"])
    assert made["earlier"] == []
    assert (out / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_training_lowers_the_loss(configure):
    config = configure(steps=60, batch=8, optimizer={"lr": 5e-3, "clip": 1.0}, checkpoint_every=60, log_every=10)
    train(config)
    losses = [e["loss"] for e in lines(config)]
    assert losses[-1] < 0.8 * losses[0]


def test_best_is_the_export_of_the_best_validation(configure, validation, monkeypatch):
    means = iter([30.0, 32.0, 31.0])
    exported = {}
    monkeypatch.setattr(loop.ValidationSets, "measure", lambda self, model: {"x 2x": next(means)})
    export = loop.Run._export

    def spy(run, name):
        export(run, name)
        exported.setdefault(name, []).append(run.step)

    monkeypatch.setattr(loop.Run, "_export", spy)
    config = configure(validation=validation)
    train(config)
    assert exported["best"] == [4, 8]
    assert directory.load(Path(config.out) / "last.pt", CPU)["best"] == 32.0
    best = weights(config, "best")
    assert any(not torch.equal(tensor, best[name]) for name, tensor in weights(config).items())


def test_validation_is_psnr_of_the_averaged_weights_without_the_border(configure, validation, tmp_path):
    from cmslap.evaluation.metrics import psnr
    from cmslap.imaging import luma, read_planes
    from cmslap.imaging.resize import imresize

    config = configure(validation={**validation, "scales": [4]})
    train(config)
    high = luma(read_planes(tmp_path / "holdout" / "a.png"))
    with torch.no_grad():
        model = load_model(Path(config.out) / "last.safetensors")
        output = model(imresize(high, scale=1 / 4).float()[None], 4)[-1][0].double().clamp(0, 1)
    expected = psnr(output, high, border=4).item()
    assert lines(config)[-1]["psnr"] == {"holdout 4x": pytest.approx(expected, abs=1e-6)}


def test_average_is_the_moving_average_of_the_weights(configure):
    config = configure(ema=0.9)
    trainer = Trainer(config, Workers(0, 1, CPU))
    data = TrainingImages(config.data, config.patch, trainer.model, CPU, announce=False)
    expected = copy.deepcopy(trainer.model.state_dict())
    for step in range(12):
        trainer.learn(step, data.batch(step, 0, {2: 2, 4: 3}))
        decay = min(0.9, (1 + step) / (10 + step))
        expected = {k: decay * v + (1 - decay) * trainer.model.state_dict()[k] for k, v in expected.items()}
    for name, tensor in trainer.average.state_dict().items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-5, atol=1e-7)


def test_a_step_is_the_gradient_of_the_mean_loss_over_the_batch(configure):
    config = configure(optimizer={"name": "adamw", "lr": 1e-3, "weight_decay": 0.1, "clip": 0.01})
    trainer, reference = (Trainer(config, Workers(0, 1, CPU)) for _ in range(2))
    batches = TrainingImages(config.data, config.patch, trainer.model, CPU, announce=False).batch(0, 0, {2: 2, 4: 3})
    losses = trainer.learn(0, batches)

    model = reference.model
    each = []
    for batch in batches:
        pairs = zip(model(batch.low, batch.scale), batch.targets, strict=True)
        each.append(sum(((x - y) ** 2 + 1e-6).sqrt().mean((1, 2, 3)) for x, y in pairs))
    torch.testing.assert_close(losses, torch.stack([x.mean() for x in each]))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1)
    optimizer.zero_grad()
    torch.cat(each).mean().backward()
    nn.utils.clip_grad_norm_(model.parameters(), 0.01)
    optimizer.step()
    for ours, theirs in zip(trainer.parameters, model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def test_muon_updates_each_kernel_of_the_block_as_a_matrix_of_its_own(configure):
    settings = {"name": "muon", "lr": 1e-2, "betas": [0.8, 0.99], "weight_decay": 0.1, "clip": 0.01}
    config = configure(optimizer=settings, schedule={"name": "constant"})
    trainer, reference = (Trainer(config, Workers(0, 1, CPU)) for _ in range(2))
    images = TrainingImages(config.data, config.patch, trainer.model, CPU, announce=False)
    model = reference.model
    kernels = model.embedding_weight.detach().clone().flatten(1).chunk(2)
    kernels = [nn.Parameter(kernel.clone()) for kernel in kernels]
    others = [parameter for name, parameter in model.named_parameters() if name != "embedding_weight"]
    optimizers = [
        torch.optim.Muon(kernels, 1e-2, weight_decay=0.1, momentum=0.8, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, 1e-2, (0.8, 0.99), weight_decay=0.1),
    ]
    for step in range(3):
        batches = images.batch(step, 0, {2: 2, 4: 3})
        trainer.learn(step, batches)
        for batch in batches:
            reference._backpropagate(batch)
        nn.utils.clip_grad_norm_(model.parameters(), 0.01)
        for kernel, gradient in zip(kernels, model.embedding_weight.grad.flatten(1).chunk(2), strict=True):
            kernel.grad = gradient
        for optimizer in optimizers:
            optimizer.step()
        model.embedding_weight.data = torch.cat(kernels).detach().view_as(model.embedding_weight)
        model.zero_grad(set_to_none=False)
        for ours, theirs in zip(trainer.parameters, model.parameters(), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_autocast_trains(configure, precision):
    config = configure(precision=precision, steps=3)
    train(config)
    full = configure(steps=3, out=config.out + "-full")
    train(full)
    low, high = ([line["loss"] for line in lines(run)] for run in (config, full))
    assert low != high  # one loss alone may round to the same
    assert low == pytest.approx(high, rel=0.05)


def test_compiled_network_is_called_with_fixed_shapes(configure, monkeypatch):
    compiler = torch.compile
    asked = []

    def eager(model, **options):
        asked.append(options)
        return compiler(model, backend="eager", **options)

    monkeypatch.setattr(torch, "compile", eager)
    config, plain = configure(compile=True, steps=3), configure(steps=3, out=configure().out + "-plain")
    train(config)
    train(plain)
    assert asked == [{"dynamic": False}]
    for left, right in zip(lines(config), lines(plain), strict=True):
        assert left["loss"] == pytest.approx(right["loss"], rel=1e-5)


def test_init_starts_from_given_weights(configure, tmp_path):
    start = CMSLapSRN(scale=2, depth=2, recursions=1, channels=8, shared_conv=2)
    save_model(start, tmp_path / "start.safetensors")
    trainer = Trainer(configure(init=str(tmp_path / "start.safetensors")), Workers(0, 1, CPU))
    for name, tensor in start.state_dict().items():
        assert torch.equal(trainer.model.state_dict()[name], tensor)
        assert torch.equal(trainer.average.state_dict()[name], tensor)
    save_model(CMSLapSRN(depth=2, channels=4, shared_conv=2), tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, match=r"init = .*other.safetensors': a CMSLapSRN .*'channels': 4"):
        Trainer(configure(init=str(tmp_path / "other.safetensors")), Workers(0, 1, CPU))


def test_kill_and_resume_is_bitwise_the_uninterrupted_run(configure, table, validation, environment, tmp_path):
    """Twice killed with SIGKILL at a random moment, then resumed to the end."""
    settings = {"steps": 70, "checkpoint_every": 4, "log_every": 1, "validation": {**validation, "every": 40}}
    whole = configure(**settings)
    train(whole)

    killed = {**table, **settings, "out": str(tmp_path / "killed")}
    (tmp_path / "killed.json").write_text(json.dumps(killed))
    code = (
        "import json, sys, torch; torch.set_num_threads(1)\n"
        "from cmslap.training.config import from_dict; from cmslap.training.loop import train\n"
        "train(from_dict(json.load(open(sys.argv[1]))), resume=len(sys.argv) > 2)"
    )
    log = tmp_path / "killed" / "log.jsonl"
    for part, resume in enumerate([[], ["resume"]]):
        wanted = int(np.random.randint(5, 20)) + 20 * part  # lines of 72
        command = [sys.executable, "-c", code, str(tmp_path / "killed.json"), *resume]
        process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 120
        while (not log.exists() or log.read_bytes().count(b"\n") < wanted) and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.002)
        process.kill()
        assert process.wait() == -signal.SIGKILL
    resumed = from_dict(killed)
    assert len(lines(resumed)) < len(lines(whole))
    assert train(resumed, resume=True) == 0
    assert_equal_runs(whole, resumed)


@pytest.mark.parametrize(("number", "optimizer"), [(signal.SIGINT, "adam"), (signal.SIGTERM, "muon")])
def test_signal_saves_and_says_how_to_resume(configure, monkeypatch, capsys, number, optimizer):
    configure = functools.partial(configure, log_every=4, optimizer={"name": optimizer})
    whole = configure()
    train(whole)
    stopped = configure(out=whole.out + "-stopped", checkpoint_every=1000)
    learn = Trainer.learn

    def learn_and_be_asked(trainer, step, *rest):
        if step == 6:  # inside a log interval
            os.kill(os.getpid(), number)
        return learn(trainer, step, *rest)

    monkeypatch.setattr(Trainer, "learn", learn_and_be_asked)
    handlers = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
    assert train(stopped, resume_hint="cmslap train some.toml --resume") == 128 + number
    assert [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert "stopped after step 7; go on with: cmslap train some.toml --resume" in capsys.readouterr().err
    monkeypatch.undo()
    assert train(stopped, resume=True) == 0
    assert_equal_runs(whole, stopped)


def test_an_existing_directory_is_left_alone(configure):
    config = configure()
    train(config)
    before = {path: path.read_bytes() for path in Path(config.out).iterdir()}
    with pytest.raises(RunError, match=r"run exists already: go on with its run with --resume, or choose another out"):
        train(config)
    assert {path: path.read_bytes() for path in Path(config.out).iterdir()} == before


def test_resume_needs_a_run_of_the_same_network(configure, table):
    with pytest.raises(RunError, match=r"nothing to resume: .*last.pt does not exist"):
        train(configure(), resume=True)
    assert not Path(table["out"]).exists()
    train(configure())
    with pytest.raises(RunError, match=r"model = .*: the run in .* has .*'recursions': 2"):
        train(configure(model={**table["model"], "recursions": 1}), resume=True)
    with pytest.raises(RunError, match=r"optimizer.name = muon: the run in .* has adam; start another with init"):
        train(configure(optimizer={"name": "muon"}), resume=True)


def test_record_names_every_origin_of_a_run(configure, monkeypatch):
    for part, commit in enumerate(["one", "two", "two"]):
        config = configure(steps=4 + 4 * part)
        monkeypatch.setattr(loop, "provenance", lambda device, commit=commit: {"commit": commit})
        train(config, resume=part > 0)
    made = json.loads((Path(config.out) / "record.json").read_text())
    assert (made["commit"], made["step"], made["processes"]) == ("two", 12, 1)
    assert made["earlier"] == [{"commit": "one", "processes": 1}]


def test_resume_announces_changed_settings_and_follows_them(configure, capsys):
    train(configure())
    longer = configure(steps=20, optimizer={"lr": 5e-4, "weight_decay": 0.1}, schedule={"name": "constant"})
    train(longer, resume=True)
    said = capsys.readouterr().err
    for change in ("optimizer.lr = 0.0005, was 0.001", "optimizer.weight_decay = 0.1, was 0.0", "steps = 20, was 12"):
        assert f"resuming with {change}" in said
    assert lines(longer)[-1]["lr"] == 5e-4
    state = directory.load(Path(longer.out) / "last.pt", CPU)
    assert state["optimizers"][0]["param_groups"][0]["weight_decay"] == 0.1


def test_a_checkpoint_that_is_none_is_one_line(configure):
    """Where none is left, the error; a run that could go on from the one before it does."""
    config = configure()
    train(config)
    last = Path(config.out) / "last.pt"
    (Path(config.out) / "previous.pt").unlink()
    whole = last.read_bytes()
    for data in (whole[:1000], whole[: len(whole) // 2], b"", b"no archive"):
        last.write_bytes(data)
        with pytest.raises(CheckpointError, match=r"last.pt: damaged, or not a training checkpoint$"):
            train(config, resume=True)
    for foreign in ({"weights": torch.zeros(2)}, {"optimizers": [], "model": {}}, [1]):
        torch.save(foreign, last)
        with pytest.raises(CheckpointError, match=r"last.pt: not a training checkpoint; to start from weights, set in"):
            train(config, resume=True)
    torch.save({"code": subprocess.Popen}, last)
    with pytest.raises(CheckpointError, match=r"last.pt: not a training checkpoint$"):
        train(config, resume=True)


def test_a_flipped_bit_is_noticed_or_without_effect(configure):
    config = configure(steps=1)
    train(config)
    path = Path(config.out) / "last.pt"
    written, whole = path.read_bytes(), directory.load(path, CPU)
    noticed = 0
    for position in np.random.randint(0, len(written), 200):
        data = bytearray(written)
        data[position] ^= 1 << random.randrange(8)
        path.write_bytes(data)
        try:
            read = directory.load(path, CPU)
        except CheckpointError:
            noticed += 1
        else:
            assert all(torch.equal(read["model"][name], tensor) for name, tensor in whole["model"].items())
            assert read["config"] == whole["config"]
    assert noticed > 0


def test_the_checkpoint_before_a_damaged_one_is_gone_on_from(configure, capsys):
    whole = configure()
    train(whole)
    config = configure(out=whole.out + "-damaged", steps=12)
    train(config)
    out = Path(config.out)
    data = bytearray((out / "last.pt").read_bytes())
    kernel = directory.load(out / "last.pt", CPU)["model"]["embedding_weight"].numpy().tobytes()
    data[data.index(kernel)] ^= 1
    (out / "last.pt").write_bytes(data)
    assert directory.load(out / "previous.pt", CPU)["step"] == 10
    assert train(config, resume=True) == 0
    said = capsys.readouterr().err
    assert "last.pt: damaged, or not a training checkpoint; going on from the checkpoint before it, " in said
    assert "resumed after step 10" in said
    assert directory.load(out / "previous.pt", CPU)["step"] == 10  # the damaged one did not take its place
    assert_equal_runs(whole, config)
    (out / "last.pt").unlink()  # as a kill between the two renamings leaves it
    assert train(config, resume=True) == 0
    assert_equal_runs(whole, config)


def test_a_run_killed_before_its_first_checkpoint_can_be_started_again(configure):
    whole = configure()
    train(whole)
    config = configure(out=whole.out + "-begun")
    out = Path(config.out)
    out.mkdir()
    for name in (".lock", "log.jsonl", ".last-x7.pt"):
        (out / name).touch()
    with pytest.raises(RunError, match=r"nothing to resume: .*last.pt does not exist"):
        train(config, resume=True)
    assert train(config) == 0
    assert_equal_runs(whole, config)


@pytest.mark.parametrize("name", ["thesis.tex", "log.jsonl", "last.safetensors"])
def test_a_directory_that_is_no_beginning_of_a_run_is_left_alone(configure, name):
    config = configure()
    Path(config.out).mkdir()
    (Path(config.out) / name).write_text('{"step": 1}\n')
    with pytest.raises(RunError, match=rf"run exists already and is not a run's: it has {name}; choose another out"):
        train(config)
    assert [path.name for path in Path(config.out).iterdir()] == [name]


@pytest.mark.parametrize("resume", [False, True])
def test_one_run_at_a_time_has_a_directory(configure, monkeypatch, resume):
    config = configure()
    if resume:
        train(config)
        config = configure(steps=14)
    learn, met = Trainer.learn, []

    def learn_beside_another(trainer, step, *rest):
        for checking in (True, False) if step == 13 or not resume else ():
            monkeypatch.setattr(loop.directory, "check", lambda out, resume: None)  # it had looked before
            with pytest.raises(RunError, match=rf"run is in use by process {os.getpid()} on .*: wait for its end, or"):
                train(config, resume=checking)
            met.append(step)
        return learn(trainer, step, *rest)

    monkeypatch.setattr(Trainer, "learn", learn_beside_another)
    assert train(config, resume=resume) == 0
    assert met
    monkeypatch.undo()
    assert train(config, resume=True) == 0  # the lock went with its run


def test_a_file_system_without_locks_is_warned_of(configure, monkeypatch, capsys):
    flock = fcntl.flock

    def without_waiting(descriptor, operation):
        if operation & fcntl.LOCK_NB:
            raise OSError(errno.ENOLCK, "No locks available")
        return flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", without_waiting)
    assert train(configure()) == 0
    assert "warning: no file locks in " in capsys.readouterr().err


def test_a_kill_during_the_last_validation_loses_nothing(configure, validation, monkeypatch):
    whole = configure(validation=validation)
    train(whole)
    config = configure(validation=validation, out=whole.out + "-killed")
    measure, calls = loop.ValidationSets.measure, []

    def killed(sets, *rest):
        calls.append(None)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return measure(sets, *rest)

    monkeypatch.setattr(loop.ValidationSets, "measure", killed)
    with pytest.raises(KeyboardInterrupt):
        train(config)
    assert directory.load(Path(config.out) / "last.pt", CPU)["step"] == 12
    assert train(config, resume=True) == 0
    assert len(calls) == 4
    assert_equal_runs(whole, config)
    for name in ("validation", "loss", "step"):
        made, expected = (json.loads((Path(c.out) / "record.json").read_text())[name] for c in (config, whole))
        assert made == expected
    for name, tensor in weights(whole, "best").items():
        assert torch.equal(tensor, weights(config, "best")[name])
    assert train(config, resume=True) == 0  # and does not validate that step again
    assert len(calls) == 4


def test_a_validation_after_the_checkpoint_counts_when_the_run_goes_on(configure, validation, monkeypatch):
    """Its weights stay the best ones, although the checkpoint is older than they are."""
    means = iter([30.0, 32.0, 31.0])
    monkeypatch.setattr(loop.ValidationSets, "measure", lambda self, model: {"x 2x": next(means)})
    config = configure(validation={**validation, "every": 5})
    describe = loop.Run._describe

    def killed(run, **ending):
        if run.step == 10:
            raise KeyboardInterrupt
        describe(run, **ending)

    monkeypatch.setattr(loop.Run, "_describe", killed)
    with pytest.raises(KeyboardInterrupt):
        train(config)
    monkeypatch.setattr(loop.Run, "_describe", describe)
    assert train(config, resume=True) == 0
    assert load_metadata(config, "best")["step"] == "10"


def load_metadata(config, name):
    with safe_open(Path(config.out) / f"{name}.safetensors", framework="pt") as file:
        return file.metadata()


def test_validation_is_free_of_the_backend_forced_for_training(configure, validation, monkeypatch):
    forced = []

    def measure(sets, model):
        forced.append(dispatch.forced())
        return {"x 2x": 1.0}

    monkeypatch.setattr(loop.ValidationSets, "measure", measure)
    with ops.use_backend("reference"):
        train(configure(validation=validation))
        assert dispatch.forced() == "reference"
    assert forced == [None] * 3


@contextlib.contextmanager
def largest_file(size):
    """Writing beyond ``size`` bytes fails, as on a full disk."""
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))


def test_a_file_that_cannot_be_written_leaves_the_previous_one(tmp_path):
    state = dict.fromkeys(directory.KEYS, 1)
    directory.save(tmp_path, state)
    said = r"last.pt: cannot be written \(.*\); the previous one is intact$"
    with largest_file(1000), pytest.raises(OutputError, match=said):
        directory.save(tmp_path, {**state, "step": 2, "model": torch.zeros(10000)})
    assert directory.load(tmp_path / "last.pt", CPU)["step"] == 1
    assert list(tmp_path.iterdir()) == [tmp_path / "last.pt"]


def test_disk_full_in_a_run(configure, monkeypatch):
    whole = configure()
    train(whole)
    config = configure(out=whole.out + "-full")
    write = Path.write_bytes

    def full(path, data):
        if path.suffix == ".pt" and lines(config)[-1:] and lines(config)[-1]["step"] >= 10:
            write(path, data[: len(data) // 2])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        return write(path, data)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OutputError, match=r"last.pt: cannot be written \(No space .*\); the previous one is intact$"):
        train(config)
    monkeypatch.undo()
    assert directory.load(Path(config.out) / "last.pt", CPU)["step"] == 5
    assert train(config, resume=True) == 0
    assert_equal_runs(whole, config)


def test_a_diverged_run_ends_and_keeps_its_checkpoint(configure):
    config = configure(optimizer={"lr": 1e30}, log_every=100, checkpoint_every=2)
    with pytest.raises(RunError, match="no longer finite at step 2; go on from the last checkpoint"):
        train(config)
    assert directory.load(Path(config.out) / "last.pt", CPU)["step"] == 0


def test_log_drops_later_and_cut_lines(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"st')
    log = Log(path, after=2, tensorboard=False)
    log.write({"step": 3, "loss": 0.5})
    assert log.read() == [{"step": 1}, {"step": 2}, {"step": 3, "loss": 0.5}]


@pytest.mark.parametrize("bad", [b"{", b"\xff\xfe", b"[1]", b'{"loss": 1}', b'{"step": "2"}'])
def test_a_damaged_line_of_a_log_is_named(tmp_path, bad):
    path = tmp_path / "log.jsonl"
    path.write_bytes(b'{"step": 1}\n' + bad + b'\n{"step": 3}\n')
    with pytest.raises(RunError, match=r"log.jsonl, line 2: damaged; remove that line to go on$"):
        Log(path, after=3, tensorboard=False)
    path.write_bytes(b'{"step": 1}\n' + bad)  # torn off
    assert Log(path, after=3, tensorboard=False).read() == [{"step": 1}]


def test_a_log_that_cannot_be_written_is_named(tmp_path):
    log = Log(tmp_path / "log.jsonl", after=0, tensorboard=False)
    with largest_file(100), pytest.raises(OSError, match=r"log.jsonl"):
        log.write({"step": 1, "note": "x" * 200})


def test_tensorboard_is_an_extra(configure, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(
        ImportError, match=r"tensorboard = true needs the package tensorboard: pip install 'cmslap\[tensorboard\]'"
    ):
        train(configure(tensorboard=True))


def test_tensorboard_has_the_numbers_of_the_log(configure, validation):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = configure(tensorboard=True, validation=validation)
    train(config)
    events = EventAccumulator(str(Path(config.out) / "tensorboard"))
    events.Reload()
    logged = [(e["step"], e["losses"]["4x"]) for e in lines(config) if "loss" in e]
    assert [(e.step, pytest.approx(e.value)) for e in events.Scalars("losses/4x")] == logged
    assert [e.step for e in events.Scalars("psnr/holdout 4x")] == [4, 8, 12]


def test_without_matplotlib_a_run_says_so(configure, monkeypatch, capsys):
    monkeypatch.setattr(loop, "curves_can_be_drawn", lambda: False)
    config = configure()
    assert train(config) == 0
    assert "no curves.png: matplotlib is not installed; pip install cmslap[plot]" in capsys.readouterr().err
    assert not (Path(config.out) / "curves.png").exists()


def test_devices_that_are_not_there(configure):
    with pytest.raises(DeviceError, match="device must be auto, cpu, cuda or one like cuda:1, got 'tpu'"):
        train(configure(device="tpu"))
    if not torch.cuda.is_available():
        with pytest.raises(DeviceError, match="device cuda does not exist here"):
            train(configure(device="cuda"))


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_cuda_follows_the_cpu(configure, precision):
    config, host = configure(device="cuda", precision=precision), configure(device="cpu", out=configure().out + "-cpu")
    train(config)
    train(host)
    for ours, theirs in zip(lines(config), lines(host), strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-3 if precision == "float32" else 0.05)
    entries = map(json.loads, (Path(config.out) / "log.jsonl").read_text().splitlines())
    assert all(0 < entry["data_share"] < 1 for entry in entries)


def test_unusable_validation_images_are_named(configure, image, tmp_path):
    folder = tmp_path / "holdout"
    folder.mkdir()
    image(8, 40).save(folder / "small.png")
    with pytest.raises(ValueError, match=r"small.png: 8x40 pixels, validation needs 12x12"):
        train(configure(validation={"data": [str(folder)]}))
    with pytest.raises(ValueError, match=r"validation.data: two folders are named 'holdout'"):
        train(configure(validation={"data": [str(folder)] * 2, "scales": [2]}))


def test_command_line(table, tmp_path, capsys):
    run = str(tmp_path / "run")
    settings = ["model.channels=8", "model.depth=2", "patch=16", "steps=6", "schedule.warmup=2", f"out={run}"]
    command = ["train", "tiny", *settings, f"data.train={table['data']['train'][0]}"]
    assert cli.main(command) == 0
    assert cli.main(command) == 1
    assert "cmslap train: error: " in capsys.readouterr().err
    assert cli.main([*command, "--resume"]) == 0
    assert cli.main(["train", "tiny", "--resume", *command[2:], "steps=8"]) == 0
    assert "trained 8 steps" in capsys.readouterr().err
    assert cli.main(["train", "tiny", "steps=x"]) == 1
    assert "steps = 'x': expected an integer" in capsys.readouterr().err
    with pytest.raises(SystemExit) as caught:
        cli.main(["train", "--help"])
    assert caught.value.code == 0
    assert "paper, reference, tiny" in capsys.readouterr().out
