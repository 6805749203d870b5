"""One process at a time."""

import subprocess
import sys

import pytest
from filelock import Timeout

from iltm_anomaly.locks import InUseError, locked

HOLD = """
import sys, time
from pathlib import Path
from iltm_anomaly.locks import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


def test_who_holds_a_lock_is_told_and_who_is_dead_holds_none(tmp_path):
    path = tmp_path / "run" / ".lock"
    other = subprocess.Popen([sys.executable, "-c", HOLD, path], stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(InUseError, match=rf"run is in use by process {other.pid} on .* since 20"), locked(path):
            pass
    finally:
        other.kill()
        other.wait()
    assert path.with_name(".lock.holder").exists()  # of the dead process
    with locked(path), pytest.raises(InUseError), locked(path):
        pass
    assert [file.name for file in path.parent.iterdir()] == [".lock"]


def test_an_error_of_the_block_is_its_own(tmp_path):
    with pytest.raises(Timeout), locked(tmp_path / ".lock"):
        raise Timeout("of another lock")
    with locked(tmp_path / ".lock", wait=True):
        pass
