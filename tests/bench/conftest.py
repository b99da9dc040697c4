"""Small inputs, and a record of figures."""

import pytest
from small_suites import CEILINGS

from bench.speed import end_to_end, load, work
from cmslap.compiler import backend


@pytest.fixture
def small(monkeypatch):
    """Two inputs a case, and small images; the machine's load is not asked for, and nothing compiled as C++."""
    monkeypatch.setattr(load, "others", lambda: None)
    monkeypatch.setattr(work, "CACHES", 1)
    monkeypatch.setattr(backend, "_has_compiler", lambda device: False)
    monkeypatch.setattr(end_to_end, "SMALLEST", 4)
    monkeypatch.setattr(end_to_end, "LARGEST", 6)
    monkeypatch.setattr(end_to_end, "FIRST_SIDE", 4)


@pytest.fixture
def record():
    """A record as ``python -m bench --json`` writes it, with one row slower than a baseline and one that failed."""

    def timing(median, speedup, **more):
        return {"median": median, "low": 0.9 * median, "high": 1.1 * median, "best": median, "speedup": speedup, **more}

    def result(case, name, gflop, **more):
        facts = {
            "case": case,
            "others": 0.01,
            "name": name,
            "dtype": "float32",
            "size": "1×1×8×8",
            "pixels": 64,
            "images": 0,
        }
        work = {"gflop": gflop, "gbyte": gflop / 10, "floor_seconds": gflop / 200}
        outcome = {"baseline": "cmslap", "absent": {"OpenVINO": "No module named 'openvino'"}, "failed": {}}
        return {**facts, **work, **outcome, **more}

    quick = {"cmslap": timing(0.01, 1.0, share_of_floor=0.5), "eager": timing(0.02, 2.0, share_of_floor=0.25)}
    slow = {"cmslap": timing(2.0, 1.0, images_per_second=0.5, peak_bytes=2**30), "eager": timing(1.0, 0.5)}
    return {
        **{"commit": "abc", "cmslap": "1.2.3", "python": "3.12.0", "torch": "2.10.0", "numpy": "2.0.0"},
        **{"pillow": "12.0.0", "device": "A processor", "on": "cpu", "threads": 2},
        **{"capability": "AVX2", "runtimes": {"OpenVINO": "2026.1"}, "seconds": 90.0},
        **{"suite": "cpu", "effort": "usual", "rounds": 9, "ceilings": CEILINGS},
        "results": [
            result("conv", "conv forward", 1.0, timings=quick),
            result("folder", "a folder", 0.0, timings=slow, failed={"torch.compile": "out of memory"}),
        ],
    }
