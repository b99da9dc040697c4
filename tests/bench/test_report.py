"""Plots, the README's tables, and what changed between two runs."""

import copy
import json

import pytest

from bench import compare, report


@pytest.fixture
def folder(record, tmp_path):
    """A device's results: two suites, one of them in two files."""
    pytest.importorskip("matplotlib")
    out = tmp_path / "device"
    out.mkdir()
    for index, result in enumerate(record["results"]):
        (out / f"{index}.json").write_text(json.dumps({**record, "results": [result]}))
    (out / "scaling.json").write_text(json.dumps({**record, "suite": "scaling"}))
    (out / "busy.json").write_text(json.dumps({**record, "busy": 2}))
    (out / "run.json").write_text("[]")
    return out


def test_files_of_a_suite_belong_together(folder, record):
    found = report.speeds(folder)
    assert [{**row, "run": None} for row in found["cpu"]] == [{**row, "run": None} for row in record["results"]]
    assert set(found) == {"cpu", "scaling"}


def test_runs_of_several_commits_name_them_all(record, tmp_path):
    """With the ceilings of each, as machines of one name differ; what varied is marked."""
    faster = copy.deepcopy(record) | {"commit": "def"}
    faster["ceilings"] = {name: rate * 2 for name, rate in record["ceilings"].items() if name != "dtype"}
    faster["ceilings"]["dtype"] = record["ceilings"]["dtype"]
    faster["results"] = faster["results"][:1]
    faster["results"][0]["size"] = "another"
    eager = faster["results"][0]["timings"]["eager"]
    eager |= {"low": eager["median"] * 0.8, "high": eager["median"] * 1.1}
    for name, run in {"a": record, "b": faster}.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(run))
    text = report._rows(report.speeds(tmp_path)["cpu"])
    assert "commit `abc` and `def`" in text
    assert "200 to 400 GFLOP/s" in text
    assert "| conv forward, another | 10.0 ms | ~2.00x |" in text
    assert "| conv forward, 1×1×8×8 | 10.0 ms | 2.00x |" in text


def test_a_summary_of_several_steps(record, tmp_path):
    """One row for the same work, with the baselines of both steps; and the bars."""
    later = copy.deepcopy(record)
    timings = later["results"][0]["timings"]
    timings["torch.compile"] = timings.pop("eager") | {"speedup": 1.25}
    bars = [{"text": "a bar: reached"}]
    (tmp_path / "summary.json").write_text(json.dumps({"records": {"a": record, "b": later}, "bars": bars}))
    text = report._speed(report.speeds(tmp_path)["cpu"], tmp_path)
    assert text.count("| conv forward, 1×1×8×8 |") == 1
    assert "| conv forward, 1×1×8×8 | 10.0 ms | 50% | 2.00x | 1.25x |" in text
    assert report._bars(tmp_path) == "- a bar: reached"


def test_plots(folder, tmp_path):
    report.draw(folder, tmp_path)
    for name in ("speed-networks", "scaling"):
        image = (tmp_path / f"{name}-device.png").read_bytes()
        assert image.startswith(b"\x89PNG")
        assert len(image) < 100_000


def test_table(folder):
    text = report._speed(report.speeds(folder)["cpu"], folder)
    assert "| conv forward, 1×1×8×8 | 10.0 ms | 50% | 2.00x |" in text
    assert "Slower than a baseline: a folder (eager 0.50x)." in text
    assert "commit `abc`" in text


@pytest.fixture
def runs(record, tmp_path):
    """Two files, the second as changed by the given function; runs ``bench.compare`` on them."""

    def compare_with(change, *options):
        after = copy.deepcopy(record)
        change(after["results"])
        paths = [tmp_path / "a.json", tmp_path / "b.json"]
        for path, content in zip(paths, (record, after), strict=True):
            path.write_text(json.dumps(content))
        return compare.main([*map(str, paths), *options])

    return compare_with


def scale(results, name, factor):
    row = results[0]["timings"][name]
    row |= {key: row[key] * factor for key in ("median", "low", "high")}


@pytest.mark.parametrize(
    ("name", "factor", "status", "line"),
    [
        ("cmslap", 1.5, 1, "1.50x slower"),
        ("cmslap", 0.5, 0, "2.00x faster"),
        ("cmslap", 1.1, 0, None),  # the quartiles meet
        ("eager", 2.0, 0, "2.00x slower"),  # not ours
    ],
)
def test_changes_beyond_the_noise(runs, capsys, name, factor, status, line):
    assert runs(lambda results: scale(results, name, factor)) == status
    out = capsys.readouterr().out
    assert (line or "4 as fast as before") in out
    assert "arithmetic 1.00x" in out


def test_small_changes_are_noise(runs):
    def narrow(results):
        results[0]["timings"]["cmslap"] |= {"median": 0.0115, "low": 0.0112, "high": 0.0118}

    assert runs(narrow) == 1
    assert runs(narrow, "--threshold", "20") == 0


def test_what_cannot_be_compared(runs, tmp_path, capsys):
    with pytest.raises(SystemExit) as error:
        runs(lambda results: results.clear())
    assert error.value.code == 2
    assert "no row in common" in capsys.readouterr().err
    with pytest.raises(SystemExit) as error:
        compare.main([str(tmp_path / "absent.json"), str(tmp_path / "absent.json")])
    assert error.value.code == 2
