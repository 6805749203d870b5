"""`detect` on names, folders and disks that are not as they should be: every input has a row, and the exit code tells."""

import csv
import math
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_models import tiny_pipeline

from iltm_anomaly import drawing
from iltm_anomaly.cli import main
from iltm_anomaly.evaluation import detect as module
from iltm_anomaly.evaluation import inputs
from iltm_anomaly.evaluation.detect import detect
from iltm_anomaly.evaluation.rows import JOURNAL
from iltm_anomaly.locks import InUseError, locked
from iltm_anomaly.output import NonFiniteScoreError
from iltm_anomaly.pipeline import ILTMAnomalyPipeline


@pytest.fixture(scope="module")
def pipeline() -> ILTMAnomalyPipeline:
    return tiny_pipeline(score_threshold=3.0)


def save(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (20, 16), "gray").save(path, "PNG")
    return path


def table(output: Path) -> dict[str, dict[str, str]]:
    with open(output / "results.csv", newline="", encoding="utf-8") as file:
        return {row["path"]: row for row in csv.DictReader(file)}


def test_a_name_may_be_as_long_as_a_disk_allows(pipeline, tmp_path):
    long = save(tmp_path / "in" / ("ä" * 123 + "x.png"))  # 251 bytes
    save(tmp_path / "in" / "b.png")
    rows = detect(pipeline, [tmp_path / "in"], tmp_path / "out", show_progress=False)
    assert len(rows) == 2 and all(row["score"] and not row["error"] for row in rows)
    row = table(tmp_path / "out")[str(long)]
    assert (tmp_path / "out" / row["map"]).is_file() and (tmp_path / "out" / row["overlay"]).is_file()


def test_masks_of_a_category_are_no_input(pipeline, tmp_path):
    save(tmp_path / "part" / "test" / "scratch" / "0.png")
    save(tmp_path / "part" / "ground_truth" / "scratch" / "0_mask.png")
    save(tmp_path / "ground_truth" / "b.png")  # somebody's own folder of that name
    detect(pipeline, [tmp_path], tmp_path / "out", show_progress=False)
    assert [Path(path).name for path in table(tmp_path / "out")] == ["b.png", "0.png"]
    with_masks = tmp_path / "part" / "ground_truth"
    assert len(detect(pipeline, [with_masks], tmp_path / "out", show_progress=False)) == 1


def test_what_was_expected_in_place_of_the_abnormal_is_there(tmp_path, monkeypatch):
    monkeypatch.setattr(drawing, "MOST_DRAWN", 10)
    path = save(tmp_path / "in" / "a.png")
    for threshold, token_threshold, is_there in ((-1e9, 0.9, True), (-1e9, 0.0, False), (1e9, 0.9, False)):
        pipe = tiny_pipeline(score_threshold=threshold, token_threshold=token_threshold)
        detect(pipe, [path], tmp_path / "out", show_progress=False)
        row = table(tmp_path / "out")[str(path)]
        assert bool(row["healed"]) == (float(row["unlikely_share"]) > 0 and row["abnormal"] == "1") == is_there
        assert [file.name for file in (tmp_path / "out").glob("healed/*")] == (
            [Path(row["healed"]).name] if is_there else []
        )
        if is_there:
            with Image.open(tmp_path / "out" / row["healed"]) as healed:
                assert healed.size == (10, 8)


def test_what_is_no_file_has_a_row(pipeline, tmp_path):
    good = save(tmp_path / "in" / "good.png")
    (tmp_path / "in" / "link.png").symlink_to(tmp_path / "gone")
    os.mkfifo(tmp_path / "in" / "pipe.png")
    detect(pipeline, [tmp_path / "in", tmp_path / "absent.png"], tmp_path / "out", show_progress=False)
    errors = {Path(path).name: row["error"] for path, row in table(tmp_path / "out").items()}
    assert errors.pop(good.name) == ""
    for name, reason in {"link.png": "a link to nothing", "pipe.png": "a pipe", "absent.png": "no such file"}.items():
        assert name in errors[name] and reason in errors.pop(name)
    assert not errors


