"""The README's figures are those of the committed JSON."""

import sys

from bench import report


def test_figures_are_up_to_date(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["report", "--check"])
    assert report.main() == 0, capsys.readouterr().out
