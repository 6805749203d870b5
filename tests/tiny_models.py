"""Models that run in milliseconds, and data to train such."""

from pathlib import Path

import torch
from transformers import ConvNextConfig

from iltm_anomaly.feature_map import LOOKS
from iltm_anomaly.pipeline import ILTMAnomalyPipeline
from iltm_anomaly.prior import PerformerPriorConfig, PerformerPriorModel, PositionPriorConfig, PositionPriorModel
from iltm_anomaly.processing.image_processing import ILTMImageProcessor
from iltm_anomaly.settings import FeatureSettings, InferenceSettings
from iltm_anomaly.synthetic.dataset import generate_dataset, write_mvtec_tree
from iltm_anomaly.tokenizers.features import FeatureTokenizerConfig, FeatureTokenizerModel
from iltm_anomaly.tokenizers.features.fitting import fit_detail, fit_metric
from iltm_anomaly.tokenizers.vqvae import VQVAEConfig, VQVAEModel

GRID = {2: (3, 4), 3: (2, 2, 3)}
VQVAE = {"channels": (4, 4, 8), "num_res_blocks": 1, "vocab_size": 16, "embedding_dim": 4}
PRIOR = {
    "vocab_size": 11,
    "grid_shape": (6, 7),
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "head_dim": 8,
}


def tiny_vqvae(seed: int = 0, **changes) -> VQVAEModel:
    """A VQ-VAE with downsampling 8, in eval mode. Its codebook lies on its own outputs, so that many are in use."""
    torch.manual_seed(seed)
    model = VQVAEModel(VQVAEConfig(**VQVAE | changes)).eval()
    side = 2 * model.config.downsampling
    model.initialize_codebook(torch.rand(8, model.config.in_channels, *[side] * model.config.spatial_dims))
    return model


def tiny_prior(seed: int = 0, gain: float = 3.0, **changes) -> PerformerPriorModel:
    """A prior in eval mode. A fresh one hardly minds what it reads: `gain` scales its weights, so that errors show."""
    torch.manual_seed(seed)
    model = PerformerPriorModel(PerformerPriorConfig(**PRIOR | changes)).eval()
    with torch.no_grad():
        for embedding in (model.token_embedding, model.position_embedding):
            embedding.weight.mul_(10 * gain)
        for layer in model.layers:
            layer.attention.qkv.weight.mul_(gain)
        model.head.weight.mul_(gain)
    return model


def tiny_pipeline(side: int = 32, **settings) -> ILTMAnomalyPipeline:
    """An untrained pipeline for square images of `side` pixels; `settings` of `InferenceSettings`."""
    vqvae = tiny_vqvae()
    grid = vqvae.grid_shape((side, side))
    prior = tiny_prior(vocab_size=vqvae.config.vocab_size, grid_shape=grid)
    fast = {"num_samples": 2, "num_dropout_passes": 2}
    noise = torch.full((side, side), 0.01)
    return ILTMAnomalyPipeline(
        vqvae, prior, ILTMImageProcessor(size=side), InferenceSettings(**fast | settings), noise=noise
    )


def some_codes(model: PerformerPriorModel, batch: int = 3, length: int | None = None, seed: int = 0) -> torch.Tensor:
    """Random codes, (batch, length) int64; as long as the grid if no length is given."""
    generator = torch.Generator().manual_seed(seed)
    length = length or model.config.max_position_embeddings
    return torch.randint(model.config.vocab_size, (batch, length), generator=generator)


def some_grids(dims: int, samples: int = 5, distinct: int = 5, seed: int = 0) -> torch.Tensor:
    """Random grids of codes of `tiny_vqvae`, (samples, *GRID[dims]) int64, of which `distinct` differ."""
    generator = torch.Generator().manual_seed(seed)
    grids = torch.randint(16, (distinct, *GRID[dims]), generator=generator)
    return grids[torch.arange(samples) % distinct]


def decode_all(vqvae: VQVAEModel, codes: torch.Tensor, passes: int, seed: int = 0) -> tuple[torch.Tensor, int]:
    """All that `draw_expected` yields in one piece, and in how many strips it came."""
    strips = list(vqvae.draw_expected(codes, passes, torch.Generator().manual_seed(seed)))
    stops = [0]
    for rows, strip in strips:
        assert rows.start == stops[-1] and strip.shape[2] == rows.stop - rows.start
        stops.append(rows.stop)
    return torch.cat([strip for _, strip in strips], 2), len(strips)


PARTS = 24  # training images of `part_tree`, a fifth of them faulty


def part_tree(folder: Path) -> Path:
    """Generated parts in the layout of MVTec AD, below a new folder."""
    dataset = generate_dataset(
        kind="part",
        size=64,
        num_train=PARTS,
        num_test_good=4,
        num_test_defective=8,
        contamination=0.2,
        seed=0,
        recurring=True,
    )
    return Path(write_mvtec_tree(dataset, folder, "part"))


def tiny_feature_pipeline(side: int = 32, **settings) -> ILTMAnomalyPipeline:
    """An uncalibrated pipeline on features of a ConvNeXt of a few random weights, fitted to random images; `settings` of
    `FeatureSettings`."""
    torch.manual_seed(0)
    sizes = {"hidden_sizes": [4, 6, 8, 8], "depths": [1, 1, 1, 1], "patch_size": 4}
    backbone = ConvNextConfig(**sizes).to_diff_dict()
    config = FeatureTokenizerConfig(backbone="tiny", backbone_config=backbone, levels=(1, 2), vocab_size=8)
    tokenizer = FeatureTokenizerModel(config)
    images = torch.rand(12, 3, side, side)
    with torch.no_grad():
        features = tokenizer.features(images)
        weights = torch.ones(features.shape[:3])
        metric = fit_metric(features, weights)
        codebook = (features.flatten(0, 2) @ metric)[:8]
        patches = torch.randint(256, (8, 3, 8, 8)).byte()
        tokenizer.set_codes(metric, codebook, fit_detail(features, weights, metric, 4), patches)
    grid = tokenizer.grid_shape((side, side))
    prior = PositionPriorModel(PositionPriorConfig(grid_shape=grid, hidden_size=10, rank=3)).fit(
        features, weights, metric
    )
    noise = torch.ones(LOOKS, *grid)
    return ILTMAnomalyPipeline(
        tokenizer, prior, ILTMImageProcessor(size=side), FeatureSettings(**settings), noise=noise
    )
