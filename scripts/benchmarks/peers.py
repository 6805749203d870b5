"""Peers of the prior with its weights: performer-pytorch's PerformerLM and MONAI's DecoderOnlyTransformer."""

import contextlib
import importlib
import io
from collections.abc import Iterator
from unittest import mock

import torch
from harness import MONAI, PERFORMER
from torch import Tensor, nn

from iltm_anomaly.prior import PerformerPriorConfig, PerformerPriorModel, linear_attention

MODULES = {PERFORMER: "performer_pytorch.performer_pytorch", MONAI: "monai.networks.nets"}
NEVER = -1e9  # bias of the logits of begin-of-sequence and mask, which our model does not have


def missing() -> dict[str, str]:
    """Peers that do not import, and why."""
    reasons = {}
    for label, module in MODULES.items():
        try:
            importlib.import_module(module)
        except ImportError as error:
            reasons[label] = str(error)
    return reasons


def make_prior(length: int, layers: int = 16, seed: int = 0) -> PerformerPriorModel:
    """Width 256, 8 heads of 32, 110 features, 256 codes, no dropout: 12.8 million parameters at 16 layers."""
    torch.manual_seed(seed)
    config = PerformerPriorConfig(
        grid_shape=(length,), hidden_size=256, head_dim=32, num_hidden_layers=layers, dropout=0.0
    )
    return PerformerPriorModel(config).eval()


def plain_features(
    data: Tensor, *, projection_matrix: Tensor, is_query: bool, device: torch.device | None = None
) -> Tensor:
    """Our features in plain, differentiable torch, with the signature of performer-pytorch's `softmax_kernel`."""
    data = data * data.shape[-1] ** -0.25
    exponent = data @ projection_matrix.t()
    if is_query:
        return (exponent - exponent.amax(-1, keepdim=True).detach()).exp()
    return (exponent - data.square().sum(-1, keepdim=True) / 2).exp() + linear_attention.KEY_EPSILON


def same_features() -> contextlib.AbstractContextManager:
    """Within it performer-pytorch uses our features. Its own take a maximum over all keys, later ones included, and add
    an epsilon to queries too, so that its outputs cannot equal those of a causal model."""
    return mock.patch(f"{MODULES[PERFORMER]}.softmax_kernel", plain_features)


@torch.no_grad()
def performer_lm(prior: PerformerPriorModel) -> nn.Module:
    """PerformerLM with absolute positions and the weights of `prior`."""
    from performer_pytorch import PerformerLM

    config = prior.config
    with contextlib.redirect_stdout(io.StringIO()):  # it reports a missing CUDA extension once per layer
        model = PerformerLM(
            num_tokens=config.vocab_size + 2,
            max_seq_len=config.max_position_embeddings,
            dim=config.hidden_size,
            depth=config.num_hidden_layers,
            heads=config.num_attention_heads,
            dim_head=config.head_dim,
            nb_features=config.num_random_features,
            causal=True,
            rotary_position_emb=False,
            feature_redraw_interval=None,
        )
    model.token_emb.weight.copy_(prior.token_embedding.weight)
    model.pos_emb.emb.weight.copy_(prior.position_embedding.weight)
    for layer, (attention, mlp) in zip(prior.layers, model.performer.net.layers, strict=True):
        attention.norm.load_state_dict(layer.attention_norm.state_dict())
        mlp.norm.load_state_dict(layer.mlp_norm.state_dict())
        parts = (attention.fn.to_q, attention.fn.to_k, attention.fn.to_v)
        for part, weight in zip(parts, layer.attention.qkv.weight.chunk(3), strict=True):
            part.weight.copy_(weight)
        attention.fn.to_out.weight.copy_(layer.attention.out.weight)
        attention.fn.fast_attention.projection_matrix.copy_(layer.attention.projection)
        mlp.fn.fn.w1.load_state_dict(layer.mlp[0].state_dict())
        mlp.fn.fn.w2.load_state_dict(layer.mlp[3].state_dict())
    model.norm.load_state_dict(prior.norm.state_dict())
    _copy_head(prior.head, model.to_out)
    return model.eval()


