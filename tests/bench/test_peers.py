"""Exporters and separate processes."""

import os
import time
import warnings
from dataclasses import replace
from functools import partial

import pytest
import torch

from bench.speed import baselines, work
from bench.speed.baselines import Baseline
from bench.speed.work import Setting, forward
from bench.speed.worker import Worker, WorkerError, Workers

TINY = Setting(side=8, channels=2, depth=1, recursions=1)


@pytest.fixture(autouse=True)
def _few_inputs(monkeypatch):
    monkeypatch.setattr(work, "CACHES", 1)


@pytest.mark.parametrize(
    ("baseline", "package"), [(baselines.ONNXRUNTIME, "onnxruntime"), (baselines.OPENVINO, "openvino")]
)
def test_exports_do_not_warn_of_sizes_that_become_constants(baseline, package):
    pytest.importorskip(package)
    with warnings.catch_warnings():
        warnings.simplefilter("error", torch.jit.TracerWarning)
        call = baseline.prepare(forward(2, TINY))
    assert call()


def _allocate(count, piece):
    assert os.environ["CMSLAP_TEST"] == "yes"
    return lambda: torch.ones(count)


def _missing(piece):
    raise ModuleNotFoundError("No module named 'baseline'")


def _end(piece):
    return lambda: os._exit(1)


def _called(count, piece):
    return lambda: [piece.function(*piece.inputs[0]) for _ in range(count)]


def _slow(piece):
    seconds = iter((0, 60))  # of the first call, which a limit of its own may end, and of the second
    return lambda: time.sleep(next(seconds))


def worker(prepare):
    return Worker({"CMSLAP_TEST": "yes"}).prepare(Baseline("baseline", prepare), partial(forward, 2), TINY)


def test_worker_has_its_own_environment_and_sees_the_peak_of_its_call():
    call = worker(partial(_allocate, 2**24))
    assert "CMSLAP_TEST" not in os.environ
    if call.peak_bytes is None:
        pytest.skip("this system does not say how much memory a process uses")
    assert 0.9 * 2**26 < call.peak_bytes < 1.5 * 2**26  # the system counts in steps


@pytest.mark.parametrize(
    ("prepare", "error", "message"),
    [
        (_missing, ImportError, "No module named 'baseline'"),
        (partial(_allocate, 2**50), MemoryError, "out of memory"),
        (_end, WorkerError, "process was ended"),
    ],
)
def test_what_goes_wrong_in_a_worker(prepare, error, message):
    with pytest.raises(error, match=message):
        worker(prepare)


def test_a_process_serves_all_cases_and_is_started_once_more():
    workers, build = Workers(), partial(forward, 2)
    fine, dying = Baseline("fine", partial(_called, 4)), Baseline("dying", _end)
    workers.start(["fine", "dying"])
    first = workers.of("fine")
    for _ in range(2):
        workers.start(["fine", "dying"])
        with pytest.raises(WorkerError, match="process was ended"):
            workers.of("dying").prepare(dying, build, TINY)
        call = workers.of("fine").prepare(fine, build, TINY)
        assert call is first
        assert call.facts == forward(2, TINY).facts
        assert 0 < call.seconds(2) < 60
        workers.release()
    workers.start(["dying"])
    with pytest.raises(WorkerError, match="start 2 of 2"):
        workers.of("dying")


def test_a_worker_that_does_not_answer_is_ended(monkeypatch):
    monkeypatch.setattr("bench.speed.worker.TURN_LIMIT", 0.2)
    call = Worker().prepare(Baseline("slow", _slow), partial(forward, 2), TINY)
    with pytest.raises(WorkerError, match=r"no answer within 0.2 s"):
        call()
    assert call.ended


def test_cases_can_be_sent_to_a_worker():
    """What a case is made of is picklable."""
    import pickle

    from bench.speed import cpu, gpu

    for case in (*cpu.cases("full").values(), *gpu.cases("full").values()):
        pickle.loads(pickle.dumps((replace(case, baselines=()), [baseline.prepare for baseline in case.baselines])))