@pytest.mark.parametrize("call", ["scandir", "stat"])
def test_a_folder_that_cannot_be_looked_into_has_a_row(pipeline, tmp_path, monkeypatch, call):
    """As root there is no such folder: the calls are those that the system would refuse."""
    save(tmp_path / "in" / "good.png")
    closed = save(tmp_path / "in" / "closed" / "a.png") if call == "stat" else tmp_path / "in" / "closed"
    closed.parent.mkdir(exist_ok=True)
    if call == "scandir":
        closed.mkdir()
    allowed = getattr(os, call)

    def refuse(path=".", *arguments, **options):
        if str(path) == str(closed):
            raise PermissionError(13, "Permission denied", str(path))
        return allowed(path, *arguments, **options)

    monkeypatch.setattr(os, call, refuse)
    rows = detect(pipeline, [tmp_path / "in"], tmp_path / "out", show_progress=False)
    errors = {row["path"]: row["error"] for row in rows if row["error"]}
    assert len(rows) == 2 and errors.keys() == {str(closed)} and "Permission denied" in errors[str(closed)]


def test_what_an_earlier_call_has_written_is_no_input(pipeline, tmp_path):
    folder = tmp_path / "in"
    save(folder / "a.png")
    save(folder / "maps" / "b.png")  # somebody's own folder of that name
    for output in (folder / "first", folder / "second", folder / "second"):
        detect(pipeline, [folder], output, show_progress=False)
        assert [Path(path).name for path in table(output)] == ["a.png", "b.png"]
    assert len(detect(pipeline, [folder / "first" / "overlays"], tmp_path / "out", show_progress=False)) == 2


@pytest.mark.parametrize("name", ["=1+1.png", "+1.png", "-1.png", "@SUM(A1).png"])
def test_no_path_in_the_table_is_a_formula(pipeline, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    save(Path(name))
    detect(pipeline, [Path(name)], Path("out"), save_maps=False, show_progress=False)
    (path,) = table(Path("out"))
    assert path == f"./{name}" and Path(path).is_file()


def test_a_full_disk_is_named_with_its_file(pipeline, tmp_path, monkeypatch):
    def full(path, values):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "save", full)
    with pytest.raises(OSError, match=r"cannot write .*maps.a_\w{10}\.npy: No space left on device"):
        detect(pipeline, [save(tmp_path / "a.png")], tmp_path / "out", show_progress=False)


def test_rows_that_are_removed_meanwhile_are_missed(pipeline, tmp_path, monkeypatch):
    def read(path):
        (tmp_path / "out" / JOURNAL.format(0)).unlink()
        return Image.open(path)

    monkeypatch.setattr(inputs, "read_image", read)
    with pytest.raises(OSError, match=r"cannot write .*rows\.0\.jsonl: No such file"):
        detect(pipeline, [save(tmp_path / "a.png")], tmp_path / "out", save_maps=False, show_progress=False)


def test_a_batch_of_large_images_is_smaller(pipeline, tmp_path, monkeypatch):
    sizes = []
    monkeypatch.setattr(module, "MOST_PIXELS", 2 * 20 * 16)
    monkeypatch.setattr(
        ILTMAnomalyPipeline,
        "__call__",
        lambda self, images, real=ILTMAnomalyPipeline.__call__, **o: (
            sizes.append(len(images)) or real(self, images, **o)
        ),
    )
    for name in "abcde":
        save(tmp_path / "in" / f"{name}.png")
    assert len(detect(pipeline, [tmp_path / "in"], tmp_path / "out", show_progress=False)) == 5
    assert sizes == [2, 2, 1]


def test_the_exit_code_tells_whether_all_could_be_read(pipeline, tmp_path, capsys):
    pipeline.save_pretrained(tmp_path / "model")
    good, bad, worse = save(tmp_path / "good.png"), tmp_path / "bad.png", tmp_path / "worse.png"
    bad.touch()
    for paths, code in (([good], 0), ([good, bad], 1), ([bad, worse], 2)):
        arguments = ["detect", str(tmp_path / "model"), *map(str, paths), "--output", str(tmp_path / f"out{code}")]
        assert main([*arguments, "--no-maps"]) == code
        said = capsys.readouterr()
        assert f"{code} failed" in said.out and said.out.count("failed: cannot read image") == code
        assert "cannot read image" not in said.err  # once is enough


