"""`iltm-anomaly push`: a pipeline folder or a Space folder to the Hub, as one commit of a known list of files."""

import io
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import HfHubHTTPError, HTTPError
from PIL import Image

from iltm_anomaly.hub.cards import MARKER, load_results, render_card
from iltm_anomaly.hub.checks import REPORT, belongs, check_folder, check_shape, read_json
from iltm_anomaly.hub.data_sources import public_name
from iltm_anomaly.hub.folders import PIPELINE_FILES, SECOND_VIEW, check_repo_id
from iltm_anomaly.hub.parts import expected_classes, read_folder_settings

# Nothing but these ever goes up: no data, no checkpoints, no logs.
MODEL_FILES = (*PIPELINE_FILES, "picture.png", ".eval_results/*.yaml")
SPACE_FILES: tuple[str, ...] = ("README.md", "*.py", "requirements.txt", "packages.txt", "examples/*.png")
SPACE_FILES += tuple(f"model/{name}" for name in MODEL_FILES)  # a Space may carry its model
SECRETS = {
    "a Hugging Face token": r"\bhf_[A-Za-z0-9]{20,}",
    "a GitHub token": r"\b(gh[pousr]|github_pat)_[A-Za-z0-9_]{20,}",
    "a Slack token": r"\bx(ox[a-z]|app)-[A-Za-z0-9-]{10,}|hooks\.slack\.com/services/\w+/\w+/\w+",
    "a Google key": r"\bAIza[A-Za-z0-9_-]{35}|\bGOCSPX-[A-Za-z0-9_-]{20,}|\bya29\.[A-Za-z0-9_-]{20,}",
    "an AWS key": r"\bAKIA[0-9A-Z]{16}\b",
    "an API key": r"\bsk-[A-Za-z0-9_-]{20,}",
    "a private key": r"-----BEGIN [A-Z ]*PRIVATE KEY-----",
    "a password in an address": r"\b[A-Za-z][A-Za-z0-9+.-]*://[^\s/:@'\"<>]*:[^\s/@'\"<>]+@",
}
# Of Windows: names of folders may hold spaces, and that of the last part ends at one.
DRIVE_PATH = r"(?:\b[A-Za-z]:[\\/]+|\\\\)(?:[^\\/:*?'\"<>|\r\n]+[\\/]+)*[^\\/:*?'\"<>|\s]*"
ANY_PATH = r"[^\s'\"=]*[/\\][^\s'\"=]*"
MOST_HEADER_BYTES = 100_000_000  # what the safetensors library reads
AGAIN = "The repository is as it was. Run the same command again: weights that have arrived are not sent twice"


class UploadError(RuntimeError):
    """The upload did not finish; nothing of it is visible, and it can be repeated."""


@dataclass
class UploadPlan:
    """What would go up.

    Args:
        repo_id: owner/name.
        repo_type: "model" or "space".
        files: content by path in the repository: a local file, or bytes that were made for the upload.
        left_out: files of the folder that do not go up.
        space_sdk: of a Space.
    """

    repo_id: str
    repo_type: str
    files: dict[str, Path | bytes] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)
    space_sdk: str | None = None

    def describe(self) -> str:
        """Every file with its size in bytes, then what stays."""
        lines = [
            f"{self.repo_type} {self.repo_id}: {len(self.files)} files, {sum(map(_size, self.files.values())):,} bytes"
        ]
        lines += [f"{_size(content):>13,}  {path}" for path, content in sorted(self.files.items())]
        lines += [f"    left here  {path}" for path in self.left_out]
        return "\n".join(lines)

    def card(self) -> str:
        """The text of README.md; empty if there is none."""
        content = self.files.get("README.md", b"")
        return (content if isinstance(content, bytes) else content.read_bytes()).decode(errors="replace")


def _size(content: Path | bytes) -> int:
    return len(content) if isinstance(content, bytes) else content.stat().st_size


