"""What ``cmslap upscale`` promises."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms

import cmslap
from cmslap.checkpoints.checkpoint import save_model
from cmslap.cli import main


@pytest.fixture
def checkpoint(tmp_path, request):
    """A network of luma, or where the test asks for it one of RGB."""
    rgb = getattr(request, "param", "luma") == "RGB"
    model = cmslap.MASRN(channels=1) if rgb else cmslap.CMSLapSRN(depth=1, recursions=1, channels=2, shared_conv=1)
    path = tmp_path / "models" / "tiny.safetensors"
    save_model(model, path)
    return path


luma_and_rgb = pytest.mark.parametrize("checkpoint", ["luma", "RGB"], indirect=True)


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty folder to work in, so that the command's relative names are short."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def upscale(checkpoint, here, capsys):
    """Run the command; give its exit status and what it wrote to standard error and output."""

    def run(*arguments):
        status = main(["upscale", *map(str, arguments), "-m", str(checkpoint), "--device", "cpu"])
        captured = capsys.readouterr()
        return status, captured.err + captured.out

    return run


def make_image(name, mode="RGB", size=(9, 7), **options):
    channels = {"L": (), "LA": (2,), "RGB": (3,), "RGBA": (4,)}[mode]
    image = Image.fromarray(np.random.randint(0, 256, (size[1], size[0], *channels), dtype=np.uint8))
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    image.save(name, **options)
    return name


def size(name):
    with Image.open(name) as image:
        return image.size


def files():
    return sorted(path.as_posix() for path in Path().rglob("*") if path.is_file())


def test_a_image_becomes_a_image_four_times_the_size(upscale):
    make_image("in.png")
    assert upscale("in.png", "-o", "out.jpg") == (0, "")
    assert size("out.jpg") == (36, 28)
    assert files() == ["in.png", "out.jpg"]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [(("-s", "2"), (18, 14)), (("--scale", "1.5"), (14, 11)), (("--size", "20x30"), (20, 30)), (("-s", "8"), (72, 56))],
)
def test_scale_and_size(upscale, arguments, expected):
    make_image("in.png")
    assert upscale("in.png", "-o", "out.png", *arguments)[0] == 0
    assert size("out.png") == expected


@luma_and_rgb
@pytest.mark.parametrize("scale", [2, 3])
def test_the_command_and_the_function_give_the_same_image(upscale, checkpoint, scale):
    with Image.open(make_image("in.png", "RGBA")) as image:
        expected = cmslap.upscale(image, scale, checkpoint, tile=4, ensemble=True)
    assert upscale("in.png", "-o", "out.png", "-s", scale, "-t", 4, "--ensemble")[0] == 0
    with Image.open("out.png") as image:
        assert image.mode == "RGBA"
        assert image.tobytes() == expected.tobytes()


@luma_and_rgb
def test_a_photograph_is_turned_upright_and_keeps_what_it_says(upscale, checkpoint):
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "camera"  # lies on its side
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    make_image("in.jpg", exif=exif.tobytes(), icc_profile=profile, dpi=(300, 300))
    assert upscale("in.jpg", "-o", "out.jpg", "-s", 3) == (0, "")
    with Image.open("out.jpg") as image:
        assert image.size == (21, 27)
        assert (image.getexif().get(0x0112, 1), image.getexif()[0x010F]) == (1, "camera")
        assert (image.info["icc_profile"], image.info["dpi"]) == (profile, (300, 300))


@luma_and_rgb
@pytest.mark.parametrize("mode", ["1", "P", "LA", "I;16"])
def test_any_png_comes_back_as_what_can_hold_its_enlargement(upscale, checkpoint, mode):
    image = Image.new(mode, (9, 7), 1)
    if mode == "P":
        image.putpalette([0, 0, 0, 250, 10, 10])
    image.save("in.png")
    assert upscale("in.png", "-o", "out.png", "-s", 3) == (0, "")
    with Image.open("out.png") as image:
        assert (image.mode, image.size) == ({"1": "L", "P": "RGB"}.get(mode, mode), (27, 21))


def test_bfloat16(upscale, bfloat16):
    make_image("in.png")
    assert upscale("in.png", "-o", "out.png", "--precision", "bf16")[0] == 0


def test_a_folder_with_names_and_formats_kept(upscale):
    for name in ("b.jpg", "a.PNG", "c.tif", "d.bmp", ".hidden.png", "deeper/e.png"):
        make_image(f"in/{name}")
    Path("in/notes.txt").touch()
    status, said = upscale("in", "-o", "out")
    assert (status, said) == (0, "4 of 4 images written to out, 0 failed\n")
    assert [name for name in files() if name.startswith("out")] == ["out/a.PNG", "out/b.jpg", "out/c.tif", "out/d.png"]


def test_recursive_keeps_the_tree_and_leaves_earlier_results_alone(upscale):
    make_image("in/a.png")
    make_image("in/deeper/a.png")
    assert upscale("in", "-o", "in/out", "--recursive")[0] == 0
    assert files() == ["in/a.png", "in/deeper/a.png", "in/out/a.png", "in/out/deeper/a.png"]
    assert upscale("in", "-o", "in/out", "-r", "--overwrite")[1].startswith("2 of 2")


def test_patterns_that_no_shell_expanded(upscale):
    for name in ("a1.png", "a2.png", "b1.png", "odd[1].png"):
        make_image(name)
    assert upscale("a*.png", "odd[1].png", "-o", "out")[0] == 0
    assert [name for name in files() if name.startswith("out")] == ["out/a1.png", "out/a2.png", "out/odd[1].png"]


def test_a_file_may_go_to_a_folder(upscale):
    make_image("in.png")
    for folder in ("new", "new.folder/"):
        assert upscale("in.png", "-o", folder)[0] == 0
        assert size(Path(folder) / "in.png") == (36, 28)


def test_nothing_is_overwritten_unless_told(upscale):
    make_image("in/a.png")
    make_image("in/b.png")
    make_image("out/a.png", size=(3, 3))
    status, said = upscale("in", "-o", "out")
    assert status == 1
    assert "error: out/a.png exists; give --overwrite" in said
    assert "1 of 2 images written to out, 1 failed" in said
    assert (size("out/a.png"), size("out/b.png")) == ((3, 3), (36, 28))
    assert upscale("in", "-o", "out", "--overwrite")[0] == 0
    assert size("out/a.png") == (36, 28)


def test_one_bad_file_does_not_end_the_run(upscale):
    make_image("in/a.png")
    make_image("in/z.png")
    Path("in/m.png").write_text("no image")
    status, said = upscale("in", "-o", "out")
    assert status == 1
    assert said.count("error") == 1
    assert "in/m.png: not an image" in said
    assert "2 of 3 images written to out, 1 failed" in said
    assert [name for name in files() if name.startswith("out")] == ["out/a.png", "out/z.png"]


def test_what_is_lost_is_said(upscale):
    frames = [Image.new("L", (8, 8), shade) for shade in (10, 200)]
    frames[0].save("in.gif", save_all=True, append_images=frames[1:])
    assert upscale("in.gif", "-o", "out.png") == (
        0,
        "cmslap upscale: warning: in.gif: of 2 frames only the first is read\n",
    )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("none.png", "-o", "x.png"), "none.png: no such file or folder"),
        (("none*.png", "-o", "x.png"), "none*.png: no file matches"),
        (("empty", "-o", "x"), "empty: no images in this folder (.png"),
        (("a.png", "b.png", "-o", "x.png"), "x.png is a file"),
        (("folder", "-o", "x.png"), "x.png is a file"),
        (("a.png", "b.png", "-o", "text"), "text is a file"),
        (("a.png", "-o", "a.png", "--overwrite"), "a.png is one of the inputs"),
        (("folder", "-o", "folder", "--overwrite"), "folder/a.png is one of the inputs"),
        (("folder", "a.png", "-o", "x"), "folder/a.png and a.png would both become x/a.png"),
        (("a.gif", "a.png", "-o", "x"), "a.gif and a.png would both become x/a.png"),
        (("a.png", "-o", "x.gif"), "x.gif: cannot write .gif; use one of .png"),
        (("alpha.png", "-o", "x.jpg"), "x.jpg: JPEG has no mode RGBA"),
        (("a.png", "-o", "x.webp", "-s", "4000"), "x.webp: WEBP is at most 16383"),
        (("a.png", "-o", "x.png", "--size", "9x7"), "a.png: size must be larger"),
        (("a.png", "-o", "x.png", "-s", "1e6"), "GiB of memory"),
        (("float.tif", "-o", "x.tif"), "float.tif: a floating-point image must lie in [0, 1]"),
        (("a.png", "-o", "text/x.png"), "text"),
    ],
)
def test_mistakes_are_one_line_and_write_nothing(upscale, arguments, said):
    for name in ("a.png", "b.png", "a.gif", "folder/a.png"):
        make_image(name)
    make_image("alpha.png", "RGBA")
    Image.new("F", (3, 3), 77).save("float.tif")
    Path("empty").mkdir()
    Path("text").write_text("not a folder")
    before = files()
    status, output = upscale(*arguments)
    lines = [line for line in output.splitlines() if "0 of 1 images" not in line]
    assert status == 1
    assert len(lines) == 1
    assert lines[0].startswith("cmslap upscale: error: ")
    assert said in lines[0]
    assert files() == before


@pytest.mark.parametrize("model", ["no-such-network", "none.safetensors"])
def test_a_missing_model_is_one_line(here, capsys, model):
    make_image("in.png")
    assert main(["upscale", "in.png", "-o", "out.png", "-m", model]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert model in error


def test_a_scale_the_network_has_no_levels_for_is_refused_once(here, tmp_path, capsys):
    save_model(cmslap.LapSRN(scale=2, depth=1, channels=2), tmp_path / "lapsrn.safetensors")
    make_image("in/a.png")
    make_image("in/b.png")
    assert main(["upscale", "in", "-o", "out", "-m", str(tmp_path / "lapsrn.safetensors"), "-s", "4"]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "up to 2" in error


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_cuda_without_a_gpu_is_one_line(checkpoint, here, capsys):
    make_image("in.png")
    assert main(["upscale", "in.png", "-o", "out.png", "-m", str(checkpoint), "--device", "cuda"]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "cuda" in error


@pytest.mark.parametrize(
    "arguments",
    [
        ("in.png",),
        ("-o", "out.png"),
        ("in.png", "-o", "out.png", "-s", "1"),
        ("in.png", "-o", "out.png", "-s", "nan"),
        ("in.png", "-o", "out.png", "-s", "4", "--size", "9x9"),
        ("in.png", "-o", "out.png", "--size", "9"),
        ("in.png", "-o", "out.png", "--size", "0x9"),
        ("in.png", "-o", "out.png", "-t", "-1"),
        ("in.png", "-o", "out.png", "--device", "tpu"),
    ],
)
def test_a_wrong_command_line_is_exit_status_2(arguments, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["upscale", *arguments])
    assert stopped.value.code == 2


def test_an_interruption_while_writing_leaves_no_half_file(upscale, monkeypatch):
    make_image("in.png")

    def save(self, path, *arguments, **options):
        Path(path).write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(Image.Image, "save", save)
    assert upscale("in.png", "-o", "out.png") == (130, "cmslap upscale: interrupted\n")
    assert files() == ["in.png"]


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_ctrl_c_ends_a_run_cleanly(here, tmp_path):
    """The real thing: a process that is busy with its second image when the signal comes."""
    save_model(cmslap.CMSLapSRN(recursions=8, channels=64), tmp_path / "slow.safetensors")
    make_image("in/a.png", size=(4, 4))
    make_image("in/b.png", size=(400, 400))
    process = subprocess.Popen(
        [sys.executable, "-m", "cmslap", "upscale", "in", "-o", "out", "-m", tmp_path / "slow.safetensors", "-t", "8"],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(cmslap.__file__).parents[1]), "OMP_NUM_THREADS": "1"},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
    )
    while not Path("out/a.png").exists() and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130
    assert error.splitlines()[-1] == "cmslap upscale: interrupted"
    assert files() == ["in/a.png", "in/b.png", "out/a.png"]


def test_progress_is_shown_on_a_terminal_only(upscale, monkeypatch, capsys):
    make_image("in/a.png")
    make_image("in/b.png")
    assert "image/s" not in upscale("in", "-o", "out")[1]
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    shown = upscale("in", "-o", "again", "-t", "4")[1]
    assert "image" in shown
    assert "tile" in shown
