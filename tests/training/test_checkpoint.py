"""Checkpoints survive full disks, crashes and damage."""

import errno
import os
import stat
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

from iltm_anomaly.training import checkpoint
from iltm_anomaly.training.checkpoint import (
    CheckpointError,
    fill_folder,
    load_checkpoint,
    load_json,
    remove_checkpoint,
    save_checkpoint,
    write_atomically,
    write_json,
)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run" / "checkpoint.pt"


def previous_of(path):
    return path.with_name(path.name + ".previous")


def damage(path, content=None):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data) if content is None else content)


def fail(monkeypatch, name):
    """Makes a step of writing fail as a full disk does."""

    def refuse(*_arguments, **_keywords):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, name, refuse)


def test_writes_and_replaces(tmp_path):
    path = tmp_path / "a" / "b" / "file"
    write_atomically(path, b"one")
    write_atomically(path, b"two")
    assert path.read_bytes() == b"two" and [p.name for p in path.parent.iterdir()] == ["file"]


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_failed_write_leaves_the_old_file(path, monkeypatch, step):
    write_atomically(path, b"old")
    with monkeypatch.context() as patch:
        fail(patch, step)
        with pytest.raises(CheckpointError, match=r"cannot write .*checkpoint\.pt: No space left on device"):
            write_atomically(path, b"new")
    assert path.read_bytes() == b"old" and [p.name for p in path.parent.iterdir()] == ["checkpoint.pt"]


