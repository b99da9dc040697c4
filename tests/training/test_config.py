from __future__ import annotations

import copy
import json
from dataclasses import asdict

import pytest

from cmslap.models import MSLapSRN
from cmslap.training import config
from cmslap.training.config import ConfigError, from_dict, load

TOML = """
out = "run"
steps = 10
batch = 4
patch = 16
scales = [2, 4]
[model]
name = "MSLapSRN"
channels = 8
[data]
train = ["images"]
[optimizer]
lr = 1e-4
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "some.toml"
    path.write_text(TOML)
    return str(path)


def test_overrides_are_toml_or_bare_strings(file):
    made = load(file, ["optimizer.lr=2", "data.train=other", "scales=[2]", "data.flip=false", "validation.data=['v']"])
    assert (made.optimizer.lr, made.data.train, made.scales, made.data.flip) == (2.0, ["other"], [2], False)
    assert made.validation.data == ["v"]
    assert isinstance(made.optimizer.lr, float)


def test_round_trip(table):
    made = from_dict(table)
    assert from_dict(json.loads(json.dumps(asdict(made)))) == made


def test_counts_are_the_shares_or_equal_with_the_rest_to_the_largest_scales(file):
    assert load(file, ["scales=[2, 4, 8]", "batch=16", "patch=32"]).counts == {2: 5, 4: 5, 8: 6}
    assert load(file, ["scales=[8, 2, 4]", "batch=17", "patch=32"]).counts == {8: 6, 2: 5, 4: 6}
    assert load(file, ["scales=[8, 2, 4]", "batch=9", "patch=32", "shares=[6, 1, 2]"]).counts == {8: 6, 2: 1, 4: 2}


def test_model_is_built_for_the_largest_scale(file):
    model = load(file, ["validation.scales=[8]"]).build_model()
    assert isinstance(model, MSLapSRN)
    assert (model.scale, model.channels) == (8, 8)


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("optimizer.lrr=1", r"unknown key 'lrr' in table \[optimizer\]; did you mean lr\?"),
        ("stepz=1", r"unknown key 'stepz' in the top level; did you mean steps\?"),
        ("model.recursion=1", r"unknown key 'recursion' in table \[model\]; did you mean recursions\?"),
        ("loss.zzz=1", r"unknown key 'zzz' in table \[loss\]; it takes name, eps, level_weights"),
        ("steps=1.5", r"steps = 1.5: expected an integer"),
        ("steps=true", r"steps = True: expected an integer"),
        ("steps='9'", r"steps = '9': expected an integer"),
        ("optimizer.lr='fast'", r"optimizer.lr = 'fast': expected a number"),
        ("optimizer.lr=nan", r"optimizer.lr = nan: expected a finite number"),
        ("data.flip=1", r"data.flip = 1: expected true or false"),
        ("data=1", r"data = 1: expected a table"),
        ("scales=2", r"scales = 2: expected an array"),
        ("scales=[2, 'x']", r"scales = 'x': expected an integer"),
        ("scales=[3]", r"scales = \[3\]: expected distinct powers of two"),
        ("scales=[2, 2]", r"scales = \[2, 2\]: expected distinct powers of two"),
        ("scales=[]", r"scales = \[\]: expected distinct powers of two"),
        ("patch=18", r"patch = 18: expected a multiple of the largest scale, 4"),
        ("batch=1", r"batch = 1: expected at least one image a scale: 2"),
        ("shares=[1]", r"shares = \[1\]: expected for each of \[2, 4\] a number of images, in all the batch of \d+"),
        ("shares=[1, 0]", r"shares = \[1, 0\]: expected for each of \[2, 4\] a number of images"),
        ("steps=0", r"steps = 0: expected an integer of at least 1"),
        ("model.name=LapSRM", r"model.name = 'LapSRM': expected one of .*; did you mean LapSRN\?"),
        ("model.channels=-1", r"model: channels must be an integer of at least 1, got -1"),
        ("data.train=[]", r"data.train = \[\]: expected at least one folder"),
        ("data.resize=[1.0, 0.5]", r"data.resize = \[1.0, 0.5\]: expected \[low, high\]"),
        ("data.resize=[0.5, 2]", r"data.resize = .*: expected \[low, high\] with 0 < low <= high <= 1"),
        ("loss.level_weights=[1]", r"loss.level_weights = \[1.0\]: expected one weight for each of 2 levels"),
        ("loss.name=l2", r"loss.name = 'l2': expected one of charbonnier, l1"),
        ("schedule.warmup=10", r"schedule.warmup = 10: expected 0 to steps - 1 = 9"),
        ("schedule.name=step", r"schedule.every = 0: expected the number of steps between two drops"),
        ("schedule.name=onecycle", r"schedule.warmup = 0: expected for onecycle"),
        ("precision=half", r"precision = 'half': expected one of float32, bfloat16, bf16, float16, fp16"),
        ("ema=1", r"ema = 1.0: expected a decay in \[0, 1\)"),
        ("optimizer.betas=[0.9]", r"optimizer.betas = \[0.9\]: expected two numbers in \[0, 1\)"),
        ("steps", r"'steps': expected key=value"),
        ("steps.x=1", r"'steps.x=1': 'steps' is not a table"),
    ],
)
def test_mistakes_are_named(file, setting, says):
    with pytest.raises(ConfigError, match=says) as caught:
        load(file, [setting])
    assert "\n" not in str(caught.value)


def test_shared_conv_must_be_in_the_block(table):
    table["model"]["shared_conv"] = 3
    with pytest.raises(ConfigError, match="model: shared_conv must be a convolution of the block, 1 to depth=2, got 3"):
        from_dict(table)


def test_missing_keys_are_named(table):
    for key in ("out", "steps", "batch", "patch", "model", "data"):
        broken = copy.deepcopy(table)
        del broken[key]
        with pytest.raises(ConfigError, match=f"^{key} is missing$"):
            from_dict(broken)


def test_bad_toml_and_missing_file(tmp_path):
    (tmp_path / "bad.toml").write_text("steps = = 3")
    with pytest.raises(ConfigError, match=r"bad.toml: not valid TOML"):
        load(str(tmp_path / "bad.toml"))
    with pytest.raises(ConfigError, match=r"no configuration 'nowhere': expected a TOML file, .*, or one of .*paper"):
        load("nowhere")


@pytest.mark.parametrize("name", config.shipped())
def test_shipped_configurations_only_lack_data(name):
    with pytest.raises(ConfigError, match=r"data.train"):
        load(name)
    assert load(name, ["data.train=images"]).scales in ([2, 4, 8], [2, 3, 4])
