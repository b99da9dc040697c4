"""The experiments in bench/ that train networks: sharing, recipes, time to a PSNR."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from bench.experiments import ablation, history, masrn, mean, recipes, time_to_psnr
from bench.speed import networks
from cmslap import MASRN, AsymVDSR
from cmslap.checkpoints.checkpoint import load_model, save_model
from cmslap.training.config import flat, from_dict
from cmslap.training.data import TrainingImages
from cmslap.training.distributed import Workers
from cmslap.training.loop import train

CPU = torch.device("cpu")


@pytest.fixture
def run(monkeypatch, tmp_path, table):
    """Runs an experiment's command on the small configuration, and gives what it writes."""
    table["validation"] = {"data": table["data"]["train"], "every": 4}
    file = tmp_path / "small.toml"
    file.write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in sorted(flat(table).items())))

    def main(module, *arguments):
        out = tmp_path / "result.json"
        monkeypatch.setattr(sys, "argv", ["", str(file), *arguments, "--out", str(out)])
        module.main()
        return json.loads(out.read_text())

    return main


def test_ablation_trains_every_variant_once(run, monkeypatch, tmp_path):
    monkeypatch.setattr(ablation, "ROUNDS", 2)
    monkeypatch.setattr(
        ablation, "VARIANTS", {name: ablation.VARIANTS[name] for name in ("shared_conv = 1", "MS-LapSRN (untied)")}
    )
    result = run(ablation, "steps=4", "log_every=4")
    tied, untied = result["variants"].values()
    assert untied["parameters"] - tied["parameters"] == 8 * 8 * 9
    assert tied["psnr"].keys() == untied["psnr"].keys() == {"images 2x", "images 4x"}
    assert tied["psnr"] != untied["psnr"]
    assert tied["step_seconds"] > 0
    assert "shared_conv" not in result["config"]["model"]
    log = tmp_path / "run" / "shared_conv=1" / "log.jsonl"
    before = log.read_text()
    assert run(ablation, "steps=4", "log_every=4")["variants"]["shared_conv = 1"]["psnr"] == tied["psnr"]
    assert log.read_text() == before


def test_time_to_psnr_trains_both_ways_by_the_same_steps(run):
    result = run(time_to_psnr, "--psnr", "-100")
    ours, eager = result["runs"]["cmslap"], result["runs"]["eager"]
    assert [point["step"] for point in ours["curve"]] == [point["step"] for point in eager["curve"]] == [4, 8, 12]
    assert ours["seconds"] == ours["curve"][0]["seconds"] > 0
    for mine, theirs in zip(ours["curve"], eager["curve"], strict=True):
        assert mine["psnr"] == pytest.approx(theirs["psnr"], abs=0.1)


def test_seconds_are_those_of_the_steps_until_the_psnr_is_reached():
    log = [
        {"step": 2, "loss": 1.0, "images_per_second": 10.0},
        {"step": 2, "psnr": {}, "mean": 30.0},
        {"step": 3, "loss": 1.0, "images_per_second": 5.0},
        {"step": 3, "psnr": {}, "mean": 31.0},
    ]
    points = time_to_psnr.curve(log, batch=10)
    assert [point["seconds"] for point in points] == [2.0, 4.0]
    assert time_to_psnr.reached(points, 30.5) == 4.0
    with pytest.raises(SystemExit, match=r"--psnr 32.0: the best validation is 31.00 dB; ask for less"):
        time_to_psnr.reached(points, 32.0)


def test_recipes_tell_what_differs_from_the_first(configure, monkeypatch, tmp_path, capsys):
    base = configure(validation={"data": configure().data.train})
    other = configure(
        validation={"data": base.data.train}, out=str(tmp_path / "muon"), optimizer={"name": "muon", "lr": 1e-3}
    )
    again = configure(validation={"data": base.data.train}, out=str(tmp_path / "again"), seed=1)
    begun = str(Path(other.out) / "last.safetensors")
    later = configure(validation={"data": base.data.train}, out=str(tmp_path / "later"), init=begun)
    for config in (base, other, again, later):
        train(config)
    out = tmp_path / "recipes.json"
    monkeypatch.setattr(sys, "argv", ["", base.out, other.out, again.out, later.out, "--out", str(out)])
    recipes.main()
    first, second, third = json.loads(out.read_text())["runs"]
    assert (first["changes"], second["changes"]) == ({}, {"optimizer.name": "muon"})
    assert third["changes"] == {"init": "last.safetensors"}  # no path
    assert (first["seeds"], second["seeds"]) == ([base.seed, 1], [other.seed])
    records = [json.loads((Path(config.out) / "record.json").read_text()) for config in (base, again)]
    finals = [record["validation"][-1]["mean"] for record in records]
    assert first["mean"] == pytest.approx(sum(finals) / 2)
    assert first["spread"] == pytest.approx(abs(finals[0] - finals[1]))
    assert first["psnr"].keys() == second["psnr"].keys()
    assert first["training_seconds"] > 0