@torch.no_grad()
def monai_transformer(prior: PerformerPriorModel) -> nn.Module:
    """DecoderOnlyTransformer with SDPA and the weights of `prior`. It has no normalisation before its logits."""
    from monai.networks.nets import DecoderOnlyTransformer

    config = prior.config
    model = DecoderOnlyTransformer(
        num_tokens=config.vocab_size + 2,
        max_seq_len=config.max_position_embeddings,
        attn_layers_dim=config.hidden_size,
        attn_layers_depth=config.num_hidden_layers,
        attn_layers_heads=config.num_attention_heads,
        use_flash_attention=True,
    )
    model.token_embeddings.weight.copy_(prior.token_embedding.weight)
    model.position_embeddings.embedding.weight.copy_(prior.position_embedding.weight)
    for layer, block in zip(prior.layers, model.blocks, strict=True):
        block.norm1.load_state_dict(layer.attention_norm.state_dict())
        block.norm2.load_state_dict(layer.mlp_norm.state_dict())
        parts = (block.attn.to_q, block.attn.to_k, block.attn.to_v)
        for part, weight in zip(parts, layer.attention.qkv.weight.chunk(3), strict=True):
            part.weight.copy_(weight)
        block.attn.out_proj.weight.copy_(layer.attention.out.weight)
        block.attn.out_proj.bias.zero_()
        block.mlp.linear1.load_state_dict(layer.mlp[0].state_dict())
        block.mlp.linear2.load_state_dict(layer.mlp[3].state_dict())
    _copy_head(prior.head, model.to_logits)
    return model.eval()


def _copy_head(ours: nn.Linear, theirs: nn.Linear) -> None:
    theirs.weight.zero_()
    theirs.weight[: len(ours.weight)].copy_(ours.weight)
    theirs.bias.fill_(NEVER)
    theirs.bias[: len(ours.bias)].copy_(ours.bias)


@contextlib.contextmanager
def our_attention(model: nn.Module, prior: PerformerPriorModel) -> Iterator[None]:
    """Within it MONAI's model has our attention for SDPA and our last normalisation: all the rest is compared."""
    projections = [layer.attention.projection for layer in prior.layers]
    calls = iter(projections)

    def attend(query: Tensor, key: Tensor, value: Tensor, **_: object) -> Tensor:
        return linear_attention.causal_attention(query, key, value, next(calls))

    head, model.to_logits = model.to_logits, nn.Sequential(prior.norm, model.to_logits)
    try:
        with mock.patch("torch.nn.functional.scaled_dot_product_attention", attend):
            yield
    finally:
        model.to_logits = head


@contextlib.contextmanager
def comparable(label: str, model: nn.Module, prior: PerformerPriorModel) -> Iterator[None]:
    """Within it the peer must give our logits."""
    with same_features() if label == PERFORMER else our_attention(model, prior):
        yield


MODELS = {PERFORMER: performer_lm, MONAI: monai_transformer}


@torch.no_grad()
def logit_difference(label: str, model: nn.Module, prior: PerformerPriorModel, codes: Tensor) -> float:
    """Largest difference of log-probabilities between the peer, made comparable, and ours."""
    inputs = torch.nn.functional.pad(codes[:, :-1], (1, 0), value=prior.config.bos_token_id)
    with comparable(label, model, prior):
        theirs = model(inputs)[..., : prior.config.vocab_size].log_softmax(-1)
    ours = prior(codes, compute_loss=False).logits.log_softmax(-1)
    return (ours - theirs).abs().max().item()


COMPARED = {
    PERFORMER: "log-probabilities, same weights, performer-pytorch given our features",
    MONAI: "log-probabilities, same weights, MONAI given our attention for softmax and our last normalisation",
}
