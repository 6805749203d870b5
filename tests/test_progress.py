"""How far a task is, where no terminal draws bars: a line now and then."""

import sys

from iltm_anomaly import progress as module
from iltm_anomaly.progress import progress


def test_a_short_task_says_nothing_in_a_log(capsys):
    assert list(progress(range(5), desc="reading")) == list(range(5))
    with progress(total=5, desc="scoring") as bar:
        bar.update(5)
    assert capsys.readouterr().err == ""


def test_a_long_one_has_whole_lines(capsys, monkeypatch):
    monkeypatch.setattr(module, "SECONDS", 0)
    list(progress(range(3), desc="reading"))
    said = capsys.readouterr().err
    assert said.splitlines()[-1].startswith("reading: 3 of 3, ")
    assert "\r" not in said and all(line.startswith("reading: ") for line in said.splitlines())


def test_a_terminal_has_a_bar_and_a_hidden_task_nothing(capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    list(progress(range(3), hidden=True))
    assert capsys.readouterr().err == ""
    list(progress(range(3), desc="reading"))
    assert "\rreading: 100%" in capsys.readouterr().err
