"""Wheel and sdist, built as for PyPI from the files under version control, hold all that the package reads."""

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from iltm_anomaly import __version__

REPOSITORY = Path(__file__).resolve().parents[1]
BUILD = "from setuptools import build_meta as b; b.build_sdist('dist'); b.build_wheel('dist')"


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    """`dist` of a copy, so that nothing is left in the repository."""
    folder = tmp_path_factory.mktemp("copy")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, folder)
    shutil.copytree(REPOSITORY / "src", folder / "src", ignore=shutil.ignore_patterns("*.egg-info", "__pycache__"))
    (folder / "dist").mkdir()
    done = subprocess.run([sys.executable, "-c", BUILD], cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return folder / "dist"


def test_both_hold_every_file_of_the_package(built):
    package = REPOSITORY / "src" / "iltm_anomaly"
    files = {f"iltm_anomaly/{path.relative_to(package).as_posix()}" for path in package.rglob("*") if path.is_file()}
    files = {name for name in files if "__pycache__" not in name}
    assert {"iltm_anomaly/py.typed", "iltm_anomaly/recipes/presets/features.yaml"} < files
    (wheel,), (source,) = built.glob("*.whl"), built.glob("*.tar.gz")
    with zipfile.ZipFile(wheel) as archive:
        inside = set(archive.namelist())
        (entry,) = (name for name in inside if name.endswith("entry_points.txt"))
        assert "iltm-anomaly = iltm_anomaly.cli:main" in archive.read(entry).decode()
    assert files <= inside
    assert {name for name in inside if ".dist-info/" not in name} == files
    with tarfile.open(source) as archive:
        held = {name.split("/", 1)[-1].removeprefix("src/") for name in archive.getnames()}
    assert files <= held and {"README.md", "LICENSE", "pyproject.toml"} <= held


def test_the_wheel_alone_scores_and_has_the_command(built, tmp_path):
    """Outside of the repository, without its `src` on the path; what it depends on is that of the tests."""
    (wheel,) = built.glob("*.whl")
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", "site", wheel]
    subprocess.run(install, cwd=tmp_path, check=True)
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "site")}

    def run(*words: str) -> str:
        done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert run(sys.executable, "-c", "import iltm_anomaly as i; print(i.__file__)").startswith(str(tmp_path / "site"))
    command = (sys.executable, "site/bin/iltm-anomaly")
    assert run(*command, "--version").strip() == __version__
    space = REPOSITORY / "space"
    assert "1 scored, 1 abnormal" in run(
        *command, "detect", space / "model", space / "examples" / "scratch.png", "--output", "found"
    )


def test_the_demo_is_installed_without_tools_of_development(tmp_path):
    def planned(target: str) -> str:
        command = ["make", "--dry-run", target, f"VENV={tmp_path}"]
        return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout

    demo, test = planned("demo"), planned("test")
    assert "--editable .\n" in demo and "[dev]" not in demo and "iltm-anomaly demo" in demo
    assert "--editable .\n" in test and "[dev]" in test and "pytest" in test


def test_the_lowest_constraints_are_the_lower_bounds_that_are_declared():
    import tomllib

    declared = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]["dependencies"]
    bounds = dict(line.split(",")[0].split(">=") for line in declared if ">=" in line)
    lines = (REPOSITORY / "constraints-lowest.txt").read_text(encoding="utf-8").splitlines()
    for name, version in (line.split("==") for line in lines if not line.startswith("#")):
        wanted = [*map(int, bounds[name].split("."))]
        assert [*map(int, version.split("."))][: len(wanted)] == wanted, name
