"""Images that are read one by one."""

import numpy as np
import pytest
from PIL import Image

from iltm_anomaly.data.streaming import stream_images


@pytest.fixture
def folder(tmp_path):
    from datasets import Dataset, Features
    from datasets import Image as ImageFeature

    images = [Image.fromarray(np.full((4, 5, 3), value, np.uint8)) for value in range(6)]
    (tmp_path / "data").mkdir()
    dataset = Dataset.from_dict({"image": images}, features=Features({"image": ImageFeature()}))
    dataset.to_parquet(tmp_path / "data" / "train-00000.parquet")
    return tmp_path / "data"


def values(images):
    return [int(np.asarray(image)[0, 0, 0]) for image in images]


def test_in_order_again_and_again(folder):
    images = stream_images(str(folder))
    assert values(images) == values(images) == [0, 1, 2, 3, 4, 5]
    assert values(stream_images(str(folder), limit=2)) == [0, 1]


def test_what_cannot_be_streamed(tmp_path, folder):
    from datasets import Dataset

    with pytest.raises(FileNotFoundError, match="nor a data set that could be streamed"):
        stream_images(str(tmp_path / "nowhere"))
    (tmp_path / "other").mkdir()
    Dataset.from_dict({"picture": [1]}).to_parquet(tmp_path / "other" / "train.parquet")
    with pytest.raises(ValueError, match="no column image; it has: picture"):
        list(stream_images(str(tmp_path / "other")))


def test_a_run_on_a_stream_reads_it_once(folder, tmp_path, monkeypatch):
    from iltm_anomaly.training import task
    from iltm_anomaly.training.run import TrainingRun

    loaded = []
    load = TrainingRun._load

    class Loaded(Exception):
        pass

    def only_load(run, *arguments):
        loaded.append(load(run, *arguments).shape)
        run.folder.record(run.recipe, run.seed, len(load(run, *arguments)), load(run, *arguments).digest, {})
        raise Loaded

    monkeypatch.setattr(TrainingRun, "_load", only_load)
    arguments = task.TrainArguments(
        str(folder), tmp_path / "run", preset="tiny", streaming=True, train_size=5, cpu=True
    )
    with pytest.raises(Loaded):
        task.train(arguments)
    for file in folder.iterdir():
        file.write_bytes(file.read_bytes()[:-1])  # a second pass would fail
    arguments.resume = True
    monkeypatch.setattr("iltm_anomaly.data.streaming.stream_images", lambda *_: iter(()))
    with pytest.raises(Loaded):
        task.train(arguments)
    assert loaded == [(5, 3, 64, 64)] * 2
    arguments.contamination = 0.1
    with pytest.raises(ValueError, match="leave out --streaming"):
        task.train(arguments)
