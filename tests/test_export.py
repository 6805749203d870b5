"""Every way to a score agrees with the direct one: reloaded, batched, in one tile, at another effort, as an ONNX file."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_models import part_tree, tiny_pipeline

from iltm_anomaly import ILTMAnomalyPipeline
from iltm_anomaly.export.graph import export_onnx
from iltm_anomaly.export.scorer import OnnxScorer
from iltm_anomaly.training.train import TrainArguments, train

# Largest difference of a map from the direct one, in shares of the threshold; docs/efforts.md has the same table.
TOLERANCES = {
    "features": {
        **{"reloaded": 0.0, "batched": 1e-4, "one tile": 0.0, "score": 0.0},
        **{"exported": 1e-4, "exported, in tiles": 1e-4},
    },
    "pixels": {"reloaded": 0.0, "batched": 1e-4, "one tile": 0.0, "exported": 1e-4, "exported, in tiles": 1e-4},
}
DIRECT = {
    "exported": {"effort": "score"},
    "exported, in tiles": {"effort": "score", "tile": 48},
}  # what these are held to
PAGE = Path(__file__).parents[1] / "docs" / "efforts.md"


@pytest.fixture(scope="module")
def pipelines(tmp_path_factory):
    data = part_tree(tmp_path_factory.mktemp("data"))
    output = tmp_path_factory.mktemp("run") / "run"
    train(TrainArguments(str(data), output, preset="tiny-features", overrides=["image_size=128"], rounds=1))
    found = {"features": ILTMAnomalyPipeline.from_pretrained(output / "model")}
    found["pixels"] = tiny_pipeline(score_threshold=1.0, threshold_at_score=2.0, token_threshold=0.05)
    return found


@pytest.fixture(scope="module")
def images():
    """Of sizes above, at, and below that of the model, in colour and grey."""
    random = np.random.default_rng(0)
    pixels = [random.integers(0, 256, (*size, 3), dtype=np.uint8) for size in ((150, 170), (128, 128), (40, 64))]
    return [*map(Image.fromarray, pixels), Image.fromarray(pixels[0]).convert("L")]


@pytest.fixture(scope="module")
def exported(pipelines, tmp_path_factory):
    """Files by kind; that of pixels is of a pipeline that takes tiles."""
    for name in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(name, reason="needs the extra [onnx]")
    folder, whole = tmp_path_factory.mktemp("export"), pipelines["pixels"]
    in_tiles = ILTMAnomalyPipeline(**whole.components, settings=replace(whole.settings, tile=48), noise=whole.noise)
    made = {"features": pipelines["features"], "pixels": in_tiles}
    return {kind: export_onnx(pipeline, folder / f"{kind}.onnx") for kind, pipeline in made.items()}


def results_of(way, pipeline, images, folder, request):
    """Score, map and mask of each image."""
    if way.startswith("exported"):
        kind = "features" if pipeline.has_features else "pixels"
        scorer = OnnxScorer(request.getfixturevalue("exported")[kind], threads=1)
        scorer.tile = DIRECT[way].get("tile")
        return [(found.score, found.anomaly_map, found.mask) for found in map(scorer, images)]
    if way == "reloaded":
        pipeline.save_pretrained(folder)
        pipeline = ILTMAnomalyPipeline.from_pretrained(folder)
    options = {"batched": {"batch_size": 2}, "one tile": {"tile": 1000}, "score": {"effort": "score"}}.get(way, {})
    return direct_results(pipeline, images if way == "batched" else None, images, options)


def direct_results(pipeline, together, images, options):
    outputs = [pipeline(together, **options)] if together else [pipeline(image, **options) for image in images]
    return [row for out in outputs for row in zip(out.scores.tolist(), out.anomaly_maps, out.masks, strict=True)]


@pytest.mark.parametrize("kind, way", [(kind, way) for kind, ways in TOLERANCES.items() for way in ways])
def test_every_way_agrees_with_the_direct_one(pipelines, images, kind, way, tmp_path, request):
    pipeline = pipelines[kind]
    direct = direct_results(pipeline, None, images, DIRECT.get(way, {}))
    limit = TOLERANCES[kind][way] * pipeline.settings.score_threshold
    for (score, values, mask), found in zip(direct, results_of(way, pipeline, images, tmp_path, request), strict=True):
        assert found[0] == pytest.approx(score, abs=limit)
        np.testing.assert_allclose(found[1], values, rtol=0, atol=limit)
        assert found[1].dtype == np.float32 and (found[2] != mask).mean() < 1e-3


def test_the_page_has_these_tolerances():
    text = PAGE.read_text(encoding="utf-8").split("## Every way agrees")[1]
    rows = [
        [cell.strip() for cell in row.strip("|").split("|")] for row in re.findall(r"^\|.*\|$", text, re.MULTILINE)
    ]
    told = {row[0]: row[1:3] for row in rows[2:]}
    for column, kind in enumerate(TOLERANCES):
        assert {way: cells[column] for way, cells in told.items() if cells[column] != "-"} == {
            way: f"{value:g}" for way, value in TOLERANCES[kind].items()
        }


def test_the_scorer_needs_neither_torch_nor_transformers(exported, images, pipelines, tmp_path, run_fresh):
    images[0].save(tmp_path / "part.png")
    printed = run_fresh(
        """
        import sys
        from iltm_anomaly.export.scorer import OnnxScorer
        found = OnnxScorer(sys.argv[1], threads=1)(sys.argv[2])
        print(found.score, *(name for name in ("torch", "transformers", "datasets") if name in sys.modules))
        """,
        exported["features"],
        tmp_path / "part.png",
    )
    expected = float(pipelines["features"](images[0]).scores[0])
    assert float(printed) == pytest.approx(expected, abs=1e-3)  # and no name follows the number


def test_threshold_and_tiles_travel_with_the_file(exported, pipelines):
    scorers = {kind: OnnxScorer(path) for kind, path in exported.items()}
    assert scorers["features"].threshold == pytest.approx(pipelines["features"].settings.score_threshold)
    assert (scorers["pixels"].threshold, scorers["pixels"].tile, scorers["features"].tile) == (2.0, 48, None)


def test_what_is_no_exported_file_is_refused(tmp_path):
    pytest.importorskip("onnxruntime", reason="needs the extra [onnx]")
    with pytest.raises(ValueError, match="no file"):
        OnnxScorer(tmp_path / "nothing.onnx")
    (tmp_path / "junk.onnx").write_bytes(b"junk")
    with pytest.raises(ValueError, match=r"junk.onnx is no file of `iltm-anomaly export`"):
        OnnxScorer(tmp_path / "junk.onnx")


def test_what_cannot_be_exported_is_said(pipelines, tmp_path, monkeypatch):
    without = tiny_pipeline(score_threshold=1.0)  # as version 0.1 has made
    monkeypatch.setattr("iltm_anomaly.export.graph.find_spec", lambda name: name)
    with pytest.raises(ValueError, match="no threshold for effort 'score'"):
        export_onnx(without, tmp_path / "a.onnx")
    with pytest.raises(ValueError, match=r"is no file: give a name such as .*model.onnx"):
        export_onnx(pipelines["features"], tmp_path)
    monkeypatch.setattr("iltm_anomaly.export.graph.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"needs onnx and onnxscript: pip install .*\[onnx\]"):
        export_onnx(pipelines["features"], tmp_path / "a.onnx")
