"""What people and scripts do to the command line: a case a line. None ends in a traceback or a wrong exit status."""

import errno
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import torch
from command_line import run
from PIL import Image

import cmslap
from cmslap import cli, options
from cmslap.checkpoints.checkpoint import ALIASES, shipped_names

TINY = {"depth": 1, "recursions": 1, "channels": 2, "shared_conv": 1}
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(cmslap.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
UP = "upscale a.png -m tiny.safetensors"
EV = "evaluate --data folder -s 2 -m tiny.safetensors"


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with something of every kind."""
    monkeypatch.chdir(tmp_path)
    cmslap.save_model(cmslap.CMSLapSRN(**TINY), "tiny.safetensors")
    images = {
        "a.png": np.random.randint(0, 256, (13, 14, 3), dtype=np.uint8),
        "alpha.png": np.random.randint(0, 256, (13, 14, 4), dtype=np.uint8),
        "deep.png": np.random.randint(0, 65536, (13, 14), dtype=np.uint16),
        "folder/b.png": np.random.randint(0, 256, (32, 34, 3), dtype=np.uint8),
    }
    for name, pixels in images.items():
        Path(name).parent.mkdir(exist_ok=True)
        Image.fromarray(pixels).save(name)
    Path("text.png").write_text("no image")
    Path("empty.png").touch()
    Path("exists.png").write_text("precious")
    Path("cut.safetensors").write_bytes(Path("tiny.safetensors").read_bytes()[:-5])
    header = {"architecture": "CMSLapSRN", "config": json.dumps({**TINY, "scale": 8})}
    for name, change in {"deep": {"depth": 10**7}, "long": {"recursions": 10**9}, "odd": {"depth": "x"}}.items():
        from safetensors.torch import load_file, save_file

        config = json.dumps({**json.loads(header["config"]), **change})
        save_file(load_file("tiny.safetensors"), f"{name}.safetensors", {**header, "config": config})
    torch.save({"conv_in.weight": torch.zeros(2, 1, 3, 3).to_sparse()}, "sparse.pth")
    torch.save({"conv_in.weight": torch.empty(2, 1, 3, 3, device="meta")}, "meta.pth")
    torch.save({"conv_in.weight": [1, 2]}, "list.pth")
    Path("text.mat").write_text("no network")
    Path("number.json").write_text('{"config": 3}')
    Path("date.toml").write_text(
        "out = 1979-05-27\ninit = 07:32:00\nsteps = 1\nbatch = 3\npatch = 16\nmodel = {}\ndata = {}"
    )
    scipy.io.savemat("number.mat", {"net": 3.0})
    Path("link.json").symlink_to("linked.json")
    return tmp_path


# fmt: off
MISTAKES = [  # command line, exit status, what the one line of standard error says
    (f"{UP} -o exists.png", 1, "exists.png exists; give --overwrite"),
    (f"{UP} -o text.png/x.png", 1, "text.png/x.png: cannot be written (Not a directory)"),
    (f"{UP} -o /proc/x.png", 1, "/proc/x.png: cannot be written"),
    (f"{UP} -o /dev/full", 1, "/dev/full: cannot be written (No space left on device)"),
    (f"{UP} -o {'n' * 253}.png", 1, "nnn.png: File name too long"),
    (f"{UP} -o x.jpg -f png", 1, "x.jpg is not named as --format png is"),
    (f"{UP} -o x.png --compare exists.png", 1, "exists.png exists; give --overwrite"),
    (f"{UP} -o x.png -g 99", 1, "cuda:99"),
    (f"{UP} -o x.png -s 1e5", 1, "GiB"),
    ("upscale a.png deep.png -m tiny.safetensors -o -", 1, "several images"),
    ("upscale alpha.png -m tiny.safetensors -o x.jpg", 1, "or `cmslap upscale --convert`"),
    ("upscale deep.png -m tiny.safetensors -o x.jpg", 1, "or `cmslap upscale --convert`"),
    ("upscale text.png -m tiny.safetensors -o x.png", 1, "text.png: not an image"),
    ("upscale empty.png -m tiny.safetensors -o x.png", 1, "empty.png: the file is empty"),
    ("upscale none.png -m tiny.safetensors -o x.png", 1, "none.png: no such file or folder"),
    ("upscale a.png -m cut.safetensors -o x.png", 1, "cut.safetensors: not a safetensors file"),
    ("upscale a.png -m deep.safetensors -o x.png", 1, "deep.safetensors: config depth=10000000 is absurd"),
    ("upscale a.png -m long.safetensors -o x.png", 1, "long.safetensors: config recursions=1000000000 is absurd"),
    ("upscale a.png -m odd.safetensors -o x.png", 1, "odd.safetensors: config depth must be an integer"),
    ("upscale a.png -m . -o x.png", 1, "no such file"),
    ("upscale -o x.png", 2, "required: IN"),
    (f"{UP} -o x.png --overwrit", 2, "did you mean --overwrite?"),
    (f"{UP} -o x.png --ensembl", 2, "did you mean --ensemble?"),
    (f"{UP} -o x.png --over", 2, "unrecognized arguments: --over"),
    (f"{UP} -o x.png --overwrite --skip-existing", 2, "not allowed with"),
    (f"{UP} -o x.png -g tpu", 2, "the number of a GPU"),
    (f"{UP} -o x.png -t ²", 2, "number of pixels"),
    (f"{UP} -o x.png -f heic", 2, "heic"),
    (f"{EV} --json exists.png", 1, "exists.png exists; give --overwrite"),
    (f"{EV} --json folder", 1, "folder is a folder"),
    (f"{EV} --jsn x", 2, "did you mean --json?"),
    ("evaluate --data a.png -m tiny.safetensors", 1, "a.png: no such folder"),
    ("compare a.png -m tiny.safetensors -o exists.png", 1, "exists.png exists; give --overwrite"),
    ("compare none.png -m tiny.safetensors -o x.html", 1, "none.png"),
    ("compare a.png -m tiny.safetensors -o x.html --original -s 1.5", 1, "--original takes a whole --scale"),
    ("convert sparse.pth x.safetensors", 1, "sparse.pth: tensor 'conv_in.weight' must hold its values densely"),
    ("convert meta.pth x.safetensors", 1, "meta.pth: tensor 'conv_in.weight' must hold its values densely"),
    ("convert list.pth x.safetensors", 1, "list.pth: not a state_dict"),
    ("convert tiny.safetensors exists.png", 1, "must end in .safetensors"),
    ("convert tiny.safetensors tiny.safetensors", 1, "tiny.safetensors exists; give --overwrite"),
    ("convert number.mat x.safetensors", 1, "number.mat: no MatConvNet DagNN network in it"),
    ("convert text.mat x.safetensors", 1, "text.mat: not a MATLAB file"),
    ("train date.toml", 1, "date.toml: init = datetime.time(7, 32): expected a string"),
    ("train number.json", 1, "number.json: not a training record"),
    ("export tiny.safetensors x.onnx -s 3", 1, "tiny.safetensors: scale must be"),
    ("export tiny.safetensors folder", 1, "must end in .onnx or .pt2"),
    ("nonsense", 2, "invalid choice"),
    ("", 2, "required: COMMAND"),
]
SUCCESSES = [  # command line, a file there is afterwards, its size in pixels
    ("upscale -i a.png -n tiny.safetensors -o x.png -s 2 -x -t 8 -g -1", "x.png", (28, 26)),
    (f"{UP} -o out -f webp -v", "out/a.webp", (56, 52)),
    ("upscale folder a.png -m tiny.safetensors -o out -s 2", "out/b.png", (68, 64)),
    ("upscale alpha.png -m tiny.safetensors -o x.jpg --convert -s 2", "x.jpg", (28, 26)),
    ("upscale deep.png -m tiny.safetensors -o x.jpg --convert -s 2", "x.jpg", (28, 26)),
    (f"{UP} -o exists.png --overwrite -s 2", "exists.png", (28, 26)),
    (f"{UP} -o {'n' * 251}.png -s 2", f"{'n' * 251}.png", (28, 26)),
    (f"{UP} -o x.png -s 2 --compare page.html", "x.png", (28, 26)),
]
# fmt: on


@pytest.mark.parametrize(("command", "status", "said"), MISTAKES)
def test_mistakes(here, capfd, command, status, said):
    before = {path: path.read_bytes() for path in here.rglob("*") if path.is_file()}
    found, _, error = run(capfd, command)
    assert found == status
    assert said in error.splitlines()[-1]
    assert "Traceback" not in error
    assert status == 2 or len(error.splitlines()) == 1
    assert {path: path.read_bytes() for path in here.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(("command", "file", "size"), SUCCESSES)
def test_successes(here, capfd, command, file, size):
    status, _, error = run(capfd, command)
    assert (status, "error" in error) == (0, False)
    with Image.open(file) as image:
        assert image.size == size
    assert list(here.rglob(".cmslap-*")) == []


def test_unknown_flags_show_the_commands_own_usage(here, capfd):
    assert "usage: cmslap upscale " in run(capfd, f"{UP} -o x.png --nonsense")[2]


@pytest.mark.parametrize("options", ["", "--recursive"])
def test_a_folder_that_cannot_be_read_is_named(here, capfd, monkeypatch, options):
    def scandir(folder):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), os.fspath(folder))

    monkeypatch.setattr(os, "scandir", scandir)
    status, _, error = run(capfd, f"upscale folder -m tiny.safetensors -o out {options}")
    assert (status, error) == (1, "cmslap upscale: error: folder: Permission denied\n")


def test_skip_existing(here, capfd):
    Path("out").mkdir()
    Path("out/a.png").write_text("precious")
    status, _, _ = run(capfd, "upscale a.png folder -m tiny.safetensors -o out --skip-existing -s 2")
    assert (status, Path("out/a.png").read_text()) == (0, "precious")
    assert Path("out/b.png").exists()


def test_json_follows_links_and_pipes(here, capfd):
    assert run(capfd, f"{EV} --json link.json")[0] == 0
    assert Path("link.json").is_symlink()
    assert json.loads(Path("linked.json").read_text())["results"]
    os.mkfifo("pipe")
    reader = subprocess.Popen(["cat", "pipe"], stdout=subprocess.PIPE)
    assert run(capfd, f"{EV} --json pipe")[0] == 0
    assert json.loads(reader.communicate(timeout=60)[0])["results"]
    assert Path("pipe").is_fifo()


def test_what_jpeg_cannot_hold_becomes_white_and_eight_bits(here, capfd):
    Image.new("RGBA", (9, 9), (0, 0, 0, 0)).save("clear.png")
    assert run(capfd, "upscale clear.png -m tiny.safetensors -o x.jpg --convert")[0] == 0
    with Image.open("x.jpg") as image:
        assert np.array(image).min() > 250


def test_huge_images_are_read_when_asked(here, capfd, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50)
    status, _, error = run(capfd, f"{UP} -o x.png -s 2")
    assert (status, "`cmslap upscale --huge` reads it" in error) == (1, True)
    assert run(capfd, f"{UP} -o x.png -s 2 --huge")[0] == 0
    assert Image.MAX_IMAGE_PIXELS == 50


def test_equal_networks_make_equal_files(here, capfd):
    for name in ("one", "two"):
        assert run(capfd, f"convert tiny.safetensors {name}.safetensors")[0] == 0
    assert Path("one.safetensors").read_bytes() == Path("two.safetensors").read_bytes()


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 12345 bytes"),
        RuntimeError("std::bad_alloc"),
    ],
    ids=["MemoryError", "allocator", "bad_alloc"],
)
def test_too_little_memory_is_one_line(here, capfd, monkeypatch, error):
    from cmslap.inference import upscaling

    def fail(*arguments):
        raise error

    monkeypatch.setattr(upscaling, "_enlarge", fail)
    status, _, said = run(capfd, f"{UP} -o x.png")
    assert (status, len(said.splitlines())) == (1, 1)
    assert "a.png: out of memory" in said
    assert "lower" in said
    assert ("12345 bytes were needed" in said) == ("12345" in str(error))


SHELL = [  # a shell's command line, exit status, what its output is
    ("{c} upscale - -m tiny.safetensors -o - -s 2 < a.png | {p} -c \"{size}\"", 0, "(28, 26)\n"),
    ("cat a.png | {c} upscale - -m tiny.safetensors -o x.png -s 2 && {p} -c \"{size}\" < x.png", 0, "(28, 26)\n"),
    ("{c} upscale a.png -m tiny.safetensors -o /dev/stdout -s 2 -f tif > x; {p} -c \"{size}\" < x", 0, "(28, 26)\n"),
    ("{c} upscale a.png -m tiny.safetensors -o x.png 2>&-", 0, ""),
    ("{c} upscale none.png -m tiny.safetensors -o x.png 2>&-", 1, ""),
    ("{c} upscale a.png -m tiny.safetensors -o x.png >&-", 0, ""),
    ("{c} upscale a.png -m tiny.safetensors -o - >&- 2>/dev/null", 1, ""),
    ("bash -c '{c} upscale <(cat a.png) -m tiny.safetensors -o x.png'", 0, ""),
    ("{c} info | true", 0, ""),
]  # fmt: skip


@pytest.mark.parametrize(("command", "status", "output"), SHELL)
def test_pipes_and_closed_streams(here, command, status, output):
    size = "import sys; from PIL import Image; print(Image.open(sys.stdin.buffer).size)"
    command = command.format(c=f"{sys.executable} -m cmslap", p=sys.executable, size=size)
    done = subprocess.run(command, shell=True, capture_output=True, text=True, env=ENVIRONMENT, timeout=120)
    assert (done.returncode, done.stdout) == (status, output), done.stderr
    assert "Traceback" not in done.stderr
    assert "Exception" not in done.stderr


@pytest.mark.parametrize("delay", [0.15, 0.4, 0.8, 1.2])
def test_an_interruption_at_any_time_is_no_traceback(here, delay):
    """From our code on it is one line; while Python itself starts, Python's own."""
    process = subprocess.Popen(
        [sys.executable, "-m", "cmslap", *shlex.split("upscale a.png -m cms-lapsrn-d5r8 -o x.png --size 900x900")],
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    time.sleep(delay)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=120)
    if process.returncode == 130:
        assert error == "cmslap upscale: interrupted\n"
    else:
        assert process.returncode in (1, -signal.SIGINT)
        assert "in run" not in error


def test_an_interruption_that_a_library_makes_another_error_of(monkeypatch, capsys):
    """As safetensors does, whose compiled code asks PyTorch for a name."""

    def run(args):
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            raise AttributeError("UntypedStorage") from None

    monkeypatch.setattr("cmslap.info.run", run)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        assert cli.main(["info"]) == 130
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
    assert capsys.readouterr().err == "cmslap info: interrupted\n"


@pytest.mark.parametrize("command", [None, "upscale", "compare", "train", "evaluate", "convert", "export", "info"])
def test_help_imports_nothing_heavy_and_has_examples(command):
    arguments = repr([*([command] if command else []), "--help"])
    program = (
        "import sys, contextlib\nfrom cmslap.cli import main\n"
        f"with contextlib.suppress(SystemExit): main({arguments})\n"
        "print('heavy:', sorted({'torch', 'numpy', 'PIL', 'tqdm'} & set(sys.modules)))"
    )
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=ENVIRONMENT).stdout
    assert said.splitlines()[-1] == "heavy: []"
    assert command in (None, "info") or f"\n  cmslap {command} " in said


def test_options_name_the_networks_there_are(capfd):
    assert ALIASES["cms-lapsrn"] == options.DEFAULT_MODEL
    text = " ".join(run(capfd, "upscale --help")[1].split())
    assert all(name in text for name in set(shipped_names()) - set(ALIASES))
