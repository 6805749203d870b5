"""From what users name (a pipeline folder, a run folder, a repository on the Hub) to the folder of the pipeline."""

from pathlib import Path

import huggingface_hub  # what is of it is imported with its first use
from huggingface_hub.utils import validate_repo_id

SETTINGS_FILE = "inference_config.json"  # what somebody chose
CALIBRATION_FILE = "calibration.json"  # what was measured; in folders of earlier versions the settings too
NOISE_FILE = "calibration.safetensors"

SECOND_VIEW = "pixels"  # a whole pipeline on pixels, within one on features

# The files of a pipeline of ILTM or of a baseline. Nothing else is downloaded or read. Version 0.1 wrote vqvae/ for tokenizer/.
ONE_VIEW = (
    "model_index.json",
    "config.json",
    SETTINGS_FILE,
    CALIBRATION_FILE,
    NOISE_FILE,
    "training_report.json",
    "README.md",
    *(
        f"{part}/{name}"
        for part in ("tokenizer", "vqvae", "prior", "model")
        for name in ("config.json", "model*.safetensors", "model.safetensors.index.json")
    ),
    "image_processor/preprocessor_config.json",
)
PIPELINE_FILES = (*ONE_VIEW, *(f"{SECOND_VIEW}/{name}" for name in ONE_VIEW))


def local_folder(
    name_or_path: str | Path,
    *,
    subfolder: str = "",
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
    force_download: bool = False,
) -> Path:
    """The folder itself, the pipeline folder of a run folder, or the snapshot of a Hub repository in the cache; of each of these
    the `subfolder`, if one is named.

    Raises:
        ValueError: if it is neither a folder nor can be the name of a repository, its run is not finished, or `subfolder` leads
            out of it.
        OSError: of `huggingface_hub` if the repository, the revision or the network is not there, or access is denied.
    """
    if Path(subfolder).is_absolute() or ".." in Path(subfolder).parts:
        raise ValueError(f"subfolder {subfolder!r} leads out of {name_or_path}")
    if Path(name_or_path).is_dir():
        return model_folder(Path(name_or_path, subfolder))
    local_model(name_or_path)
    try:
        snapshot = huggingface_hub.snapshot_download(
            str(name_or_path),
            revision=revision,
            token=token,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
            force_download=force_download,
            allow_patterns=[Path(subfolder, name).as_posix() for name in PIPELINE_FILES],
        )
    except OSError as error:
        error.add_note(f"(There is no folder {name_or_path} here, so it was looked for on the Hub.)")
        raise
    return Path(snapshot, subfolder)


def local_model(name_or_path: str | Path) -> Path | None:
    """The pipeline folder that a folder here is, or has if it is one of a run; None if there is none and it may be a Hub id.

    Raises:
        ValueError: if it is neither, or the run is not finished.
    """
    folder = Path(name_or_path)
    if folder.is_dir():
        return model_folder(folder)
    if folder.is_absolute() or str(name_or_path).startswith((".", "~")) or str(name_or_path).count("/") != 1:
        raise ValueError(f"no pipeline folder at {name_or_path}, and it cannot be a Hub id, which is owner/name")
    if folder.parent.is_dir():
        raise ValueError(f"no pipeline folder at {name_or_path}: {folder.parent} is a folder here, so it is no Hub id")
    return None


def check_repo_id(repo_id: str) -> None:
    """Raises ValueError unless it can be the name of a repository of somebody."""
    try:
        validate_repo_id(repo_id)
        _, _ = repo_id.split("/")
    except ValueError:
        raise ValueError(f"{repo_id!r} is no name of a repository: give owner/name") from None


def model_folder(path: str | Path) -> Path:
    """The pipeline folder of a run folder, else the folder itself.

    Raises:
        ValueError: if there is no such folder, or its run is not finished.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise ValueError(f"no folder {folder}")
    return Path(resolve_model_folder(folder)[0])


def resolve_model_folder(path: str | Path) -> tuple[str | Path, Path | None]:
    """A run folder gives its pipeline folder and itself; a pipeline folder or Hub id gives itself and None.

    Raises:
        ValueError: if the run is not finished.
    """
    folder = Path(path)
    if (folder / "run.json").is_file() or (folder / "rounds").is_dir():
        if not (folder / "model" / "model_index.json").is_file():
            raise ValueError(
                f"the run in {folder} is not finished: continue it with `iltm-anomaly train ... --resume`"
            )
        return folder / "model", folder
    return path, None
