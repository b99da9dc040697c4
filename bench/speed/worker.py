"""A process of its own for one baseline: for settings read when a process starts, to see its peak memory, and on a GPU
so that an error that breaks the device for a process ends no other baseline's.
"""

from __future__ import annotations

import ctypes
import gc
import multiprocessing
import os
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch

from bench.speed.baselines import Baseline, backends_of
from bench.speed.timing import clock_of, reason, seconds_of
from bench.speed.work import Build, Setting
from cmslap.devices import PrecisionError
from cmslap.inference.tiling import available_memory

_RESERVE = 2**29  # bytes of the free memory that a worker leaves to the others
START_LIMIT = 120.0  # seconds until a worker's process has imported what it needs
TURN_LIMIT = 60.0  # seconds that a worker may need for a turn, before its process is taken to hang
MOST_STARTS = 2  # of a baseline's process, in one run


class WorkerError(RuntimeError):
    """What went wrong in the other process."""


_ERRORS = {error.__name__: error for error in (ImportError, PrecisionError, MemoryError, WorkerError)}


class Worker:
    """A process that makes one baseline's calls; it ends when this object goes, or when a call fails.

    Once there is work, ``facts`` are its own, ``backends`` says which of ours ran each operation, and ``peak_bytes``
    what a call took beyond what was there before it; None where the system does not say.
    """

    def __init__(self, environment: Mapping[str, str] | None = None) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        process = context.Process(
            target=_serve, args=(theirs, torch.get_num_threads(), torch.backends.cudnn.benchmark), daemon=True
        )
        with _environment(environment or {}):
            process.start()
        theirs.close()
        self._end = weakref.finalize(self, _end, process)
        self._started = False

    def wait(self) -> None:
        """Until its process has started: what follows is timed."""
        if not self._started:
            self._answer(START_LIMIT)
            self._started = True

    @property
    def ended(self) -> bool:
        return not self._end.alive

    def prepare(self, baseline: Baseline, build: Build, setting: Setting) -> Worker:
        """Build the work and make the first call."""
        self.wait()
        self.facts, self.backends, self.peak_bytes = self._ask("prepare", baseline, build, setting)
        return self

    def seconds(self, calls: int) -> float:
        """Seconds a call, over ``calls`` of them, on the process's own clock."""
        return self._ask("seconds", calls, limit=TURN_LIMIT)

    def __call__(self) -> None:
        self.seconds(1)

    def release(self) -> None:
        """Give back what the work holds."""
        self._ask("release", limit=TURN_LIMIT)

    def _ask(self, question: str, *arguments: object, limit: float | None = None) -> object:
        with suppress(BrokenPipeError):  # the answer's absence says so, too
            self._pipe.send((question, arguments))
        return self._answer(limit)

    def _answer(self, limit: float | None) -> object:
        try:
            if not self._pipe.poll(limit):
                raise WorkerError(f"no answer within {limit:g} s, so its process was ended")
            kind, answer = self._pipe.recv()
        except (EOFError, ConnectionResetError):
            self._end()
            raise WorkerError("its process was ended, as systems do that are out of memory") from None
        except BaseException:  # a time limit's, too
            self._end()
            raise
        if kind is None:
            return answer
        error, broken = answer
        if broken:
            self._end()
        raise _ERRORS[kind](error)


class Workers:
    """A process for every baseline, which serves all cases. One that had to be ended is started once more."""

    def __init__(self) -> None:
        self._workers: dict[str, Worker] = {}
        self._starts: dict[str, int] = {}

    def start(self, names: list[str]) -> None:
        """Those that are not there, at the same time, as each takes seconds."""
        absent = [name for name in names if name not in self._workers or self._workers[name].ended]
        absent = [name for name in absent if self._starts.get(name, 0) < MOST_STARTS]
        for name in absent:
            self._workers[name] = Worker()
            self._starts[name] = self._starts.get(name, 0) + 1
        for name in absent:
            with suppress(WorkerError):  # says so again when it is asked
                self._workers[name].wait()

    def of(self, name: str) -> Worker:
        if self._workers[name].ended:
            raise WorkerError(f"left out: its process was ended, start {self._starts[name]} of {MOST_STARTS}")
        return self._workers[name]

    def release(self) -> None:
        """Give back what the last case's work holds; a process that can't is ended."""
        for worker in self._workers.values():
            if not worker.ended:
                try:
                    worker.release()
                except WorkerError:
                    worker._end()


def _end(process: BaseProcess) -> None:
    process.kill()
    process.join(10)  # one that waits for a broken device may stay


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    before = dict(os.environ)
    os.environ.update(variables)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _serve(pipe: Connection, threads: int, benchmark: bool) -> None:
    """Answer every question by (None, value), or by the error's kind and (text, whether the device is broken)."""
    torch.set_num_threads(threads)
    torch.backends.cudnn.benchmark = benchmark
    served = _Served()
    pipe.send((None, None))
    while True:
        try:
            question, arguments = pipe.recv()
        except EOFError:  # the other side has gone
            return
        try:
            answer = None, getattr(served, question)(*arguments)
        except (ImportError, PrecisionError) as error:
            kind = "ImportError" if isinstance(error, ImportError) else "PrecisionError"
            answer = kind, (str(error), False)
        except Exception as error:
            text = reason(error)
            answer = "MemoryError" if text == "out of memory" else "WorkerError", (text, served.broken())
        pipe.send(answer)


class _Served:
    """What a worker's process has at hand."""

    def __init__(self) -> None:
        self.call, self.device = None, torch.device("cpu")

    def prepare(
        self, baseline: Baseline, build: Build, setting: Setting
    ) -> tuple[dict[str, Any], dict[str, list[str]], int | None]:
        """Make the first call. Peak memory is that call's on a CPU, and on a GPU that of one more."""
        self.device = setting.device
        on_gpu = self.device.type == "cuda"
        if not on_gpu:
            _limit_memory()
        work = build(replace(setting, layout=baseline.layout))
        self.call = baseline.prepare(work)
        before = None if on_gpu else _forget_peak()
        self.call()
        if on_gpu:
            peak = _peak_on_gpu(self.call, self.device)
        else:
            peak = None if before is None else _status("VmHWM") - before
        return work.facts, backends_of(self.call), peak

    def seconds(self, calls: int) -> float:
        return seconds_of(self.call, calls, clock_of(self.device))

    def release(self) -> None:
        self.call = None
        torch.compiler.reset()  # gives back what a case's graphs hold
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def broken(self) -> bool:
        """Whether CUDA serves this process no more."""
        try:
            clock_of(self.device)()
        except RuntimeError:
            return True
        return False


def _peak_on_gpu(call: object, device: torch.device) -> int:
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    call()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def _limit_memory() -> None:
    """Let what takes too much fail here, before the system ends some process."""
    try:
        import resource
    except ImportError:  # not a Unix
        return
    limit = max(available_memory(torch.device("cpu")) - _RESERVE, _RESERVE)
    hard = resource.getrlimit(resource.RLIMIT_DATA)[1]  # stays, as the next case's limit may be higher
    resource.setrlimit(resource.RLIMIT_DATA, (limit, hard))


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
