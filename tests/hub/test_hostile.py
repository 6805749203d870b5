"""Pipeline folders of strangers: refused with the file named, and nothing run."""

import json
import os
import shutil
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from hostile import Bomb, edit, spoil
from safetensors.torch import save_file
from tiny_models import tiny_pipeline
from transformers import AutoModel, pipeline

from iltm_anomaly import ILTMAnomalyPipeline
from iltm_anomaly.hub.parts import read_folder_settings
from iltm_anomaly.hub.upload import plan_upload
from iltm_anomaly.output import NonFiniteScoreError
from iltm_anomaly.settings import FeatureSettings, InferenceSettings
from iltm_anomaly.tokenizers.vqvae import VQVAEModel


@pytest.fixture(scope="module")
def pristine(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("hostile") / "model"
    tiny_pipeline().save_pretrained(folder)
    return folder


@pytest.fixture
def folder(pristine, tmp_path) -> Path:
    shutil.copytree(pristine, tmp_path / "model")
    return tmp_path / "model"


PRIOR = "prior/config.json"
VQVAE = "tokenizer/config.json"
HEAD = "tokenizer/model.safetensors"
CALIBRATION = "calibration.json"
SETTINGS = "inference_config.json"
NOISE = "calibration.safetensors"
PROCESSOR = "image_processor/preprocessor_config.json"


def pickle_only(folder: Path) -> None:
    (folder / HEAD).unlink()
    torch.save({"x": Bomb(folder / "owned")}, folder / "tokenizer" / "pytorch_model.bin")


def pickle_beside(folder: Path) -> None:
    torch.save({"x": Bomb(folder / "owned")}, folder / "tokenizer" / "pytorch_model.bin")


def code(folder: Path) -> None:
    (folder / "tokenizer" / "modeling_evil.py").write_text(f"open({str(folder / 'owned')!r}, 'w')")


def auto_map(folder: Path) -> None:
    evil = folder.parent / "modeling_evil.py"
    evil.write_text(f"open({str(folder / 'owned')!r}, 'w')")
    edit(folder / VQVAE, auto_map={"AutoModel": "modeling_evil.Evil"})


def shards(name: str):
    def attack(folder: Path) -> None:
        shutil.copy(folder / HEAD, folder.parent / "outside.safetensors")
        (folder / HEAD).rename(folder / "tokenizer" / "model-00001-of-00001.safetensors")
        index = {"metadata": {}, "weight_map": {"decoder_head.bias": name}}
        (folder / "tokenizer" / "model.safetensors.index.json").write_text(json.dumps(index))

    return attack


def nested_processor(folder: Path) -> None:
    """transformers takes this file before the other."""
    values = json.loads((folder / PROCESSOR).read_text()) | {"rescale_factor": 1.0}
    (folder / "image_processor" / "processor_config.json").write_text(json.dumps({"image_processor": values}))


def lose_noise(folder: Path) -> None:
    edit(folder / CALIBRATION, score_threshold=1.0)
    (folder / NOISE).unlink()


def endless(folder: Path) -> None:
    (folder / PRIOR).unlink()
    (folder / PRIOR).symlink_to("/dev/zero")


ATTACKS = {
    "pickle only": (pickle_only, r"pytorch_model.bin may run code"),
    "pickle beside safetensors": (pickle_beside, r"pytorch_model.bin may run code"),
    "code": (code, r"modeling_evil.py does not belong"),
    "adapter": (
        lambda f: (f / "prior" / "adapter_config.json").write_text("{}"),
        r"adapter_config.json does not belong",
    ),
    "auto_map": (auto_map, r"tokenizer/config.json has 'auto_map'"),
    "auto_map at the root": (lambda f: edit(f / "config.json", auto_map={"AutoModel": "x.Y"}), r"has 'auto_map'"),
    "auto_map of the processor": (
        lambda f: edit(f / PROCESSOR, auto_map={"a": "b"}),
        r"preprocessor_config.json has 'auto_map'",
    ),
    "class in the index": (
        lambda f: edit(f / "model_index.json", prior=["os", "system"]),
        r"'os', 'system'.*not a pipeline",
    ),
    "unknown tokenizer": (
        lambda f: edit(f / "model_index.json", tokenizer=["os", "system"]),
        r"'os', 'system'.*for tokenizer.*not a pipeline",
    ),
    "more parts": (lambda f: edit(f / "model_index.json", safety=["../evil", "X"]), r"unknown parts: safety"),
    "architecture": (lambda f: edit(f / PRIOR, architectures=["GPT2Model"]), r"names the classes \['GPT2Model'\]"),
    "model type": (lambda f: edit(f / PRIOR, model_type="gpt2"), r"'gpt2' as its model_type"),
    "processor class": (
        lambda f: edit(f / PROCESSOR, image_processor_type="ViTImageProcessor"),
        r"'ViTImageProcessor'",
    ),
    "unknown field": (lambda f: edit(f / PRIOR, weights="../../x"), r"unknown fields: weights"),
    "shard above": (shards("../outside.safetensors"), r"names the file '../outside.safetensors'"),
    "absolute shard": (shards("/etc/outside.safetensors"), r"names the file '/etc/outside.safetensors'"),
    "missing shard": (shards("model-00002-of-00002.safetensors"), r"has no model-00002"),
    "wrong shape": (
        lambda f: spoil(f / HEAD, "decoder_head.bias", lambda t: t[:2]),
        r"decoder_head.bias is \(2,\) in the file",
    ),
    "missing tensor": (lambda f: edit(f / VQVAE, num_res_blocks=2), r"not those of its config.json"),
    "NaN": (lambda f: spoil(f / HEAD, "decoder_head.bias", lambda t: t * torch.nan), r"decoder_head.bias holds NaN"),
    "lost noise": (lose_noise, r"not complete: it has no calibration.safetensors.*Copy the whole folder"),
    "weights of bits": (
        lambda f: spoil(f / HEAD, "decoder_head.bias", lambda t: t > 0),
        r"decoder_head.bias is stored as BOOL, not as F32 or F16 or BF16",
    ),
    "weights of bytes": (
        lambda f: spoil(f / HEAD, "decoder_head.bias", lambda t: t.to(torch.int8)),
        r"decoder_head.bias is stored as I8",
    ),
    "weights under another type": (
        lambda f: spoil(f / HEAD, "decoder_head.bias", lambda t: t.view(torch.int32)),
        r"decoder_head.bias is stored as I32",
    ),
    "whole noise": (lambda f: save_file({"noise": torch.ones(32, 32, dtype=torch.int64)}, f / NOISE), r"type F32"),
    "NaN noise": (
        lambda f: save_file({"noise": torch.full((32, 32), torch.nan)}, f / NOISE),
        r"noise holds NaN",
    ),
    "large noise": (
        lambda f: save_file({"noise": torch.zeros(64, 64)}, f / NOISE),
        r"noise, of shape \(32, 32\)",
    ),
    "broken weights": (lambda f: (f / HEAD).write_bytes(b"\xff" * 64), r"no readable safetensors"),
    "cut weights": (lambda f: (f / HEAD).write_bytes((f / HEAD).read_bytes()[:-10]), r"no readable safetensors"),
    "no weights": (lambda f: (f / HEAD).unlink(), r"has no model.safetensors"),
    "no part": (lambda f: shutil.rmtree(f / "prior"), r"has no prior/"),
    "no calibration": (lambda f: (f / CALIBRATION).unlink(), r"has no calibration.json"),
    "no processor": (lambda f: (f / PROCESSOR).unlink(), r"has no preprocessor_config.json"),
    "10 GB of width": (lambda f: edit(f / PRIOR, hidden_size=50_000_000), r"claims hidden_size 50000000"),
    "10 GB of layers": (lambda f: edit(f / PRIOR, num_hidden_layers=10**9), r"claims num_hidden_layers 1000000000"),
    "10 GB of codes": (lambda f: edit(f / VQVAE, vocab_size=10**9), r"claims vocab_size 1000000000"),
    "10 GB of positions": (lambda f: edit(f / PRIOR, grid_shape=[10**5, 10**5]), r"claims grid_shape 10000000000"),
    "10 GB of pixels": (
        lambda f: edit(f / PROCESSOR, size={"height": 80_000, "width": 80_000}),
        r"the image processor makes",
    ),
    "10 GB by padding": (lambda f: edit(f / PROCESSOR, size_divisor=80_000), r"the image processor makes"),
    "endless sampling": (
        lambda f: edit(f / SETTINGS, num_samples=10**9),
        r"'num_samples' must be a whole number",
    ),
    "no sampling": (
        lambda f: edit(f / SETTINGS, num_dropout_passes=-1),
        r"'num_dropout_passes' must be a whole number",
    ),
    "endless filter": (lambda f: edit(f / SETTINGS, smoothing=1e9), r"'smoothing' must be a number from 0 to 100"),
    "no bandwidth": (lambda f: edit(f / SETTINGS, bandwidth_floor=0.0), r"'bandwidth_floor' must be a number"),
    "null setting": (lambda f: edit(f / SETTINGS, likelihood_share=None), r"'likelihood_share' must be a number"),
    "NaN setting": (
        lambda f: edit(f / CALIBRATION, score_threshold=float("nan")),
        r"'score_threshold' must be a number",
    ),
    "huge number": (lambda f: edit(f / CALIBRATION, score_threshold=10**400), r"'score_threshold' must be a number"),
    "unknown setting": (lambda f: edit(f / SETTINGS, file="../x"), r"inference_config.json has no setting 'file'"),
    "unknown number": (lambda f: edit(f / CALIBRATION, file="../x"), r"calibration.json has no setting 'file'"),
    "setting among what was measured": (
        lambda f: edit(f / CALIBRATION, num_samples=3),
        r"calibration.json has no setting 'num_samples'",
    ),
    "measured among the settings": (
        lambda f: edit(f / SETTINGS, score_threshold=3.0),
        r"inference_config.json has no setting 'score_threshold'",
    ),
    "no settings": (lambda f: (f / SETTINGS).unlink(), r"has no inference_config.json"),
    "broken settings": (lambda f: (f / SETTINGS).write_text("{"), r"inference_config.json is not valid JSON"),
    "negative noise": (lambda f: save_file({"noise": torch.full((32, 32), -1.0)}, f / NOISE), r"is negative"),
    "NaN in the processor": (
        lambda f: edit(f / PROCESSOR, rescale_factor=float("nan")),
        r"preprocessor_config.json is no valid configuration: rescale_factor",
    ),
    "list in the processor": (
        lambda f: edit(f / PROCESSOR, rescale_factor=[]),
        r"preprocessor_config.json is no valid",
    ),
    "text in the processor": (
        lambda f: edit(f / PROCESSOR, size_divisor="8"),
        r"size_divisor must be at least 1 and a whole number",
    ),
    "path in the processor": (lambda f: edit(f / PROCESSOR, image_processor_filename="../x"), r"unknown setting"),
    "second processor": (nested_processor, r"processor_config.json does not belong"),
    "generation settings": (
        lambda f: (f / "prior" / "generation_config.json").write_text("{}"),
        r"generation_config.json does not belong",
    ),
    "path in a configuration": (lambda f: edit(f / PRIOR, _name_or_path="/etc/x"), r"unknown fields: _name_or_path"),
    "kernels of a repository": (
        lambda f: edit(f / PRIOR, _attn_implementation="somebody/kernels"),
        r"unknown fields: _attn_implementation",
    ),
    "other weights": (
        lambda f: edit(f / VQVAE, transformers_weights="../x.safetensors"),
        r"unknown fields: transformers_weights",
    ),
    "inherited field": (lambda f: edit(f / PRIOR, id2label=5), r"unknown fields: id2label"),
    "function for a dtype": (lambda f: edit(f / PRIOR, dtype="load"), r"names the dtype 'load'"),
    "negative epsilon": (lambda f: edit(f / PRIOR, layer_norm_eps=-1.0), r"layer_norm_eps must be positive"),
    "endless JSON": (endless, r"has no config.json"),
    "text for a number": (lambda f: edit(f / PRIOR, hidden_size="16"), r"no valid configuration"),
    "large JSON": (lambda f: os.truncate(f / PRIOR, 10 * 2**30), r"is larger than 64 MiB"),
    "deep JSON": (lambda f: (f / PRIOR).write_text("[" * 100_000), r"not valid JSON"),
    "binary JSON": (lambda f: (f / PRIOR).write_bytes(b"\x80\x04"), r"not valid JSON"),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_is_refused_and_runs_nothing(folder, name):
    attack, message = ATTACKS[name]
    attack(folder)
    with pytest.raises(ValueError, match=message):
        ILTMAnomalyPipeline.from_pretrained(folder)
    assert not (folder / "owned").exists()


@pytest.mark.parametrize("name", ATTACKS)
def test_is_refused_by_the_pipeline_of_transformers_too(folder, name):
    ATTACKS[name][0](folder)
    with pytest.raises((ValueError, OSError)):
        pipeline("anomaly-detection", model=str(folder))
    assert not (folder / "owned").exists()


@pytest.mark.parametrize("name", ["pickle beside safetensors", "code", "auto_map", "missing tensor", "10 GB of codes"])
def test_a_folder_of_version_0_1_is_checked_too(folder, name):
    attack, message = ATTACKS[name]
    attack(folder)
    (folder / "tokenizer").rename(folder / "vqvae")
    index = json.loads((folder / "model_index.json").read_text())
    index["vqvae"] = index.pop("tokenizer")
    (folder / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=message.replace("tokenizer/", "vqvae/")):
        ILTMAnomalyPipeline.from_pretrained(folder)
    assert not (folder / "owned").exists()


@pytest.mark.parametrize("settings", [FeatureSettings(score_threshold=1.0), InferenceSettings(score_threshold=1.0)])
def test_what_the_threshold_needs_belongs_to_either_kind_of_folder(tmp_path, settings):
    (tmp_path / CALIBRATION).write_text(json.dumps(asdict(settings)))  # of earlier versions
    with pytest.raises(ValueError, match="not complete"):
        read_folder_settings(tmp_path)
    (tmp_path / CALIBRATION).write_text(json.dumps(asdict(settings) | {"score_threshold": None}))
    assert read_folder_settings(tmp_path).score_threshold is None


def test_a_folder_without_its_noise_is_not_pushed(folder):
    lose_noise(folder)
    with pytest.raises(ValueError, match=r"has no calibration.safetensors"):
        plan_upload(folder, "owner/name")


def test_the_folder_they_were_made_from_loads(folder):
    assert ILTMAnomalyPipeline.from_pretrained(folder).settings.num_samples == 2
    assert pipeline("anomaly-detection", model=str(folder)).model.detector.settings.num_samples == 2


def test_a_score_that_is_no_number_is_an_error_of_its_image(folder):
    spoil(folder / HEAD, "quantizer.codebook", lambda t: torch.full_like(t, 3e38))
    with pytest.raises(NonFiniteScoreError, match="the score of image 1 is nan"):
        ILTMAnomalyPipeline.from_pretrained(folder)(np.zeros((32, 32, 3), np.uint8))


def test_shards_load_like_one_file(folder):
    pipe = ILTMAnomalyPipeline.from_pretrained(folder)
    (folder / HEAD).unlink()
    pipe.vqvae.save_pretrained(folder / "tokenizer", max_shard_size="5KB")
    assert len(list((folder / "tokenizer").glob("model-*.safetensors"))) > 1 and not (folder / HEAD).exists()
    sharded = ILTMAnomalyPipeline.from_pretrained(folder).vqvae.state_dict()
    assert all(torch.equal(tensor, sharded[name]) for name, tensor in pipe.vqvae.state_dict().items())


def test_parts_alone_run_nothing_either(folder):
    auto_map(folder)
    assert type(AutoModel.from_pretrained(folder / "tokenizer")) is VQVAEModel
    assert not (folder / "owned").exists()


def test_a_part_alone_is_not_read_from_a_pickle(folder):
    pickle_only(folder)
    with pytest.raises(OSError, match="safetensors"):
        AutoModel.from_pretrained(folder, subfolder="tokenizer")
    assert not (folder / "owned").exists()


def test_no_caller_can_ask_for_a_pickle(folder):
    torch.save(
        VQVAEModel.from_pretrained(folder / "tokenizer").state_dict(), folder / "tokenizer" / "pytorch_model.bin"
    )
    (folder / HEAD).unlink()
    with pytest.raises(OSError, match="safetensors"):
        VQVAEModel.from_pretrained(folder / "tokenizer", use_safetensors=False)
