"""A record's configuration trains again, with the same first losses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cmslap.cli import main
from cmslap.training import config as configuration
from cmslap.training import loop
from cmslap.training.record import first_losses


@pytest.fixture
def run(configure):
    config = configure()
    assert loop.train(config) == 0
    return config


def _arguments(config, command="--reproduce"):
    return ["train", str(Path(config.out) / "record.json"), command, f"data.train={json.dumps(config.data.train)}"]


def test_a_rerun_has_the_same_losses_to_the_bit(run, capsys):
    assert main(_arguments(run)) == 0
    assert f"{run.steps} losses, {run.steps} of them equal to the bit" in capsys.readouterr().out


def test_a_rerun_that_differs_says_where(run, capsys):
    assert main([*_arguments(run), "seed=5"]) == 1
    assert "0 of them equal" in capsys.readouterr().out


def test_a_rerun_from_other_weights_is_refused(configure, run, capsys):
    weights = Path(run.out) / "last.safetensors"
    begun = configure(init=str(weights), out=run.out + "-begun")
    loop.train(begun)
    assert main([*_arguments(begun), f"init={weights}"]) == 0
    other = configure(seed=1, out=run.out + "-other")
    loop.train(other)
    assert main([*_arguments(begun), f"init={other.out}/last.safetensors"]) == 1
    said = capsys.readouterr().err
    assert "are not the weights this run began from; give theirs with init=FILE" in said


def test_every_first_loss_is_in_the_record_of_a_run_that_was_resumed(configure):
    whole = configure(schedule={"name": "constant"})
    loop.train(whole)
    part = configure(schedule={"name": "constant"}, out=whole.out + "-part", steps=5)
    loop.train(part)
    resumed = configure(schedule={"name": "constant"}, out=part.out)
    loop.train(resumed, resume=True)
    first = [json.loads((Path(c.out) / "record.json").read_text())["first_losses"] for c in (whole, resumed)]
    assert len(first[0]) == whole.steps
    assert first[0] == first[1]


def test_a_run_resumed_with_other_settings_is_rerun_with_those_it_began_with(configure):
    begun = configure(steps=6, patch=16)
    loop.train(begun)
    resumed = configure(steps=8, patch=32, optimizer={"lr": 1e-4}, out=begun.out)
    loop.train(resumed, resume=True)
    record = json.loads((Path(begun.out) / "record.json").read_text())
    (part,) = record["resumed"]
    assert part["step"] == 6
    assert part["changes"]["patch"] == [16, 32]
    assert record["config"]["patch"] == 32
    path = Path(begun.out) / "record.json"
    assert configuration.load(str(path)).patch == 32
    assert configuration.load(str(path), begun=True).steps == 6
    again = configuration.load(str(path), [f"data.train={json.dumps(begun.data.train)}"], begun=True)
    assert first_losses(again, 6) == record["first_losses"][:6]


def test_what_is_no_record_is_told_in_one_line(tmp_path, images, capsys):
    assert main(["train", "tiny", "--reproduce", f"data.train={images}"]) == 1
    assert "keeps no losses" in capsys.readouterr().err
    path = tmp_path / "list.json"
    path.write_text("[]")
    with pytest.raises(configuration.ConfigError, match="not a training record"):
        configuration.load(str(path))
