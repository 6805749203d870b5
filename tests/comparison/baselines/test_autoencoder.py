"""AE and VAE: the source's architecture and losses."""

import math

import pytest
import torch
from torch import nn

from iltm_anomaly.comparison.baselines.autoencoder import AutoencoderConfig, AutoencoderModel, absolute_error
from iltm_anomaly.comparison.baselines.vae import VAEConfig, VAEModel, divergence


@pytest.mark.parametrize(
    "size, widths",
    [((128, 128), (32, 64, 128, 128)), ((256, 256), (32, 64, 128, 128, 128)), ((64, 96), (32, 64, 128))],
)
def test_the_bottleneck_is_the_sources(size, widths):
    config = AutoencoderConfig(image_size=size)
    assert config.widths == widths
    model = AutoencoderModel(config)
    assert model.smallest == (16, *(side // 2 ** len(widths) for side in size))
    convolutions = [m for m in model.encoder if isinstance(m, nn.Conv2d)]
    assert [m.out_channels for m in convolutions] == [*widths, 16]
    assert all(m.kernel_size == (5, 5) and m.stride == (2, 2) for m in convolutions[:-1])


@pytest.mark.parametrize("size", [(40, 40), (72, 136), (8, 8)])
def test_any_size_of_the_processor_comes_back(size):
    model = AutoencoderModel(AutoencoderConfig(image_size=size, first_width=4, largest_width=8)).eval()
    pixels = torch.rand(2, 3, *size)
    assert model(pixels).prediction.shape == pixels.shape
    assert model.anomaly_maps(pixels)[1].shape == (2, *size)


def test_losses_are_the_sources():
    a, b = torch.rand(3, 3, 8, 8), torch.rand(3, 3, 8, 8)
    assert float(absolute_error(a, b)) == pytest.approx(float((a - b).abs().sum() / 3), rel=1e-5)
    mean, log_deviation = torch.tensor([[0.5, -1.0]]), torch.tensor([[0.3, -0.2]])
    expected = sum(0.5 * (m**2 + math.exp(2 * s) - 2 * s - 1) for m, s in zip([0.5, -1.0], [0.3, -0.2], strict=True))
    assert float(divergence(mean, log_deviation)) == pytest.approx(expected, rel=1e-5)
    assert float(divergence(torch.zeros(2, 4), torch.zeros(2, 4))) == 0


def test_vae_draws_in_training_only():
    torch.manual_seed(0)
    model = VAEModel(VAEConfig(image_size=(32, 32), first_width=4, largest_width=8, latent_size=4, dropout=0.0))
    pixels = torch.rand(2, 3, 32, 32)
    model.train()
    assert not torch.equal(model(pixels).prediction, model(pixels).prediction)
    model.eval()
    assert torch.equal(model(pixels).prediction, model(pixels).prediction)


def test_a_wrong_size_is_named():
    model = AutoencoderModel(AutoencoderConfig(image_size=(32, 32)))
    with pytest.raises(ValueError, match=r"\(B, 3, 32, 32\), got \(1, 3, 64, 64\)"):
        model(torch.rand(1, 3, 64, 64))


def test_configuration_survives_json(tmp_path):
    config = AutoencoderConfig(image_size=(64, 96))
    config.save_pretrained(tmp_path)
    assert AutoencoderConfig.from_pretrained(tmp_path).image_size == (64, 96)
