"""A local folder for a folder or a Hub repository: one snapshot, of one revision."""

from pathlib import Path

from iltm_anomaly.hub.checks import PIPELINE_FILES


def local_folder(
    name_or_path: str | Path,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
) -> Path:
    """The folder itself, or the snapshot of a Hub repository in the cache.

    Raises:
        ValueError: if it is neither a folder nor can be the name of a repository.
        OSError: of `huggingface_hub` if the repository, the revision or the network is not there, or access is denied.
    """
    folder = Path(name_or_path)
    if folder.is_dir():
        return folder
    if folder.is_absolute() or str(name_or_path).startswith((".", "~")) or str(name_or_path).count("/") != 1:
        raise ValueError(f"no pipeline folder at {name_or_path}, and it cannot be a Hub id, which is owner/name")
    from huggingface_hub import snapshot_download

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