def test_the_mean_of_checkpoints_names_them(monkeypatch, tmp_path, capsys):
    models = [AsymVDSR(), AsymVDSR()]
    paths = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    for model, path in zip(models, paths, strict=True):
        save_model(model, path)
    record, out = tmp_path / "record.json", tmp_path / "mean.safetensors"
    record.write_text(json.dumps({"step": 7}))
    named = [f"{name}={path}" for name, path in zip(("the first", "the second"), paths, strict=True)]
    options = ["--record", str(record), "--out", str(out)]
    hashes = [hashlib.sha256(path.read_bytes()).hexdigest() for path in paths]
    for chosen, parts in (([], (1, 1)), (["--parts", "3", "1"], (3, 1))):
        monkeypatch.setattr(sys, "argv", ["", *named, *chosen, *options])
        mean.main()
        first, second = ({"parts": part, "sha256": found} for part, found in zip(parts, hashes, strict=True))
        expected = {"step": 7, "mean_of": {"the first": first, "the second": second}}
        assert json.loads(out.with_suffix(".json").read_text()) == expected
        for ours, a, b in zip(load_model(out).parameters(), *(model.parameters() for model in models), strict=True):
            torch.testing.assert_close(ours, (parts[0] * a + parts[1] * b) / sum(parts))
    monkeypatch.setattr(sys, "argv", ["", *named, "--parts", "1", *options])
    with pytest.raises(SystemExit):
        mean.main()
    assert "must be 2 positive numbers" in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", ["", str(paths[0]), *options])
    with pytest.raises(SystemExit):
        mean.main()
    assert "must be NAME=CHECKPOINT" in capsys.readouterr().err


def test_recipes_refuse_a_run_that_was_stopped(configure, monkeypatch, tmp_path, capsys):
    config = configure()
    train(config)
    record = tmp_path / "run" / "record.json"
    record.write_text(json.dumps(json.loads(record.read_text()) | {"step": 5}))
    monkeypatch.setattr(sys, "argv", ["", config.out, "--out", str(tmp_path / "recipes.json")])
    with pytest.raises(SystemExit):
        recipes.main()
    assert "stopped after 5 of 12 steps" in capsys.readouterr().err


def test_history_counts_the_pixels_of_runs_that_go_on_and_of_those_that_begin_anew(tmp_path):
    def run(name, patch, log):
        (tmp_path / name).mkdir()
        (tmp_path / name / "log.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in log))
        record = {"config": {"batch": 2, "patch": patch}, "commit": "abc", "device": "A processor", "threads": 1}
        (tmp_path / name / "record.json").write_text(json.dumps(record))
        return tmp_path / name

    def validated(step, value):
        return {"step": step, "psnr": {"set5 2x": value, "set5 8x": value - 10}, "mean": value - 5}

    first = [{"step": 5, "loss": 1.0}, validated(10, 30.0)]
    runs = [run("a", 8, first), run("b", 16, [*first, validated(12, 31.0)]), run("c", 8, [validated(10, 32.0)])]
    found = history.history(runs)
    a, b = 10 * 2 * 8**2, 2 * 2 * 16**2
    assert [point["pixels"] for point in found["points"]] == [a, a + b, a + b + a]
    assert [point["psnr"]["set5 2x"] for point in found["points"]] == [30.0, 31.0, 32.0]
    assert [stretch["steps"] for stretch in found["runs"]] == [10, 2, 10]
    published = {"other": {("set5", 2): 33.0, ("set5", 8): 22.0}}
    history.draw(found, published, tmp_path / "curve.png")
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")


def test_reshaped_pixels_are_those_of_the_array_in_memory():
    pixels = np.random.rand(6, 9, 3)
    image = torch.from_numpy(pixels).permute(2, 0, 1)[None]
    assert np.array_equal(masrn.reshaped(image)[0], pixels.reshape(3, 6, 9))
    assert torch.equal(masrn.restored(masrn.reshaped(image)), image)


def test_each_fault_makes_another_network_and_leaves_the_others_alone():
    image = torch.rand(1, 3, 5, 4)
    expected = MASRN(channels=2)
    with torch.no_grad():
        for parameter in expected.parameters():
            parameter.uniform_(-0.5, 0.5)
    before = expected(image, 3)[0]
    for network in {network for network, _ in masrn.RUNS.values()} - {MASRN}:
        faulty = network(channels=2)
        faulty.load_state_dict(expected.state_dict(), strict=False)
        (found,) = faulty(image, 3)
        assert found.shape == before.shape
        assert not torch.allclose(found, before), network
    assert torch.equal(expected(image, 3)[0], before)


def test_a_step_for_each_scale_is_as_many_updates(table):
    config = from_dict(table | {"model": {"name": "MASRN", "channels": 1}, "optimizer": {"name": "adam", "lr": 1e-3}})
    trainer = masrn.StepAScale(config, Workers(0, 1, CPU))
    images = TrainingImages(config.data, config.patch, trainer.model, CPU, announce=False)
    trainer.learn(0, images.batch(0, 0, {2: 2, 4: 3}))
    (optimizer,) = trainer.optimizers
    assert optimizer.state[trainer.parameters[0]]["step"] == 2


def test_the_plain_network_is_ours():
    ours, theirs = AsymVDSR(), networks.AsymVDSR(depth=18, channels=64)
    kernels = [layer for layer in theirs.body if isinstance(layer, torch.nn.Conv2d)][1:-1]
    with torch.no_grad():
        for name, layers in (("vertical_weight", kernels[0::2]), ("horizontal_weight", kernels[1::2])):
            getattr(ours, name).copy_(torch.cat([layer.weight for layer in layers]))
        ours.middle_bias.copy_(torch.stack([layer.bias for layer in kernels[1::2]]))
        ours.conv_in.load_state_dict(theirs.body[0].state_dict())
        ours.conv_out.load_state_dict(theirs.body[-1].state_dict())
        image = torch.rand(1, 1, 9, 7)
        torch.testing.assert_close(ours.restore(image), theirs(image), rtol=1e-4, atol=1e-5)
