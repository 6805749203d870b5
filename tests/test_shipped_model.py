"""The model that the repository carries: what `from_pretrained` has to load in the first minute, and the page as it is pushed."""

from pathlib import Path

import yaml

from iltm_anomaly import ILTMAnomalyPipeline

SPACE = Path(__file__).resolve().parents[1] / "space"


def test_the_model_finds_what_is_wrong_with_the_examples_of_the_page():
    pipe = ILTMAnomalyPipeline.from_pretrained(SPACE / "model")
    paths = sorted((SPACE / "examples").glob("*.png"))
    scores = dict(zip([path.stem for path in paths], pipe(paths).scores.tolist(), strict=True))
    threshold = pipe.settings.score_threshold
    good, missed = scores.pop("good"), scores.pop("no_screw")
    assert good < missed < threshold < min(scores.values()) and len(scores) == 4


def test_the_folder_is_small_and_its_card_says_who_may_use_it_and_how_it_was_made():
    sizes = {path: path.stat().st_size for path in (SPACE / "model").rglob("*") if path.is_file()}
    assert sum(sizes.values()) < 5e6  # which every checkout carries
    card = (SPACE / "model" / "README.md").read_text(encoding="utf-8")
    assert yaml.safe_load(card.split("---")[1])["license"] == "apache-2.0"
    assert "make weights" in card and "Weights trained on them are free" in card
