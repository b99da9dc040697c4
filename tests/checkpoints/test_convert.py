import pytest
import torch

from cmslap import CMSLapSRN, LapSRN, load_model
from cmslap.cli import main


@pytest.fixture
def checkpoint(tmp_path):
    model = CMSLapSRN(depth=2, recursions=3, channels=4, shared_conv=1)
    torch.save(model.state_dict(), tmp_path / "model.pth")
    return model, str(tmp_path / "model.pth")


def test_convert_says_what_it_is(checkpoint, same, tmp_path, capsys):
    model, path = checkpoint
    out = tmp_path / "out.safetensors"
    assert main(["convert", path, str(out), "--recursions", "3", "--shared-conv", "1"]) == 0
    said = capsys.readouterr().out
    for part in ("CMSLapSRN", "depth 2", "recursions 3", "shared conv 1", "parameters"):
        assert part in said
    assert same(model, load_model(out))
    again = tmp_path / "again.safetensors"
    assert main(["convert", str(out), str(again), "--recursions", "3"]) == 0  # what the file says may be said again
    assert same(model, load_model(again))


def test_convert_official_weights(official_weights, tmp_path, same):
    out = tmp_path / "out.safetensors"
    assert main(["convert", str(official_weights / "LapSRN_x4.mat"), str(out)]) == 0
    assert same(load_model(official_weights / "LapSRN_x4.mat"), load_model(out))


def test_an_existing_file_is_kept_unless_told_otherwise(tmp_path, capsys):
    torch.save(LapSRN(depth=1, channels=4).state_dict(), tmp_path / "model.pth")
    out = tmp_path / "out.safetensors"
    out.write_text("precious")
    command = ["convert", str(tmp_path / "model.pth"), str(out)]
    assert main(command) == 1
    assert "--overwrite" in capsys.readouterr().err
    assert out.read_text() == "precious"
    assert main([*command, "--overwrite"]) == 0
    assert isinstance(load_model(out), LapSRN)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["{input}", "out.pth"], "OUT must end in .safetensors"),
        (["missing.mat", "{folder}/out.safetensors"], "missing.mat: no such file"),
        (["{input}", "{folder}/out.safetensors"], "do not say recursions"),
        (["{input}", "{folder}/out.safetensors", "--recursions", "2", "--shared-conv", "5"], "shared_conv must be"),
        (["{input}", "{folder}/out.safetensors", "--recursions", "0", "--shared-conv", "1"], "recursions must be"),
    ],
)
def test_mistakes_end_in_one_line_and_leave_nothing(arguments, said, checkpoint, tmp_path, capsys):
    arguments = [argument.format(input=checkpoint[1], folder=tmp_path) for argument in arguments]
    assert main(["convert", *arguments]) == 1
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["model.pth"]


def test_what_contradicts_the_file(tmp_path, capsys):
    torch.save(LapSRN(depth=1, channels=4).state_dict(), tmp_path / "model.pth")
    assert main(["convert", str(tmp_path / "model.pth"), str(tmp_path / "o.safetensors"), "--recursions", "2"]) == 1
    assert "LapSRN has no recursions" in capsys.readouterr().err
