"""From what users name (a pipeline folder, a run folder, a repository on the Hub) to the folder of the pipeline."""

from pathlib import Path

from huggingface_hub import snapshot_download

from iltm_anomaly.hub.checks import PIPELINE_FILES


def local_folder(
    name_or_path: str | Path,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
) -> Path:
    """The folder itself, the pipeline folder of a run folder, or the snapshot of a Hub repository in the cache.

    Raises:
        ValueError: if it is neither a folder nor can be the name of a repository, or its run is not finished.
        OSError: of `huggingface_hub` if the repository, the revision or the network is not there, or access is denied.
    """
    folder = Path(name_or_path)
    if folder.is_dir():
        return Path(resolve_model_folder(folder)[0])
    if folder.is_absolute() or str(name_or_path).startswith((".", "~")) or str(name_or_path).count("/") != 1:
        raise ValueError(f"no pipeline folder at {name_or_path}, and it cannot be a Hub id, which is owner/name")
    try:
        snapshot = snapshot_download(
            str(name_or_path),
            revision=revision,
            token=token,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
            allow_patterns=list(PIPELINE_FILES),
        )
    except OSError as error:
        error.add_note(f"(There is no folder {name_or_path} here, so it was looked for on the Hub.)")
        raise
    return Path(snapshot)


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
