"""`transformers.pipeline("anomaly-detection")`: every form of input, in batches or not, gives what our own pipeline gives."""

import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset, Features, Image
from PIL import EpsImagePlugin
from PIL.Image import fromarray
from tiny_models import tiny_pipeline
from transformers import AutoModel, pipeline
from transformers.pipelines.pt_utils import KeyDataset
from transformers.utils import logging

from iltm_anomaly import ILTMAnomalyPipeline

RANDOM = np.random.default_rng(0)
IMAGES = [fromarray(RANDOM.integers(0, 256, (40 + i, 36, 3), dtype=np.uint8)) for i in range(3)]
DATASET = Dataset.from_dict({"image": IMAGES}, features=Features({"image": Image()}))
INPUTS = {
    "list": lambda: IMAGES,
    "arrays": lambda: [np.asarray(image) for image in IMAGES],
    "column": lambda: DATASET["image"],
    "data set": lambda: DATASET,
    "stream": lambda: DATASET.to_iterable_dataset(),
    "key of a data set": lambda: KeyDataset(DATASET, "image"),
    "generator": lambda: (image for image in IMAGES),
}


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("task") / "model"
    tiny_pipeline(score_threshold=100.0).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def expected(model):
    return ILTMAnomalyPipeline.from_pretrained(model)(IMAGES)


@pytest.fixture(scope="module")
def detect(model):
    return pipeline("anomaly-detection", model=str(model))


@pytest.mark.parametrize("batch_size", [1, 2])
@pytest.mark.parametrize("form", INPUTS)
def test_every_form_of_input(detect, expected, form, batch_size):
    found = list(detect(INPUTS[form](), batch_size=batch_size))
    assert [item["score"] for item in found] == expected.scores.tolist()
    for index, item in enumerate(found):
        np.testing.assert_array_equal(item["anomaly_map"], expected.anomaly_maps[index])
        np.testing.assert_array_equal(item["mask"], expected.masks[index])
        assert item["label"] == ("abnormal" if expected.masks[index].any() else "normal")
        assert item["healed_image"].tobytes() == expected.healed_images[index].tobytes()


def test_a_batch_in_one_array(detect):
    batch = RANDOM.integers(0, 256, (3, 36, 36, 3), dtype=np.uint8)
    assert [item["score"] for item in detect(batch)] == [detect(one)["score"] for one in map(fromarray, batch)]


def test_one_image_and_call_parameters(detect, model):
    ours = ILTMAnomalyPipeline.from_pretrained(model)
    assert detect(IMAGES[0])["score"] == float(ours(IMAGES[0]).scores[0])
    assert detect(IMAGES[0], num_samples=5)["score"] == float(ours(IMAGES[0], num_samples=5).scores[0])
    mapped = pipeline("anomaly-detection", model=str(model), device_map="cpu")
    assert mapped(IMAGES[0])["label"] == "abnormal" and mapped(IMAGES[0], score_threshold=1e6)["label"] == "normal"


def test_it_saves_what_it_was_loaded_from(detect, model, tmp_path):
    detect.save_pretrained(tmp_path / "copy")
    again = pipeline("anomaly-detection", model=str(tmp_path / "copy"))
    assert again(IMAGES[0])["score"] == detect(IMAGES[0])["score"]
    names = [{p.relative_to(f).as_posix() for p in f.rglob("*")} for f in (model, tmp_path / "copy")]
    assert names[0] == names[1]


def test_what_to_write_is_said_where_the_model_is_missing_or_no_single_one(model):
    with pytest.raises(
        ValueError, match=r'has no model of its own.*: give yours, pipeline\("anomaly-detection", model='
    ):
        pipeline("anomaly-detection")
    with pytest.raises(ValueError, match=r'is a whole pipeline: .*ILTMAnomalyPipeline.*, subfolder="tokenizer"\)'):
        AutoModel.from_pretrained(str(model))


def test_loading_draws_no_bar_and_leaves_those_of_others(model, capfd):
    logging.enable_progress_bar()  # as it is by default; other tests use the command line, which disables it
    ILTMAnomalyPipeline.from_pretrained(model)
    AutoModel.from_pretrained(str(model), subfolder="prior")
    assert "Loading weights" not in capfd.readouterr().err and logging.is_progress_bar_enabled()


def test_an_address_is_read_by_the_rules_of_files(detect, expected, tmp_path, monkeypatch):
    IMAGES[0].save(tmp_path / "a.png")
    fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "script.png", "EPS")
    started: list[str] = []
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *a, **k: started.append("it"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    handler = partial(SimpleHTTPRequestHandler, directory=str(tmp_path))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        try:
            assert detect(f"{address}/a.png")["score"] == expected.scores[0].item()
            with pytest.raises(ValueError, match=r"script\.png: not in an image format that is read"):
                detect(f"{address}/script.png")
        finally:
            server.shutdown()
    assert not started
