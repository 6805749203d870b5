"""What earlier versions wrote still loads, and means the same."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from iltm_anomaly import ILTMAnomalyPipeline, VQVAEModel

GOLDEN = Path(__file__).parent / "golden"


def check(folder: Path, again: Path) -> ILTMAnomalyPipeline:
    """Loads a golden folder, and once more after it was saved `again`: both say of its images what its version has said."""
    known = load_file(folder.with_name(f"{folder.name}_expected.safetensors"))
    pipe = ILTMAnomalyPipeline.from_pretrained(folder)
    shutil.copytree(folder, again)
    pipe.save_pretrained(again)
    for one in (pipe, ILTMAnomalyPipeline.from_pretrained(again)):
        out = one(list(known["images"]))
        assert torch.equal(out.resampled_tokens, known["resampled"]) and known["resampled"].any()
        # other processors than the one that wrote it round a little differently
        torch.testing.assert_close(out.token_log_likelihoods, known["log_likelihoods"], rtol=1e-5, atol=1e-5)
        maps = torch.stack([torch.from_numpy(values) for values in out.anomaly_maps])
        torch.testing.assert_close(maps, known["maps"], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(out.scores, known["scores"], rtol=1e-4, atol=1e-5)
    return pipe


def test_a_pipeline_folder_of_version_0_1(tmp_path):
    """Its tokenizer is in `vqvae/`, and its files hold settings that are gone. Saved again it is one of today's."""
    pipe = check(GOLDEN / "pipeline_0.1", tmp_path / "again")
    assert isinstance(pipe.tokenizer, VQVAEModel) and pipe.vqvae is pipe.tokenizer
    assert (tmp_path / "again" / "tokenizer").is_dir() and not (tmp_path / "again" / "vqvae").exists()


def test_a_folder_of_features_of_version_0_1(tmp_path):
    """Of a ConvNeXt of a few random weights, fitted to random images and calibrated by hand (`tiny_feature_pipeline`)."""
    pipe = check(GOLDEN / "features_0.1", tmp_path / "again")
    assert pipe.has_features and pipe.settings.score_threshold == 5.0


def test_only_a_vqvae_has_the_former_name():
    pipe = ILTMAnomalyPipeline.from_pretrained(GOLDEN / "pipeline_0.1")
    pipe.tokenizer = object()
    with pytest.raises(AttributeError, match="not a VQ-VAE: use `tokenizer`"):
        _ = pipe.vqvae