def plan_upload(
    folder: str | Path,
    repo_id: str,
    results: list[Path] | None = None,
    picture: Path | None = None,
    tags: Sequence[str] = (),
) -> UploadPlan:
    """Decides which files of a folder go up. A pipeline without a model card, or with a rendered one, gets a new one.

    Args:
        folder: a pipeline folder, or a Space: a folder whose README.md has `sdk:` in its metadata.
        repo_id: owner/name.
        results: files of `iltm-anomaly evaluate` for the card of a pipeline, one a seed.
        picture: PNG for the card, in place of a plot of the results.
        tags: for the card, beside its own.

    Raises:
        ValueError: if the folder is neither or is not complete, the name is no repository's, a file is a link, or one holds a
            secret.
    """
    check_repo_id(repo_id)
    folder, sdk = Path(folder), space_sdk(Path(folder))
    if (folder / "model_index.json").is_file():
        for part in filter(Path.is_dir, (folder, folder / SECOND_VIEW)):
            check_folder(part, expected_classes(part))
            read_folder_settings(part)
        plan = UploadPlan(repo_id, "model")
    elif sdk:
        plan = UploadPlan(repo_id, "space", space_sdk=sdk)
    else:
        raise ValueError(
            f"{folder} is neither a pipeline folder (no model_index.json) nor a Space (no README.md with `sdk:` in its metadata)"
        )
    patterns = MODEL_FILES if plan.repo_type == "model" else SPACE_FILES
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink() and (path.is_dir() or belongs(name, patterns)):
            raise ValueError(f"{path} is a link, perhaps to what is nobody else's business: put a copy in its place")
        if path.is_file():
            if belongs(name, patterns):
                plan.files[name] = path
            else:
                plan.left_out.append(name)
    if plan.repo_type == "model":
        for name in ("training_report.json", f"{SECOND_VIEW}/training_report.json"):
            if name in plan.files:
                plan.files[name] = _public_report(folder / name)
        plan.files |= _card_files(folder, repo_id, results or [], picture, tags)
    elif results or picture or tags:
        raise ValueError("results, tags and a picture belong to the card of a pipeline; a Space has its own README.md")
    elif (name := "model/training_report.json") in plan.files:
        plan.files[name] = _public_report(folder / name)
    for name, content in plan.files.items():
        _refuse_secrets(name, content)
    return plan


def _card_files(
    folder: Path, repo_id: str, results: list[Path], picture: Path | None, tags: Sequence[str]
) -> dict[str, bytes]:
    readme = folder / "README.md"
    if readme.is_file() and MARKER not in readme.read_text(errors="replace"):
        if results or picture or tags:
            raise ValueError(f"{readme} was written by hand: rename it to have a card rendered from results")
        return {}
    image = picture.read_bytes() if picture else None
    if image is not None and not image.startswith(b"\x89PNG"):
        raise ValueError(f"{picture} is no PNG")
    report = read_json(folder / "training_report.json")
    check_shape(report, REPORT, str(folder / "training_report.json"))
    return render_card(repo_id.split("/")[-1], load_results(results), report, repo_id, image, tags)


def _public_report(path: Path) -> bytes:
    """The training report with `public_name` in place of all paths, and without the command line, which is full of them."""
    report = read_json(path)
    report.pop("command", None)
    data = report.get("data")
    source = str(data.get("source") or "") if isinstance(data, dict) else ""

    def strip(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: strip(item) for key, item in value.items()}
        if isinstance(value, list):
            return [strip(item) for item in value]
        if not isinstance(value, str):
            return value
        if "/" in source or "\\" in source:  # replaced as a whole, as it may hold spaces
            value = value.replace(source, public_name(source))
        for pattern in (DRIVE_PATH, ANY_PATH):
            value = re.sub(pattern, lambda found: public_name(found[0]), value)
        return value

    return (json.dumps(strip(report), indent=2) + "\n").encode()


def space_sdk(folder: Path) -> str | None:
    """The `sdk` in the metadata of README.md, which makes a folder a Space."""
    try:
        text = (folder / "README.md").read_text(encoding="utf-8")
        metadata = yaml.safe_load(text.split("---", 2)[1]) if text.startswith("---") else None
    except (OSError, UnicodeDecodeError, yaml.YAMLError, IndexError):
        return None
    return metadata.get("sdk") if isinstance(metadata, dict) else None


