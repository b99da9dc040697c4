"""A process of its own for one baseline: for settings read when a process starts, and to see its peak memory."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch

from bench.speed.baselines import Baseline
from bench.speed.timing import reason
from bench.speed.work import Build, Setting
from cmslap.inference.memory import available_memory

_RESERVE = 2**29  # bytes of the free memory that a worker leaves to the others


class WorkerError(RuntimeError):
    """What went wrong in the other process."""


class Worker:
    """A baseline's call, made in another process. That ends when this object goes.

    ``peak_bytes`` is what the first call took beyond what was there before it; None where the system does not say.
    """

    def __init__(self, baseline: Baseline, build: Build, setting: Setting) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        process = context.Process(
            target=_serve, args=(theirs, baseline, build, setting, torch.get_num_threads()), daemon=True
        )
        with _environment(baseline.environment or {}):
            process.start()
        theirs.close()
        weakref.finalize(self, _end, process)
        self.peak_bytes: int | None = self._answer()

    def __call__(self) -> None:
        self._pipe.send(None)
        self._answer()

    def _answer(self) -> int | None:
        try:
            error, value = self._pipe.recv()
        except EOFError:
            raise WorkerError("its process was ended, as systems do that are out of memory") from None
        if error is ImportError:
            raise ImportError(value)
        if error is MemoryError:
            raise MemoryError(value)
        if error:
            raise WorkerError(value)
        return value


def _end(process: BaseProcess) -> None:
    process.kill()
    process.join()


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    before = dict(os.environ)
    os.environ.update(variables)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _serve(pipe: Connection, baseline: Baseline, build: Build, setting: Setting, threads: int) -> None:
    """Make the first call, say what it took, and one more for each message."""
    torch.set_num_threads(threads)
    _limit_memory()
    try:
        call = baseline.prepare(build(replace(setting, layout=baseline.layout)))
        before = _forget_peak()
        call()
        peak = None if before is None else _status("VmHWM") - before
        pipe.send((None, peak))
        while True:
            pipe.recv()
            call()
            pipe.send((None, None))
    except EOFError:  # the other side has gone
        return
    except ImportError as error:
        pipe.send((ImportError, str(error)))
    except Exception as error:
        text = reason(error)
        pipe.send((MemoryError if text == "out of memory" else WorkerError, text))


def _limit_memory() -> None:
    """Let what takes too much fail here, before the system ends some process."""
    try:
        import resource
    except ImportError:  # not a Unix
        return
    limit = max(available_memory(torch.device("cpu")) - _RESERVE, _RESERVE)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))


def _forget_peak() -> int | None:
    """Start the peak anew; the memory in use now."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
        return _status("VmRSS")
    except (OSError, AttributeError):  # not Linux, or not GNU's library
        return None


def _status(key: str) -> int:
    """Bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"no {key}")
