"""A folder beside an output, for what a kill should not lose."""

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from cmslap.files import replacing
from cmslap.training.directory import claimed
from cmslap.video.reading import VideoError

_NOTE = "settings.json"


@contextmanager
def working_in(work: Path, settings: Mapping[str, object], keep: bool = False) -> Iterator[None]:
    """This process's alone. Of a run with the same ``settings``, which then goes on, or new; removed in the end.

    Raises :class:`VideoError` where a run with other settings has left it.
    """
    with claimed(work):
        note, text = work / _NOTE, json.dumps(settings, indent=1)
        if note.exists() and note.read_text(encoding="utf-8") != text:
            raise VideoError(f"{work} has the beginning of another run: repeat that one, or remove the folder")
        if not note.exists():
            with replacing(note) as temporary:
                temporary.write_text(text, encoding="utf-8")
        yield
        if not keep:
            shutil.rmtree(work)


def beside(out: Path) -> Path:
    """The folder of the run that writes ``out``."""
    return out.with_name(f"{out.name}.work")


def identity(path: Path) -> list[str | int]:
    """What tells a file from another one of its name. Raises :class:`VideoError` where there is none."""
    if not path.is_file():
        raise VideoError(f"{path}: no such file")
    status = path.stat()
    return [str(path.resolve()), status.st_size, status.st_mtime_ns]
