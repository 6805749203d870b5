"""Folders of strangers: refused with the file named, and nothing run."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from hostile import Bomb, edit, spoil

from iltm_anomaly.comparison.baselines import BaselinePipeline

CONFIG, WEIGHTS = "model/config.json", "model/model.safetensors"
PROCESSOR = "image_processor/preprocessor_config.json"


def pickle(folder: Path) -> None:
    torch.save({"x": Bomb(folder / "owned")}, folder / "model" / "pytorch_model.bin")


def code(folder: Path) -> None:
    (folder / "model" / "modeling_evil.py").write_text(f"open({str(folder / 'owned')!r}, 'w')")


def huge_images(folder: Path) -> None:
    edit(folder / CONFIG, image_size=[80_000, 80_000])
    edit(folder / PROCESSOR, size={"height": 80_000, "width": 80_000})


ATTACKS = {
    "pickle": ("autoencoder", pickle, r"pytorch_model.bin may run code"),
    "code": ("autoencoder", code, r"modeling_evil.py does not belong"),
    "auto_map": ("autoencoder", lambda f: edit(f / CONFIG, auto_map={"AutoModel": "evil.Evil"}), r"has 'auto_map'"),
    "foreign class": (
        "autoencoder",
        lambda f: edit(f / "model_index.json", model=["os", "system"]),
        r"'os', 'system'",
    ),
    "no class": (
        "autoencoder",
        lambda f: edit(f / "model_index.json", model=["iltm_anomaly", ["x"]]),
        r"not a baseline",
    ),
    "another class": (
        "autoencoder",
        lambda f: edit(f / "model_index.json", model=["iltm_anomaly", "VAEModel"]),
        r"'iltm_autoencoder' as its model_type",
    ),
    "more parts": ("autoencoder", lambda f: edit(f / "model_index.json", more=["a", "B"]), r"unknown parts: more"),
    "unknown field": ("autoencoder", lambda f: edit(f / CONFIG, files="../../x"), r"unknown fields: files"),
    "text for a number": ("autoencoder", lambda f: edit(f / CONFIG, latent_size="16"), r"no valid configuration"),
    "wrong shape": (
        "autoencoder",
        lambda f: spoil(f / WEIGHTS, "from_latent.bias", lambda t: t[:2]),
        r"from_latent.bias is \(2,\)",
    ),
    "NaN": ("autoencoder", lambda f: spoil(f / WEIGHTS, "from_latent.bias", lambda t: t * torch.nan), r"holds NaN"),
    "NaN in a density": (
        "cutpaste",
        lambda f: spoil(f / WEIGHTS, "patch_density.mean", lambda t: t * torch.nan),
        r"patch_density.mean holds NaN",
    ),
    "10 GB of latents": (
        "autoencoder",
        lambda f: edit(f / CONFIG, latent_size=10**9),
        r"claims latent_size 1000000000",
    ),
    "10 GB of layers": ("cutpaste", lambda f: edit(f / CONFIG, depths=[2, 2, 2, 10**9]), r"claims depths 1000000000"),
    "10 GB of bank": ("patchcore", lambda f: edit(f / CONFIG, bank_rows=10**9), r"claims bank_rows 1000000000"),
    "10 GB of pixels": ("cutpaste", huge_images, r"image_size must be \(height, width\) of 8 to 4096"),
    "other pixels": (
        "autoencoder",
        lambda f: edit(f / PROCESSOR, size={"height": 96, "width": 96}),
        r"they do not fit",
    ),
    "a backbone that loads": (
        "patchcore",
        lambda f: edit(f / CONFIG, backbone_config={"model_type": "timm_backbone", "backbone": "someone/evil"}),
        r"'timm_backbone'",
    ),
    "threshold of text": (
        "mean_image",
        lambda f: edit(f / "calibration.json", score_threshold="high"),
        r"finite number",
    ),
    "more settings": ("mean_image", lambda f: edit(f / "calibration.json", num_samples=10), r"score_threshold alone"),
    "no weights": ("mean_image", lambda f: (f / WEIGHTS).unlink(), r"has no model.safetensors"),
}


@pytest.mark.parametrize("attack_name", ATTACKS)
def test_is_refused_and_runs_nothing(train, tmp_path, attack_name):
    method, attack, message = ATTACKS[attack_name]
    train(method).save_pretrained(tmp_path / "model")
    folder = tmp_path / "model"
    attack(folder)
    with pytest.raises(ValueError, match=message):
        BaselinePipeline.from_pretrained(folder)
    assert not (folder / "owned").exists()


def test_a_folder_of_iltm_is_none(tmp_path):
    shutil.rmtree(tmp_path, ignore_errors=True)
    tmp_path.mkdir()
    (tmp_path / "model_index.json").write_text(json.dumps({"vqvae": ["iltm_anomaly", "VQVAEModel"]}))
    with pytest.raises(ValueError, match="names None as its model"):
        BaselinePipeline.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="no pipeline folder at"):
        BaselinePipeline.from_pretrained(tmp_path / "nothing")
