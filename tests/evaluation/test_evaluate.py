"""Evaluation of pipelines with damaged reports."""

import json

import pytest
from tiny_models import tiny_pipeline

from iltm_anomaly.evaluation.evaluate import evaluate_run
from iltm_anomaly.evaluation.rounds import load_rounds
from iltm_anomaly.hub.upload import plan_upload


@pytest.mark.parametrize(
    ("report", "message"),
    [
        ({"data": 5}, r"training_report.json: data is damaged: '5' cannot stand there"),
        ({"data": {"contamination": [0.1]}}, r"data: contamination is damaged"),
        ({"rounds": {"round": 0}}, r"rounds is damaged"),
        ({"rounds": [0]}, r"rounds: item 0 is damaged"),
        ({"recipe": "cpu"}, r"recipe is damaged"),
        ({"recipe": {"rounds": {"outlier_scale": "3"}}}, r"recipe: rounds: outlier_scale is damaged"),
    ],
)
def test_a_damaged_report_is_named(tmp_path, report, message):
    tiny_pipeline().save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "training_report.json").write_text(json.dumps(report))
    with pytest.raises(ValueError, match=message):
        evaluate_run(tmp_path / "model", tmp_path / "data", None, tmp_path / "out")
    with pytest.raises(ValueError, match=message):
        plan_upload(tmp_path / "model", "owner/name")


def test_rounds_without_a_number_are_named():
    pipeline = tiny_pipeline()
    pipeline.training_report = {"rounds": [{"seconds": 1.0}]}
    with pytest.raises(ValueError, match="rounds without a number"):
        load_rounds(pipeline, None)
