"""Stage 1: when the codebook starts."""

import numpy as np
import pytest
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from PIL import Image

from iltm_anomaly.recipes.pixel_recipe import Recipe
from iltm_anomaly.tokenizers.vqvae import VQVAEModel
from iltm_anomaly.training.run import TrainingRun


@pytest.fixture
def accelerator():
    yield Accelerator(cpu=True)
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.parametrize("codebook_start, updates", [(None, 8), (0, 8), (3, 5), (60, 4)])
def test_nothing_is_quantised_before_the_codebook_starts(accelerator, tmp_path, codebook_start, updates):
    recipe = Recipe.from_dict(
        {
            "name": "test",
            "image_size": 32,
            "codebook_start": codebook_start,
            "stage1": {"epochs": 4, "batch_size": 4},
            "stage2": {"epochs": 1, "batch_size": 4},
            "rounds": {"rounds": 0, "code_copies": 1},
            "vqvae": {"channels": [8, 8, 8], "num_res_blocks": 1, "vocab_size": 16, "embedding_dim": 4},
            "prior": {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "head_dim": 8},
            "inference": {"num_samples": 2, "num_dropout_passes": 2},
        }
    )
    rng = np.random.default_rng(0)
    images = [Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)) for _ in range(8)]
    TrainingRun(recipe, tmp_path, 0, accelerator, show_progress=False).train(images, dict)
    assert VQVAEModel.from_pretrained(tmp_path / "tokenizer").quantizer.updates == updates  # of 8 steps
