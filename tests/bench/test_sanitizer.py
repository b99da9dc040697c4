"""``make gpu-sanitize`` without a GPU: what it records of each tool's outcome."""

import json

import pytest
import torch

from bench.gpu import sanitizer

SCRIPT = """#!/bin/sh
case "$2" in
    memcheck) echo "========= ERROR SUMMARY: 0 errors" ;;
    racecheck) echo "========= RACECHECK SUMMARY: 3 hazards displayed (3 errors, 0 warnings)"; exit 9 ;;
    initcheck) exec sleep 30 ;;
    *) exit 1 ;;
esac
"""


@pytest.fixture
def gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a device")


@pytest.mark.usefixtures("gpu")
def test_outcomes(tmp_path, monkeypatch):
    program = tmp_path / "compute-sanitizer"
    program.write_text(SCRIPT)
    program.chmod(0o755)
    monkeypatch.setattr(sanitizer, "sanitizer", lambda: str(program))
    monkeypatch.setattr(sanitizer, "BUILD", ("true",))
    assert sanitizer.main(["--json", str(tmp_path / "out.json"), "--limit", "2"]) == 1
    record = json.loads((tmp_path / "out.json").read_text())
    assert record["device"] == "a device"
    assert {tool: found["outcome"] for tool, found in record["tools"].items()} == {
        "memcheck": "ok",
        "racecheck": "found errors",
        "initcheck": "stopped after 2 s",
        "synccheck": "exit status 1",
    }
    assert record["tools"]["racecheck"]["summary"].startswith("RACECHECK SUMMARY: 3 hazards")


@pytest.mark.usefixtures("gpu")
def test_without_the_tool(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sanitizer, "sanitizer", lambda: None)
    assert sanitizer.main(["--json", str(tmp_path / "out.json")]) == 1
    assert capsys.readouterr().err == "there is no compute-sanitizer\n"
    assert not (tmp_path / "out.json").exists()
