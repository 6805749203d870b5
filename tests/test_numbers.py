"""Images and likelihoods at the ends of their range have finite maps, for tokens of codes and of features alike."""

import numpy as np
import pytest
import torch
from tiny_models import tiny_feature_pipeline, tiny_pipeline

from iltm_anomaly import ILTMAnomalyPipeline

KINDS = {"codes": tiny_pipeline, "features": tiny_feature_pipeline}
GENERATOR = np.random.default_rng(0)


def hot_pixel(background: int = 0) -> np.ndarray:
    image = np.full((33, 47, 3), background, np.uint8)
    image[20, 30] = 255 - background
    return image


IMAGES = {
    "black": np.zeros((40, 40, 3), np.uint8),
    "white": np.full((40, 40, 3), 255, np.uint8),
    "constant": np.full((17, 90), 128, np.uint8),
    "one hot pixel": hot_pixel(),
    "one dead pixel": hot_pixel(255),
    "8 x 8": GENERATOR.integers(0, 256, (8, 8, 3), dtype=np.uint8),
    "one pixel": np.full((1, 1, 3), 9, np.uint8),
    "a line": GENERATOR.integers(0, 256, (1, 500, 3), dtype=np.uint8),
    "1024 x 1024": np.kron(GENERATOR.integers(0, 256, (64, 64, 3), dtype=np.uint8), np.ones((16, 16, 1), np.uint8)),
}


@pytest.fixture(scope="module", params=KINDS)
def pipeline(request) -> ILTMAnomalyPipeline:
    return KINDS[request.param](score_threshold=3.0)


def check(out, images: list[np.ndarray]) -> None:
    assert bool(out.scores.isfinite().all()) and bool(out.token_log_likelihoods.isfinite().all())
    for values, mask, image in zip(out.anomaly_maps, out.masks, images, strict=True):
        assert values.shape == mask.shape == image.shape[:2] and bool(np.isfinite(values).all())


def test_every_image_has_a_finite_map_of_its_own_size(pipeline):
    check(pipeline(list(IMAGES.values())), list(IMAGES.values()))


@pytest.mark.slow
def test_an_image_of_8192_pixels_a_side_has_a_finite_map(pipeline):
    image = np.kron(GENERATOR.integers(0, 256, (64, 64, 3), dtype=np.uint8), np.ones((128, 128, 1), np.uint8))
    check(pipeline(image), [image])


@pytest.mark.parametrize("batch_size", [1, 7, 60, pytest.param(1000, marks=pytest.mark.slow)])
def test_a_score_does_not_depend_on_how_many_there_are(pipeline, batch_size):
    images = [IMAGES["black"], IMAGES["8 x 8"], IMAGES["one hot pixel"]] * (batch_size // 3 + 3)
    out = pipeline(images, batch_size=batch_size)
    assert torch.equal(out.scores, out.scores[:3].repeat(len(out.scores) // 3))
    assert torch.equal(out.scores[:3], pipeline(images[:3]).scores)


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("limit", [0.0, 1e6])
def test_nothing_or_everything_may_be_unlikely(name, limit):
    """Of codes the limit of surprise, of features that of a token: at 0 all that surprises is healed, far up nothing is."""
    setting = {"codes": "surprise_limit", "features": "token_limit"}[name]
    pipeline = KINDS[name](score_threshold=3.0)
    setattr(pipeline.settings, setting, limit)
    out = pipeline(list(IMAGES.values())[:6])
    check(out, list(IMAGES.values())[:6])
    healed = out.resampled_tokens
    assert bool(healed.any()) == (limit == 0) and (name == "codes" or bool(healed.all()) == (limit == 0))


@pytest.mark.parametrize("name", KINDS)
def test_one_live_code(name):
    """All codewords but one are out of reach: every token has the same code."""
    pipeline = KINDS[name](score_threshold=3.0)
    with torch.no_grad():
        codebook = pipeline.tokenizer.codebook if name == "features" else pipeline.tokenizer.quantizer.codebook
        codebook[1:] = 1e6
    out = pipeline(list(IMAGES.values())[:6])
    check(out, list(IMAGES.values())[:6])
    pixels = pipeline.image_processor.preprocess(list(IMAGES.values())[:6])["pixel_values"]
    assert pipeline.encode(pixels).unique().tolist() == [0]


@pytest.mark.parametrize("name", KINDS)
def test_half_precision_is_near_and_bfloat16_is_refused(name, tmp_path):
    """Measured on these images: 0.1 % of a score at the most; four times as much is allowed."""
    images = [image for key, image in IMAGES.items() if key != "1024 x 1024"]
    KINDS[name](score_threshold=3.0).save_pretrained(tmp_path)
    exact = ILTMAnomalyPipeline.from_pretrained(tmp_path)(images)
    half = ILTMAnomalyPipeline.from_pretrained(tmp_path, dtype=torch.float16)(images)
    check(half, images)
    torch.testing.assert_close(half.scores, exact.scores, rtol=0.004, atol=0)
    with pytest.raises(ValueError, match="does not compute in torch"):
        ILTMAnomalyPipeline.from_pretrained(tmp_path, dtype=torch.bfloat16)
