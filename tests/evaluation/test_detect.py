"""Detection on files, with an untrained pipeline."""

import csv
import math

import numpy as np
import pytest
from PIL import Image
from tiny_models import tiny_pipeline

from iltm_anomaly.evaluation.detect import detect
from iltm_anomaly.locks import InUseError, locked
from iltm_anomaly.pipeline import ILTMAnomalyPipeline, NonFiniteScoreError


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
    score = ILTMAnomalyPipeline._score
    monkeypatch.setattr(pipeline, "_score", lambda v: math.nan if v.shape == (16, 16) else score(pipeline, v))
    detect(pipeline, [images], tmp_path / "out")
    first, second, third = csv.DictReader((tmp_path / "out" / "results.csv").read_text().splitlines())
    assert [first["score"], third["score"]] == [expected[0], expected[2]] and not first["error"] + third["error"]
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
