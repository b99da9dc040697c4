"""The README's figures are those of the committed JSON."""

import hashlib
import json
import sys

import pytest

from bench import report


def test_figures_are_up_to_date(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["report", "--check"])
    assert report.main() == 0, capsys.readouterr().out


@pytest.mark.parametrize("path", sorted(report.WEIGHTS.glob("*.evaluation*.json")), ids=lambda path: path.name)
def test_quality_is_that_of_the_shipped_weights(path):
    weights = report.WEIGHTS / f"{path.name.partition('.')[0]}.safetensors"
    assert json.loads(path.read_text())["model"]["sha256"] == hashlib.sha256(weights.read_bytes()).hexdigest()
