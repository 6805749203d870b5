"""A tag becomes a release on PyPI: what the workflow does first is run here, and nothing in it knows a secret."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

REPOSITORY = Path(__file__).resolve().parents[1]
WORKFLOW = (REPOSITORY / ".github" / "workflows" / "release.yml").read_text(encoding="utf-8")
JOBS = yaml.safe_load(WORKFLOW)["jobs"]
FILES = ("scripts/release.py", "src/iltm_anomaly/__init__.py", "README.md", "CHANGELOG.md", "LICENSE", "CITATION.cff")


def step(job: str, word: str) -> dict:
    (found,) = (one for one in JOBS[job]["steps"] if word in one.get("name", one.get("uses", "")))
    return found


@pytest.fixture
def checkout(tmp_path) -> Path:
    """What the first step of the workflow reads, of version 1.2.3."""
    for name in FILES:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(REPOSITORY / name, tmp_path / name)
    shutil.copy(REPOSITORY / "SECURITY.md", tmp_path)
    shutil.copytree(REPOSITORY / "docs", tmp_path / "docs", ignore=shutil.ignore_patterns("results", "examples"))
    package, changes = tmp_path / FILES[1], tmp_path / "CHANGELOG.md"
    package.write_text(re.sub(r'(__version__ = )".*"', r'\1"1.2.3"', package.read_text()))
    changes.write_text(changes.read_text().replace("## Unreleased", "## 1.2.3"))
    return tmp_path


def prepare(checkout: Path, tag: str) -> subprocess.CompletedProcess:
    environment = os.environ | {"GITHUB_REF_NAME": tag, "GITHUB_REPOSITORY": "org/name"}
    command = ["bash", "-ec", step("build", "Check tag")["run"]]
    return subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True)


def test_links_and_pictures_of_the_readme_lead_to_the_tag(checkout):
    readme = checkout / "README.md"
    code = "```python\nparts[0](docs/method.md)\n```\n"
    kept = "[a](#use) [b](https://example.org/x.md) [c](mailto:a@example.org)"
    before = readme.read_text() + f"\n{kept} [d](docs/method.md#map)\n\n{code}"
    readme.write_text(before)
    done = prepare(checkout, "v1.2.3")
    assert done.returncode == 0, done.stderr
    text = readme.read_text()
    assert "![A good part" in text and "](https://raw.githubusercontent.com/org/name/v1.2.3/docs/demo.png)" in text
    assert "](https://github.com/org/name/blob/v1.2.3/SECURITY.md)" in text
    assert "[d](https://github.com/org/name/blob/v1.2.3/docs/method.md#map)" in text and kept in text and code in text
    targets = re.findall(r"\]\(([^)]+)\)|(?:src|href)=[\"']([^\"']+)", text.replace(code, ""))
    assert len(targets) > 20 and all(re.match("https://|#|mailto:", one or other) for one, other in targets)
    assert len(text.splitlines()) == len(before.splitlines())


@pytest.mark.parametrize(
    "tag, change, message",
    [
        ("v1.2.4", None, "the tag v1.2.4 is not v1.2.3"),
        ("v1.2.3", ("CHANGELOG.md", "## 1.2.3", "## Unreleased"), "under a heading '## 1.2.3'"),
        ("v1.2.3", ("README.md", "docs/method.md", "docs/gone.md"), "links to docs/gone.md, which is not there"),
    ],
)
def test_a_release_that_is_not_ready_stops_before_anything_is_built(checkout, tag, change, message):
    if change is not None:
        path = checkout / change[0]
        path.write_text(path.read_text().replace(*change[1:]))
    before = (checkout / "README.md").read_bytes()
    done = prepare(checkout, tag)
    assert done.returncode != 0 and message in done.stderr
    assert (checkout / "README.md").read_bytes() == before


def test_only_tags_publish_without_secrets_what_was_built_and_tried():
    assert yaml.safe_load(WORKFLOW)[True] == {"push": {"tags": ["v*"]}}  # the key "on" is a truth value to YAML 1.1
    assert "secrets." not in WORKFLOW and "password" not in WORKFLOW
    names = [one.get("name", one.get("uses", "")) for one in JOBS["build"]["steps"]]
    order = ["checkout", "setup-python", "Check tag", "Build", "Install the wheel", "upload-artifact"]
    assert len(names) == len(order) and all(word in name for word, name in zip(order, names, strict=True))
    tried = step("build", "Install the wheel")["run"]
    assert 'pip" install dist/*.whl' in tried and "constraint" not in tried and "iltm-anomaly demo" in tried
    publish = JOBS["publish"]
    assert publish["needs"] == "build" and publish["permissions"] == {"id-token": "write"}
    assert [one["uses"].split("@")[0] for one in publish["steps"]] == [
        "actions/download-artifact",
        "pypa/gh-action-pypi-publish",
    ]
    assert "permissions" not in JOBS["build"] and yaml.safe_load(WORKFLOW)["permissions"] == {"contents": "read"}
    # what the event says is read from the environment: in a command it would be run
    assert not any("${{" in one.get("run", "") for job in JOBS.values() for one in job["steps"])