def test_a_file_system_that_syncs_no_folder_is_written_to(path, monkeypatch):
    sync = os.fsync

    def of_files_only(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", of_files_only)
    write_atomically(path, b"new")
    assert path.read_bytes() == b"new"


def test_never_writes_into_the_file_itself(path, monkeypatch):
    """Whoever reads while a write is under way, or was cut off by a power cut, sees the old content."""
    write_atomically(path, b"old")
    seen = []
    replace = os.replace
    monkeypatch.setattr(os, "replace", lambda *paths: (seen.append(path.read_bytes()), replace(*paths)))
    write_atomically(path, b"new")
    assert seen == [b"old"] and path.read_bytes() == b"new"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no such files here")
def test_what_is_no_file_is_not_replaced(path):
    path.parent.mkdir(exist_ok=True)
    os.mkfifo(path)
    with pytest.raises(CheckpointError, match="no file"):
        write_atomically(path, b"new")
    assert path.is_fifo()


def test_folder_that_cannot_be(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(CheckpointError, match="cannot write"):
        write_atomically(tmp_path / "file" / "checkpoint.pt", b"new")


def test_clean_up_that_fails_does_not_hide_the_reason(path, monkeypatch):
    """On a file system that has become read-only nothing can be removed either."""
    fail(monkeypatch, "fsync")
    monkeypatch.setattr(
        type(path), "unlink", lambda *_, **__: (_ for _ in ()).throw(OSError(errno.EROFS, "read-only"))
    )
    with pytest.raises(CheckpointError, match="No space left"):
        write_atomically(path, b"new")


def test_json(tmp_path):
    value = {"b": 1, "a": [1.5, None, "ä"]}
    write_json(tmp_path / "value.json", value)
    assert load_json(tmp_path / "value.json") == value
    assert (tmp_path / "value.json").read_text().startswith('{\n  "b": 1'), "readable, in the order given"


def test_round_trip(path):
    state = {"step": 3, "seconds": 1.5, "model": {"w": torch.rand(3, 2)}, "list": [1, "two", None]}
    assert load_checkpoint(path) == (None, [])
    save_checkpoint(path, state)
    loaded, problems = load_checkpoint(path)
    assert not problems and torch.equal(loaded["model"].pop("w"), state["model"].pop("w")) and loaded == state


def test_the_one_before_stays(path):
    for step in range(3):
        save_checkpoint(path, {"step": step})
    assert load_checkpoint(path)[0] == {"step": 2} and load_checkpoint(previous_of(path))[0] == {"step": 1}
    assert len(list(path.parent.iterdir())) == 2


def test_without_hard_links(path, monkeypatch):
    fail(monkeypatch, "link")
    for step in range(3):
        save_checkpoint(path, {"step": step})
    assert load_checkpoint(path)[0] == {"step": 2} and load_checkpoint(previous_of(path))[0] == {"step": 1}


@pytest.mark.parametrize("content", [None, b"", b"short", b"\0" * 5000])
def test_damaged_falls_back_on_the_one_before_and_says_so(path, content):
    save_checkpoint(path, {"step": 0})
    save_checkpoint(path, {"step": 1})
    damage(path, content)
    loaded, problems = load_checkpoint(path)
    assert loaded == {"step": 0}
    assert len(problems) == 1 and str(path) in problems[0] and "damaged" in problems[0]


def test_truncated_falls_back(path):
    save_checkpoint(path, {"step": 0})
    save_checkpoint(path, {"step": 1})
    damage(path, path.read_bytes()[:-10])
    assert load_checkpoint(path)[0] == {"step": 0}


def test_all_damaged(path):
    save_checkpoint(path, {"step": 0})
    damage(path)
    state, problems = load_checkpoint(path)
    assert state is None and "damaged" in problems[0]
    save_checkpoint(path, {"step": 1})  # the damaged one becomes the previous one
    assert load_checkpoint(path)[0] == {"step": 1}
    damage(path)
    state, problems = load_checkpoint(path)
    assert state is None and [str(path) in problems[0], str(previous_of(path)) in problems[1]] == [True, True]


def test_removed(path):
    save_checkpoint(path, {"step": 0})
    save_checkpoint(path, {"step": 1})
    remove_checkpoint(path)
    remove_checkpoint(path)
    assert load_checkpoint(path) == (None, []) and not list(path.parent.iterdir())


def test_a_folder_is_whole_or_not_there(tmp_path, monkeypatch):
    def fill(content):
        return lambda target: (target / "file").write_text(content)

    fill_folder(tmp_path / "stage", fill("one"))
    fill_folder(tmp_path / "stage", fill("two"))
    assert (tmp_path / "stage" / "file").read_text() == "two"

    def full(target):
        fill("half")(target)
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    with pytest.raises(CheckpointError, match=r"cannot write .*stage: .*No space left"):
        fill_folder(tmp_path / "stage", full)
    with monkeypatch.context() as patch:
        fail(patch, "fsync")
        with pytest.raises(CheckpointError, match=r"cannot write .*stage: No space left"):
            fill_folder(tmp_path / "stage", fill("three"))
    assert (tmp_path / "stage" / "file").read_text() == "two" and len(list(tmp_path.iterdir())) == 1

    rename = os.replace

    def busy(source, target):  # as of a network file system on which somebody reads the old files
        if str(source).endswith(".partial"):
            raise OSError(errno.ENOTEMPTY, "Directory not empty")
        rename(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", busy)
        with pytest.raises(CheckpointError, match=r"cannot write .*stage: Directory not empty"):
            fill_folder(tmp_path / "stage", fill("three"))
    assert (tmp_path / "stage" / "file").read_text() == "two" and len(list(tmp_path.iterdir())) == 1
    (tmp_path / "stage").rename(tmp_path / "stage.before")  # as a kill between the two renames leaves it
    with pytest.raises(CheckpointError, match="No space left"):
        fill_folder(tmp_path / "stage", full)
    assert (tmp_path / "stage" / "file").read_text() == "two" and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_failed_save_keeps_both_good_ones(path, monkeypatch, step):
    save_checkpoint(path, {"step": 0})
    save_checkpoint(path, {"step": 1})
    with monkeypatch.context() as patch:
        fail(patch, step)
        with pytest.raises(CheckpointError, match="No space left"):
            save_checkpoint(path, {"step": 2})
    assert load_checkpoint(path)[0] == {"step": 1} and len(list(path.parent.iterdir())) == 2
    damage(path)
    assert load_checkpoint(path)[0] == {"step": 0}


def test_failed_save_after_damage_keeps_the_good_one(path, monkeypatch):
    """Resumed from the previous checkpoint because the newest was damaged; then the disk is full."""
    save_checkpoint(path, {"step": 0})
    save_checkpoint(path, {"step": 1})
    damage(path)
    with monkeypatch.context() as patch:
        fail(patch, "fsync")
        with pytest.raises(CheckpointError, match="No space left"):
            save_checkpoint(path, {"step": 1})
    assert load_checkpoint(path)[0] == {"step": 0}


def test_copying_that_fails_is_a_checkpoint_error(path, monkeypatch):
    save_checkpoint(path, {"step": 0})
    fail(monkeypatch, "link")
    monkeypatch.setattr(checkpoint.shutil, "copyfile", os.link)
    with pytest.raises(CheckpointError, match="No space left"):
        save_checkpoint(path, {"step": 1})
    assert load_checkpoint(path)[0] == {"step": 0}


def test_no_code_is_run_on_loading(path):
    class Malicious:
        def __reduce__(self):
            return os.system, ("true",)

    save_checkpoint(path, {"step": Malicious()})
    with pytest.raises(Exception, match="Weights only load failed"):
        load_checkpoint(path)


def test_a_system_that_opens_no_folder_and_flushes_no_file_open_for_reading(tmp_path, monkeypatch):
    """As Windows does, by which a run could not start there."""
    opened, opening, flushing = {}, os.open, os.fsync

    def open_file(path, flags, *more, **options):
        if Path(path).is_dir():
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        descriptor = opening(path, flags, *more, **options)
        opened[descriptor] = flags
        return descriptor

    def flush(descriptor):
        if opened.pop(descriptor, os.O_RDWR) & os.O_ACCMODE == os.O_RDONLY:
            raise OSError(errno.EBADF, "Bad file descriptor")
        flushing(descriptor)

    monkeypatch.setattr(checkpoint, "WINDOWS", True)
    monkeypatch.setattr(os, "open", open_file)
    monkeypatch.setattr(os, "fsync", flush)
    fill_folder(tmp_path / "model", lambda folder: (folder / "file.json").write_text("1"))
    write_json(tmp_path / "run.json", [2])
    assert (tmp_path / "model" / "file.json").read_text() == "1"
    assert load_json(tmp_path / "run.json") == [2]
