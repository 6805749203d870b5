"""What a result must carry to be checked: versions, commit, command line, machine."""

import platform
import shlex
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

CODE = (":/src", ":/scripts", ":/pyproject.toml", ":/constraints.txt")
PACKAGES = ("iltm-anomaly", "torch", "transformers", "accelerate", "datasets", "numpy", "performer-pytorch")


def commit() -> str | None:
    """Commit of the checkout this package is run from, "+changes" if code differs from it; None outside a checkout."""
    here = Path(__file__).resolve().parent

    def git(*arguments: str) -> str:
        words = ["git", "-C", str(here), *arguments]
        done = subprocess.run(words, capture_output=True, text=True, check=True, timeout=10)  # noqa: S603 - words of our own
        return done.stdout.strip()

    try:
        # A wheel in somebody else's repository must not claim that repository's commit.
        if Path(git("rev-parse", "--show-toplevel")) / "src" / "iltm_anomaly" != here:
            return None
        return git("rev-parse", "--short=12", "HEAD") + (
            "+changes" if git("status", "--porcelain", "--", *CODE) else ""
        )
    except (OSError, subprocess.SubprocessError):
        return None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def training_commit(report: dict[str, Any], number: int = -1) -> str | None:
    """The commit that a round of a run was trained at, by the run's training report; by default that of its last round.

    Rounds of early versions do not tell: the report's own commit, that of the last calibration, stands in for theirs.
    """
    rounds = report.get("rounds") or [{}]
    return rounds[number].get("commit", report.get("commit"))


def provenance(device: Any) -> dict[str, Any]:
    """{"versions", "commit", "command", "hardware"} of this process, which has computed on `device`."""
    import torch

    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "not installed"
    device = torch.device(device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _processor()
    return {
        "versions": versions,
        "commit": commit(),
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "hardware": {"device": name, "threads": torch.get_num_threads()},
    }
