"""Images that are read one by one."""

import logging
from io import BytesIO

import numpy as np
import pytest
from accelerate.state import AcceleratorState
from PIL import Image

from iltm_anomaly.data.images import readable_images
from iltm_anomaly.data.streaming import stream_images
from iltm_anomaly.training import run as training_run
from iltm_anomaly.training import train as task


class Loaded(Exception):
    """Ends a run once it has its images."""


@pytest.fixture
def only_load(monkeypatch):
    """Shapes of what runs have loaded; they end there, as if they had been killed."""
    AcceleratorState._reset_state(reset_partial_state=True)
    loaded, load = [], training_run.load_pixels

    def load_and_stop(run, *arguments):
        pixels, _ = load(run, *arguments)
        run.folder.record(run.recipe, run.seed, len(pixels), pixels.digest, dict)
        loaded.append(pixels.shape)
        raise Loaded

    monkeypatch.setattr(training_run, "load_pixels", load_and_stop)
    return loaded


@pytest.fixture
def folder(tmp_path):
    from datasets import Dataset, Features
    from datasets import Image as ImageFeature

    images = [Image.fromarray(np.full((4, 5, 3), value, np.uint8)) for value in range(6)]
    (tmp_path / "data").mkdir()
    dataset = Dataset.from_dict({"image": images}, features=Features({"image": ImageFeature()}))
    dataset.to_parquet(tmp_path / "data" / "train-00000.parquet")
    return tmp_path / "data"


def values(sources):
    return [int(np.asarray(image)[0, 0, 0]) for _, image in readable_images(sources)]


def test_in_order(folder):
    assert values(stream_images(str(folder))) == [0, 1, 2, 3, 4, 5]
    assert values(stream_images(str(folder), limit=2)) == [0, 1]


def test_of_one_category(tmp_path):
    from datasets import ClassLabel, Dataset, Features, Value
    from datasets import Image as ImageFeature

    images = [Image.fromarray(np.full((4, 5, 3), value, np.uint8)) for value in range(4)]
    for name, kind, column in (
        ("names", Value("string"), ["cup", "lid", "cup", "lid"]),
        ("labels", ClassLabel(names=["cup", "lid"]), [0, 1, 0, 1]),
    ):
        (tmp_path / name).mkdir()
        features = Features({"image": ImageFeature(), "category": kind})
        dataset = Dataset.from_dict({"image": images, "category": column}, features=features)
        dataset.to_parquet(tmp_path / name / "train.parquet")
        assert values(stream_images(str(tmp_path / name), "lid", limit=5)) == [1, 3]


def test_what_cannot_be_streamed(tmp_path, folder):
    from datasets import Dataset

    with pytest.raises(FileNotFoundError, match="nor a data set that could be streamed"):
        stream_images(str(tmp_path / "nowhere"))
    (tmp_path / "other").mkdir()
    Dataset.from_dict({"picture": [1]}).to_parquet(tmp_path / "other" / "train.parquet")
    with pytest.raises(ValueError, match="no column image; it has: picture"):
        list(stream_images(str(tmp_path / "other")))


def test_a_run_on_a_stream_reads_it_once(folder, tmp_path, monkeypatch, only_load):
    arguments = task.TrainArguments(
        str(folder), tmp_path / "run", preset="tiny", streaming=True, train_size=5, cpu=True
    )
    with pytest.raises(Loaded):
        task.train(arguments)
    for file in folder.iterdir():
        file.write_bytes(file.read_bytes()[:-1])  # a second pass would fail
    arguments.resume = True
    monkeypatch.setattr("iltm_anomaly.training.images.stream_images", lambda *_: iter(()))
    with pytest.raises(Loaded):
        task.train(arguments)
    assert only_load == [(5, 3, 64, 64)] * 2
    arguments.contamination = 0.1
    with pytest.raises(ValueError, match="leave out --streaming"):
        task.train(arguments)


def test_an_unreadable_image_of_a_stream_is_left_out(tmp_path, only_load, caplog):
    from datasets import Dataset

    file = BytesIO()
    Image.new("RGB", (5, 4)).save(file, "PNG")
    whole = file.getvalue()
    sources = [
        {"bytes": content, "path": name} for content, name in [(whole, "a.png"), (whole[:40], "b.png"), (whole, None)]
    ]
    (tmp_path / "data").mkdir()
    Dataset.from_dict({"image": [*sources, {"bytes": b"no image", "path": None}]}).to_parquet(
        tmp_path / "data" / "train.parquet"
    )
    with caplog.at_level(logging.WARNING), pytest.raises(Loaded):
        task.train(
            task.TrainArguments(str(tmp_path / "data"), tmp_path / "run", preset="tiny", streaming=True, cpu=True)
        )
    assert only_load == [(2, 3, 64, 64)]
    assert "left out: cannot read image b.png: " in caplog.text
    assert (
        "left out: cannot read image in row 3 of the data set (counted from 0): not in an image format" in caplog.text
    )


def test_a_connection_that_breaks_is_no_error_of_the_disk(folder, tmp_path, monkeypatch, only_load):
    def broken(*_):
        yield from stream_images(str(folder), limit=2)
        raise ConnectionError("the Hub has gone away")

    monkeypatch.setattr("iltm_anomaly.training.images.stream_images", broken)
    with pytest.raises(ConnectionError, match="the Hub has gone away"):
        task.train(task.TrainArguments(str(folder), tmp_path / "run", preset="tiny", streaming=True, cpu=True))
    assert not list((tmp_path / "run").glob("images*"))


def test_a_resumed_run_decodes_no_file_again(tmp_path, monkeypatch, only_load):
    folder = tmp_path / "data"
    folder.mkdir()
    for number in range(4):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(folder / f"{number}.png")
    (folder / "4.png").write_bytes(b"")
    arguments = task.TrainArguments(str(folder), tmp_path / "run", preset="tiny", cpu=True)
    with pytest.raises(Loaded):
        task.train(arguments)
    read = []
    monkeypatch.setattr("iltm_anomaly.data.mvtec.read_image", read.append)
    arguments.resume = True
    with pytest.raises(Loaded):
        task.train(arguments)
    assert only_load == [(4, 3, 64, 64)] * 2 and not read
    monkeypatch.undo()
    Image.new("RGB", (8, 8), (9, 0, 0)).save(folder / "1.png")
    with pytest.raises(RuntimeError, match=r"1 differ, the first is number 1 \(.*1\.png\)"):
        task.train(arguments)


def test_a_folder_that_cannot_be_written_is_said_before_anything_is_read(folder, tmp_path, monkeypatch):
    monkeypatch.setattr("os.access", lambda *_: False)
    monkeypatch.setattr(task.TrainingImages, "__iter__", None)
    with pytest.raises(RuntimeError, match=rf"cannot write .*run: {tmp_path}.* is read-only"):
        task.train(task.TrainArguments(str(folder), tmp_path / "run", preset="tiny", cpu=True))
