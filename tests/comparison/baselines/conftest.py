"""Baselines trained for a few seconds each on generated parts, once for all tests."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import ResNetBackbone, ResNetConfig

from iltm_anomaly import ILTMImageProcessor
from iltm_anomaly.comparison.baselines import BASELINES, BaselinePipeline, train_baseline
from iltm_anomaly.synthetic.dataset import render_image

SIDE = 64
NEEDS = {"nsa": "cv2"}
WITH_BACKBONE = ("patchcore", "patchcore_coreset", "softpatch")


def as_pixels(images: list[np.ndarray]) -> torch.Tensor:
    return torch.stack([torch.from_numpy(image).permute(2, 0, 1) for image in images])


@pytest.fixture(scope="session")
def training_images() -> torch.Tensor:
    """(32, 3, 64, 64) uint8, four of them defective."""
    good = [render_image("part", SIDE, "good", seed)[0] for seed in range(28)]
    defective = [render_image("part", SIDE, "blob", seed)[0] for seed in range(100, 104)]
    return as_pixels(good + defective)


@pytest.fixture(scope="session")
def test_images() -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Good images, and the same with a large patch of coloured noise."""
    good = [render_image("part", SIDE, "good", seed)[0] for seed in range(200, 208)]
    generator = np.random.default_rng(0)
    defective = [image.copy() for image in good]
    for image in defective:
        image[20:36, 28:44] = generator.integers(0, 2, (16, 16, 3)) * 255
    return good, defective


@pytest.fixture(scope="session")
def processor() -> ILTMImageProcessor:
    return ILTMImageProcessor(size=SIDE)


@pytest.fixture(scope="session")
def backbone_folder(tmp_path_factory) -> Path:
    """A small ResNet of transformers with random weights: pretrained ones are nowhere to be had offline."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("backbone")
    sizes = {"embedding_size": 8, "hidden_sizes": [8, 16, 32, 64], "depths": [1, 1, 1, 1], "layer_type": "basic"}
    ResNetBackbone(ResNetConfig(**sizes)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def backbone_config(backbone_folder) -> Callable[[str], dict[str, str]]:
    """What a method must be told to start from the small ResNet, if it starts from any."""
    return lambda name: {"backbone": str(backbone_folder)} if name in WITH_BACKBONE else {}


@pytest.fixture(scope="session")
def train(training_images, processor, backbone_config, tmp_path_factory) -> Callable[..., BaselinePipeline]:
    """Trains a baseline with preset tiny; a second call with the same arguments loads it. Skips where its extra is missing."""
    root = tmp_path_factory.mktemp("baselines")

    def run(name: str, seed: int = 0, **keywords) -> BaselinePipeline:
        if name in NEEDS:
            pytest.importorskip(NEEDS[name], reason="needs pip install 'iltm-anomaly[baselines]'")
        keywords.setdefault("config", backbone_config(name))
        folder = root / "_".join([name, str(seed), *(str(abs(hash(str(v)))) for v in keywords.values())])
        return train_baseline(
            name, training_images, processor, folder, seed=seed, preset="tiny", show_progress=False, **keywords
        )

    return run


@pytest.fixture(params=list(BASELINES))
def name(request) -> str:
    return request.param
