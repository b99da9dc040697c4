"""Writing files: whole or not at all, links followed, devices and pipes written to, left-overs removed."""

import os
import signal
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from cmslap.errors import UserError
from cmslap.files import OutputError, check_output, replacing

WRITE = "import sys; from cmslap.files import replacing\nwith replacing(sys.argv[1]) as path: path.write_text('new')"


def write(path, text="new"):
    with replacing(path) as temporary:
        temporary.write_text(text)


def everything(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_appears_whole_with_an_ordinary_mode(tmp_path):
    old = os.umask(0o027)
    try:
        write(tmp_path / "deeper" / "a.txt")
    finally:
        os.umask(old)
    assert (tmp_path / "deeper" / "a.txt").read_text() == "new"
    assert stat.S_IMODE((tmp_path / "deeper" / "a.txt").stat().st_mode) == 0o640
    assert everything(tmp_path / "deeper") == ["a.txt"]


def test_a_replaced_file_keeps_its_mode(tmp_path):
    (tmp_path / "a.txt").write_text("old")
    (tmp_path / "a.txt").chmod(0o600)
    write(tmp_path / "a.txt")
    assert stat.S_IMODE((tmp_path / "a.txt").stat().st_mode) == 0o600


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_failure_leaves_what_was_there(tmp_path, error):
    (tmp_path / "a.txt").write_text("old")

    def fail():
        with replacing(tmp_path / "a.txt") as temporary:
            temporary.write_text("half")
            raise error

    with pytest.raises(error):
        fail()
    assert (tmp_path / "a.txt").read_text() == "old"
    assert everything(tmp_path) == ["a.txt"]


def test_links_are_followed(tmp_path):
    (tmp_path / "there").mkdir()
    for name in ("exists", "dangles"):
        (tmp_path / name).symlink_to(tmp_path / "there" / name)
    (tmp_path / "there" / "exists").write_text("old")
    for name in ("exists", "dangles"):
        write(tmp_path / name)
        assert (tmp_path / name).is_symlink()
        assert (tmp_path / "there" / name).read_text() == "new"
    assert everything(tmp_path / "there") == ["dangles", "exists"]


def test_a_pipe_is_written_to(tmp_path):
    pipe = tmp_path / "pipe.txt"
    os.mkfifo(pipe)
    check_output(pipe)  # and is nothing that would be replaced
    received = []
    reader = threading.Thread(target=lambda: received.append(pipe.read_text()))
    reader.start()
    write(pipe)
    reader.join(timeout=30)
    assert received == ["new"]
    assert pipe.is_fifo()


def test_a_device_stays_one(tmp_path):
    device = tmp_path / "null"
    try:
        os.mknod(device, stat.S_IFCHR | 0o666, os.makedev(1, 3))
    except PermissionError:
        pytest.skip("making device nodes is not permitted here")
    check_output(device)
    write(device)
    assert device.is_char_device()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_a_full_device_is_named():
    with pytest.raises(OutputError, match=r"^/dev/full: cannot be written .No space left on device"):
        write("/dev/full")


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="there is no /proc")
@pytest.mark.parametrize("redirected", ["pipe", "file"])
def test_standard_output_by_name(tmp_path, redirected):
    """What was printed before is still there, too."""
    link = tmp_path / "stdout.txt"
    link.symlink_to("/proc/self/fd/1")
    command = [sys.executable, "-c", "print('first')\n" + WRITE, str(link)]
    if redirected == "pipe":
        said = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    else:
        with (tmp_path / "out").open("w") as out:
            subprocess.run(command, stdout=out, check=True)
        said = (tmp_path / "out").read_text()
    assert said == "first\nnew"
    assert link.is_symlink()


@pytest.mark.parametrize("suffix", [".safetensors", "." + "x" * 200])
def test_a_name_may_be_as_long_as_the_system_lets_it(tmp_path, suffix):
    longest = tmp_path / ("n" * (255 - len(suffix)) + suffix)
    check_output(longest)
    write(longest)
    assert everything(tmp_path) == [longest.name]
    for too_long in (check_output, write):
        with pytest.raises(OutputError, match=r"nn: cannot be written .File name too long"):
            too_long(tmp_path / ("n" * 256))


def test_what_a_killed_process_left_is_removed_by_the_next(tmp_path):
    target = tmp_path / "a.txt"
    other = tmp_path / "other.txt"
    killed = WRITE.replace("path.write_text('new')", "path.write_text('half'); import os; os.kill(os.getpid(), 9)")
    for path in (target, other):
        assert subprocess.run([sys.executable, "-c", killed, str(path)]).returncode == -signal.SIGKILL
    assert len(everything(tmp_path)) == 2
    write(target)
    left = everything(tmp_path)
    assert len(left) == 2  # that of another target is not this one's to remove
    assert "a.txt" in left
    write(other)
    assert everything(tmp_path) == ["a.txt", "other.txt"]


def test_a_file_in_the_making_is_no_leftover(tmp_path):
    with replacing(tmp_path / "a.txt") as slow:
        slow.write_text("slow")
        write(tmp_path / "a.txt", "quick")
        assert (tmp_path / "a.txt").read_text() == "quick"
    assert (tmp_path / "a.txt").read_text() == "slow"


@pytest.mark.parametrize(
    ("name", "said"),
    [("file", "file exists; give --overwrite"), ("folder", "folder is a folder"), ("file/below", "Not a directory")],
)
def test_what_cannot_be_written_is_found_before_the_work(tmp_path, name, said):
    (tmp_path / "file").write_text("old")
    (tmp_path / "folder").mkdir()
    with pytest.raises(OutputError, match=said) as caught:
        check_output(tmp_path / name)
    assert str(caught.value).startswith(str(tmp_path / name))
    assert isinstance(caught.value, UserError)
    assert everything(tmp_path) == ["file", "folder"]


def test_checking_touches_nothing(tmp_path):
    (tmp_path / "file").write_text("old")
    check_output(tmp_path / "file", overwrite=True)
    check_output(tmp_path / "new" / "deeper" / "file")
    assert everything(tmp_path) == ["file"]
    assert (tmp_path / "file").read_text() == "old"


@pytest.mark.skipif(not Path("/proc/version").exists(), reason="there is no /proc")
def test_a_folder_that_takes_no_files_is_found_before_the_work():
    with pytest.raises(OutputError, match=r"^/proc/cmslap.txt: cannot be written"):
        check_output("/proc/cmslap.txt")
