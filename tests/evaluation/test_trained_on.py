"""Images that a run was trained on are told, by the checksums of their pixels."""

import csv
import json
import shutil
from pathlib import Path

import pytest
from tiny_models import tiny_pipeline

from iltm_anomaly.cli import main
from iltm_anomaly.data.cache import build_cache
from iltm_anomaly.synthetic.dataset import generate_dataset, write_mvtec_tree
from iltm_anomaly.tiles import cut_images


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    dataset = generate_dataset(size=64, num_train=6, num_test_good=2, num_test_defective=2, contamination=0.0)
    return write_mvtec_tree(dataset, tmp_path_factory.mktemp("data"), "part")


def make_run(folder: Path, data: Path, tile: int | None = None) -> Path:
    """A finished run, but for its rounds."""
    pipeline = tiny_pipeline(score_threshold=1.0, tile=tile)
    pipeline.save_pretrained(folder / "model")
    (folder / "run.json").write_text("{}")
    images = map(str, sorted((data / "train" / "good").iterdir()))
    images = images if tile is None else cut_images(images, tile)
    build_cache(folder / "images.arrow", images, pipeline.image_processor.to_uint8)
    return folder


@pytest.mark.parametrize("tile", [None, 32])
def test_detect_tells_which_images_were_trained_on(data, tmp_path, caplog, tile):
    new = tmp_path / "new"
    trained = sorted((data / "train" / "good").iterdir())
    shutil.copytree(data / "test" / "good", new / "good")  # some have the names of training images
    shutil.copy(trained[0], new / trained[0].name)
    assert {path.name for path in (new / "good").iterdir()} & {path.name for path in trained}
    shutil.copy(trained[1], new / "unrecognised.png")
    run = make_run(tmp_path / "run", data, tile)

    def found(model: Path) -> list[tuple[str, str]]:
        assert main(["detect", str(model), str(new), "--output", str(tmp_path / "found"), "--no-maps"]) == 0
        rows = csv.DictReader((tmp_path / "found" / "results.csv").read_text().splitlines())
        return [(Path(row["path"]).relative_to(new).parent.name, row["trained_on"]) for row in rows]

    expected = [("good", "0"), ("good", "0"), ("", "1"), ("", "0")]
    for _ in range(2):  # the second call finds its rows there
        assert sorted(found(run)) == sorted(expected)
        assert caplog.text.count("1 of these 4 images were trained on") == 1
        caplog.clear()
    shutil.rmtree(tmp_path / "found")
    assert {told for _, told in found(run / "model")} == {""} and "trained on" not in caplog.text, (
        "no run, no checksums"
    )
    shutil.rmtree(tmp_path / "found")
    (run / "images.arrow").write_bytes(b"damaged")
    assert {told for _, told in found(run)} == {""}


def test_evaluate_counts_them_whatever_they_are_called(data, tmp_path, caplog):
    run, root = make_run(tmp_path / "run", data), tmp_path / "part"
    words = ["evaluate", str(run), "--data", str(root), "--last-round", "--output", str(tmp_path)]
    shutil.copytree(data, root)
    for count in (0, 1):
        assert main(words) == 0
        assert json.loads((tmp_path / "results.json").read_text())["trained_on"] == count
        assert ("1 of these 5 images were trained on" in caplog.text) == bool(count)
        shutil.copy(next((data / "train" / "good").iterdir()), root / "test" / "good" / "more.png")
