"""Settings of the whole suite: no network, one thread, and the place of the real data."""

import os
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

# Before the first import of torch and of Hugging Face libraries, which read them once. Child processes inherit them.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")  # bits must not depend on how many cores are free

import pytest


@pytest.fixture(autouse=True)
def forget_accelerate() -> Iterator[None]:
    """accelerate keeps precision and device of a process: no test must depend on those before it."""
    yield
    if "accelerate" in sys.modules:
        from accelerate.state import AcceleratorState

        AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder of real data sets, see its README; `ILTM_DATA` says where it is."""
    folder = Path(os.environ.get("ILTM_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"needs the real data: no folder {folder} (set ILTM_DATA to it)")
    return folder


@pytest.fixture(scope="session")
def run_fresh() -> Callable[..., str]:
    """Runs Python code in a fresh, offline process with `arguments` in sys.argv[1:]; returns what it printed."""

    def run(code: str, *arguments: object) -> str:
        command = [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run
