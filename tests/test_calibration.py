"""What training images tell of a finished pipeline."""

import pytest
import torch
from tiny_models import tiny_pipeline

from iltm_anomaly.calibration import explained_share
from iltm_anomaly.training.run import warn_of_junk


def test_a_tokenizer_that_draws_no_better_than_the_mean_image_is_junk(monkeypatch, caplog):
    pipeline = tiny_pipeline()
    images = torch.rand(6, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(pipeline.tokenizer, "expect", lambda codes: images)
    codes = pipeline.encode(images)
    assert explained_share(pipeline.tokenizer, images, codes) == pytest.approx(1)
    warn_of_junk(pipeline, images)
    assert not caplog.text
    monkeypatch.setattr(pipeline.tokenizer, "expect", lambda codes: images.mean(0).expand_as(images))
    assert explained_share(pipeline.tokenizer, images, codes) == pytest.approx(0, abs=1e-5)
    warn_of_junk(pipeline, images)
    assert "hardly better than their mean does (it explains 0 %" in caplog.text.replace("-0 %", "0 %")