def _refuse_secrets(name: str, content: Path | bytes) -> None:
    is_binary = name.endswith((".safetensors", ".png"))
    text = _text_of(name, content)
    for what, pattern in SECRETS.items():
        if found := re.search(pattern, text):
            line = text.count("\n", 0, found.start()) + 1
            where = "in its metadata" if is_binary else f"line {line}"
            raise ValueError(f"{name} {where} holds what looks like {what}: remove it, and revoke it if it is one")


def _text_of(name: str, content: Path | bytes) -> str:
    """All of a file that may hold words: of weights the header alone; a picture keeps some of its words packed.

    Raises:
        ValueError: a PNG whose metadata cannot be read.
    """
    if name.endswith(".safetensors") and isinstance(content, Path):
        with open(content, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            return file.read(min(length, MOST_HEADER_BYTES)).decode(errors="replace")
    data = content if isinstance(content, bytes) else content.read_bytes()
    text = data.decode(errors="replace")
    if name.endswith(".png"):
        try:
            with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
                image.load()  # words may follow the pixels
                entries = list(image.info.values())
        except Exception as error:  # damaged files make Pillow raise nearly anything
            raise ValueError(f"{name} is no PNG that can be read ({error}): save it anew") from error
        text += "\n".join(v.decode("latin-1") if isinstance(v, bytes) else str(v) for v in entries)
    return text


def upload(
    plan: UploadPlan,
    *,
    private: bool | None = None,
    token: str | bool | None = None,
    revision: str | None = None,
    commit_message: str | None = None,
    commit_description: str | None = None,
    create_pr: bool = False,
) -> str:
    """Carries out a plan as one commit, so that nobody ever sees half of it; weights of an earlier upload that the plan does not
    have are removed. Weights that arrived before an interruption are not sent again.

    Args:
        plan: of `plan_upload`.
        private: of a repository that does not exist yet.
        token: of the Hub; None takes the one that `hf auth login` stored.
        revision: branch, made if it does not exist.
        commit_message, commit_description: first line and rest of the text of the commit.
        create_pr: propose the commit as a pull request.

    Returns:
        The address of the commit, or of the pull request.

    Raises:
        UploadError: if the Hub cannot be reached, refuses, or the connection breaks.
    """
    api = HfApi(token=token, library_name="iltm-anomaly")
    where: dict[str, Any] = {"repo_id": plan.repo_id, "repo_type": plan.repo_type}
    try:
        api.create_repo(**where, private=private, exist_ok=True, space_sdk=plan.space_sdk)
        if revision is not None:
            api.create_branch(**where, branch=revision, exist_ok=True)
        operations: list[Any] = [CommitOperationAdd(name, content) for name, content in plan.files.items()]
        if plan.repo_type == "model":
            operations += [CommitOperationDelete(name) for name in _stale_files(api, where, revision, plan)]
        message = commit_message or f"Upload {plan.repo_type} with iltm-anomaly"
        commit = api.create_commit(
            **where,
            operations=operations,
            commit_message=message,
            commit_description=commit_description,
            revision=revision,
            create_pr=create_pr,
        )
    except HfHubHTTPError as error:
        refused = error.response.status_code in (401, 403)
        owner = plan.repo_id.split("/")[0]
        remedy = f"Log in with a token that may write to {owner}: `hf auth login`" if refused else AGAIN
        raise UploadError(f"the Hub refused the upload to {plan.repo_id}: {error}\n{remedy}") from error
    except (OSError, RuntimeError, HTTPError) as error:
        cause = f" ({error.__cause__})" if error.__cause__ and str(error.__cause__) not in str(error) else ""
        raise UploadError(f"the upload to {plan.repo_id} did not finish: {error}{cause}\n{AGAIN}") from error
    return commit.pr_url or commit.commit_url


def _stale_files(api: HfApi, where: dict[str, Any], revision: str | None, plan: UploadPlan) -> list[str]:
    """Files of an earlier upload that the plan does not have: shards of other weights would make the repository ambiguous."""
    present = api.list_repo_files(**where, revision=revision)
    return [name for name in present if belongs(name, MODEL_FILES) and name not in plan.files and name != "README.md"]


def results_of(path: str | Path) -> list[Path]:
    """The results in a run folder that `iltm-anomaly evaluate RUN --output RUN/evaluation` has written, if any."""
    file = Path(path) / "evaluation" / "results.json"
    return [file] if file.is_file() else []
