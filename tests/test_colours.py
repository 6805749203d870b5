"""Colours are for terminals: what a program or a file reads is plain."""

import io
import logging
import os
import subprocess
import sys

import pytest

from iltm_anomaly.colours import PaintedLevels

pty = pytest.importorskip("pty", reason="Windows has no pseudo-terminals")
COMMAND = [sys.executable, "-m", "iltm_anomaly.cli", "detect", "nowhere/at/all", "x.png", "--output", "found"]
MESSAGE = "no pipeline folder at nowhere/at/all"


def said_on_a_terminal(**environment: str) -> str:
    """What the command says of a model that is not there, on a terminal."""
    ours, theirs = pty.openpty()
    plain = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "TERM")}
    done = subprocess.run(COMMAND, stderr=theirs, stdout=subprocess.DEVNULL, env=plain | environment)
    os.close(theirs)
    said = os.read(ours, 4096).decode()
    os.close(ours)
    assert done.returncode == 2 and MESSAGE in said
    return said


def test_an_error_is_red_on_a_terminal_that_shows_colours():
    assert said_on_a_terminal(TERM="xterm").startswith(f"\x1b[1;31miltm-anomaly detect:\x1b[0m {MESSAGE}")
    for environment in ({"TERM": "dumb"}, {"TERM": "xterm", "NO_COLOR": "1"}):
        assert said_on_a_terminal(**environment).startswith(f"iltm-anomaly detect: {MESSAGE}")
    piped = subprocess.run(COMMAND, capture_output=True, text=True, env=os.environ | {"TERM": "xterm"})
    assert piped.stderr.startswith(f"iltm-anomaly detect: {MESSAGE}")


def test_a_warning_is_yellow_and_information_plain(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    terminal = io.StringIO()
    terminal.isatty = lambda: True

    def formatted(level: int, stream: io.StringIO) -> str:
        return PaintedLevels(stream).format(logging.LogRecord("x", level, "", 0, "%d images", (3,), None))

    assert formatted(logging.WARNING, terminal) == "\x1b[1;33mWARNING\x1b[0m 3 images"
    assert formatted(logging.INFO, terminal) == "INFO 3 images"
    assert formatted(logging.WARNING, io.StringIO()) == "WARNING 3 images"