@pytest.fixture
def images(tmp_path):
    """Three images, of which the second is small."""
    folder = tmp_path / "images"
    folder.mkdir()
    generator = np.random.default_rng(0)
    for name, side in {"a": 32, "b": 16, "c": 32}.items():
        Image.fromarray(generator.integers(0, 256, (side, side, 3), dtype=np.uint8)).save(folder / f"{name}.png")
    return folder


def test_a_score_that_is_not_finite_is_an_error_of_its_file_alone(images, tmp_path, monkeypatch):
    pipeline = tiny_pipeline(score_threshold=1e-6)
    expected = [row["score"] for row in detect(pipeline, [images], tmp_path / "sound")]
    restore = pipeline.image_processor.restore_map

    def broken(values, size, lowest):
        restored = restore(values, size, lowest)
        return restored * math.nan if restored.shape == (16, 16) else restored

    monkeypatch.setattr(pipeline.image_processor, "restore_map", broken)
    detect(pipeline, [images], tmp_path / "out")
    first, second, third = csv.DictReader((tmp_path / "out" / "results.csv").read_text().splitlines())
    assert [float(first["score"]), float(third["score"])] == [expected[0], expected[2]] and not first["error"] + third[
        "error"
    ]
    assert "b.png: the score of image 1 is nan" in second["error"]
    assert not second["score"] and not second["abnormal"] and not second["map"]
    with pytest.raises(NonFiniteScoreError, match=r"b\.png"):
        detect(pipeline, [images / "b.png"], tmp_path / "out")


def test_two_do_not_write_into_one_folder(images, tmp_path):
    with (
        locked(tmp_path / "out" / ".lock"),
        pytest.raises(InUseError, match=r"out is in use by process \d+ on .* since 20.*give another --output"),
    ):
        detect(tiny_pipeline(), [images], tmp_path / "out")
    assert len(detect(tiny_pipeline(), [images], tmp_path / "out")) == 3


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")])
def test_a_batch_that_the_memory_cannot_hold_is_halved(pipeline, tmp_path, monkeypatch, error):
    for number in range(5):
        save(tmp_path / "in" / f"{number}.png")
    whole, call = detect(pipeline, [tmp_path / "in"], tmp_path / "whole", show_progress=False), type(pipeline).__call__
    sizes = []

    def small(self, images, batch_size):
        sizes.append(len(images))
        if len(images) > 2:
            raise error
        return call(self, images, batch_size=batch_size)

    monkeypatch.setattr(type(pipeline), "__call__", small)
    for row, expected in zip(
        detect(pipeline, [tmp_path / "in"], tmp_path / "out", show_progress=False), whole, strict=True
    ):
        assert row | {"seconds": 0} == expected | {"seconds": 0}
    assert sizes == [5, 2, 3, 1, 2]


def test_an_image_that_the_memory_cannot_hold_has_a_row(pipeline, tmp_path, monkeypatch):
    for number in range(2):
        save(tmp_path / "in" / f"{number}.png")

    def none(self, images, batch_size):
        raise RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(type(pipeline), "__call__", none)
    rows = detect(pipeline, [tmp_path / "in"], tmp_path / "out", show_progress=False)
    assert all("the memory is too small" in row["error"] for row in rows) and len(rows) == 2
    monkeypatch.setattr(type(pipeline), "__call__", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        detect(pipeline, [tmp_path / "in"], tmp_path / "out", show_progress=False)


def test_of_images_of_other_proportions_than_in_training_the_first_is_named(tmp_path, caplog):
    pipeline = tiny_pipeline(score_threshold=1.0)
    for name, size in {"a": (32, 36), "b": (32, 64), "c": (64, 32)}.items():
        Image.new("RGB", size).save(tmp_path / f"{name}.png")
    detect(pipeline, [tmp_path], tmp_path / "unknown", save_maps=False)
    assert not caplog.records  # a model of an earlier version does not know its own
    pipeline.training_report["data"] = {"aspect_ratio": 1.0}
    detect(pipeline, [tmp_path], tmp_path / "out", save_maps=False)
    (said,) = caplog.messages
    assert said.startswith(f"{tmp_path / 'b.png'} is 32 x 64 pixels, and the training images were 1.00 times as wide")
    pipeline.settings.tile = 32
    detect(pipeline, [tmp_path], tmp_path / "tiles", save_maps=False)
    assert len(caplog.records) == 1
