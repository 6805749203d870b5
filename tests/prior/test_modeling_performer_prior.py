"""`PerformerPriorModel` and its configuration."""

import json
import math
from dataclasses import replace

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors.torch import load_file, save_file
from tiny_models import some_codes, tiny_prior
from torch.nn import functional as F
from transformers import AutoConfig, AutoModel

from iltm_anomaly.prior import PerformerPriorConfig, PerformerPriorModel, linear_attention
from iltm_anomaly.prior.linear_attention import KEY_EPSILON
from iltm_anomaly.prior.modeling_performer_prior import Dropout, PerformerAttention

MODES = ["token", "value"]


def some_mask(codes, kept=0.6, seed=5):
    return torch.rand(codes.shape, generator=torch.Generator().manual_seed(seed)) < kept


def log_probs(logits, codes):
    return logits.log_softmax(-1).gather(-1, codes.unsqueeze(-1)).squeeze(-1)


def flipped(codes, where):
    """Another valid code wherever `where` is True."""
    return torch.where(where, (codes + 1) % 11, codes)


# scoring


def test_shapes():
    model = tiny_prior()
    codes = some_codes(model)
    output = model(codes)
    assert output.logits.shape == (3, 42, 11) and output.logits.dtype == torch.float32
    assert output.loss.shape == () and model(codes, compute_loss=False).loss is None
    loss, logits = model(codes, return_dict=False)
    assert torch.equal(loss, output.loss) and torch.equal(logits, output.logits)
    volume = tiny_prior(grid_shape=(2, 3, 4))
    assert volume(some_codes(volume)).logits.shape == (3, 24, 11)


def test_loss_is_the_mean_cross_entropy_and_log_likelihood_its_terms():
    model = tiny_prior()
    codes = some_codes(model)
    output = model(codes)
    torch.testing.assert_close(output.loss, F.cross_entropy(output.logits.flatten(0, 1), codes.flatten()))
    scores = model.log_likelihood(codes)
    assert scores.shape == codes.shape and not scores.requires_grad
    torch.testing.assert_close(scores, log_probs(output.logits, codes).detach())
    assert output.loss.item() == pytest.approx(-scores.mean().item(), rel=1e-5)


def test_shorter_sequences_are_prefixes():
    model = tiny_prior()
    codes = some_codes(model)
    for length in (1, 2, 17, 41):
        torch.testing.assert_close(
            model(codes[:, :length]).logits, model(codes).logits[:, :length], rtol=1e-4, atol=1e-4
        )


@pytest.mark.parametrize("shape", [(3, 43), (3, 0), (42,), (3, 6, 7)])
def test_codes_that_do_not_fit(shape):
    with pytest.raises(ValueError, match="flatten the grid in raster order"):
        tiny_prior()(torch.zeros(shape, dtype=torch.long))


def test_mask_that_does_not_fit():
    model = tiny_prior()
    with pytest.raises(ValueError, match="token_mask must have the shape"):
        model(some_codes(model), torch.ones(3, 41, dtype=torch.bool))


def test_it_can_learn():
    torch.manual_seed(0)
    model = tiny_prior(dropout=0.0, gain=1.0).train()
    codes = some_codes(model)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(40):
        loss = model(codes).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.3 * math.log(11)


# dropout


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("p", [0.0, 0.1, 0.5, 0.97])
def test_dropout_keeps_the_mean_and_drops_its_share(dtype, p):
    torch.manual_seed(0)
    x = torch.ones(401, 1003, dtype=dtype, requires_grad=True)
    out = Dropout(p)(x)
    assert out.dtype == dtype
    assert (out == 0).float().mean().item() == pytest.approx(p, abs=3e-3)
    assert out.float().mean().item() == pytest.approx(1, rel=2e-2)
    kept = out[out != 0].unique()
    assert len(kept) == 1 and kept.item() == pytest.approx(1 / (1 - p), rel=2**-8 if dtype == torch.bfloat16 else 1e-3)
    (grad,) = torch.autograd.grad(out.sum(), x)
    assert torch.equal(grad, out.detach()), "the gradient goes through what was kept, scaled alike"


def test_dropout_draws_every_value_apart():
    torch.manual_seed(0)
    dropped = (Dropout(0.5)(torch.ones(4 * 20000)) == 0).float().view(-1, 4)
    assert (dropped.mean(0) - 0.5).abs().max() < 0.02, "all four values of a random word"
    assert (torch.corrcoef(dropped.t()) - torch.eye(4)).abs().max() < 0.03
    assert torch.corrcoef(torch.stack([dropped[1:, 0], dropped[:-1, 3]]))[0, 1].abs() < 0.03


def test_dropout_is_decided_by_the_seed_alone():
    x, threads = torch.rand(300, 1001), torch.get_num_threads()
    outs = []
    try:
        for seed, count in ((1, 1), (1, 2), (2, 1)):
            torch.set_num_threads(count)
            torch.manual_seed(seed)
            outs.append(Dropout(0.1)(x))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(outs[0], outs[1]) and not torch.equal(outs[0], outs[2])
    assert torch.equal(Dropout(0.1).eval()(x), x)


# causality


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("masked", [False, True])
def test_a_code_leaves_every_bit_of_the_logits_up_to_it(mode, masked):
    model = tiny_prior(masking=mode)
    codes = some_codes(model)
    mask = some_mask(codes) if masked else None
    before = model(codes, mask).logits
    for t in (0, 1, 15, 16, 30, 41):
        changed = codes.clone()
        changed[:, t] = (changed[:, t] + 1) % 11
        after = model(changed, mask).logits
        assert torch.equal(after[:, : t + 1], before[:, : t + 1]), "logits at t predict code t: they cannot know it"
        if t < 41 and not masked:
            assert not torch.equal(after[:, t + 1], before[:, t + 1])


def test_causality_at_1024_codes_across_segments(monkeypatch):
    monkeypatch.setitem(linear_attention.SEGMENT_ELEMENTS, "cpu", 1 << 14)
    model = tiny_prior(grid_shape=(32, 32))
    codes = some_codes(model, batch=2)
    before = model(codes).logits
    for t in (100, 512, 1000):
        after = model(flipped(codes, torch.arange(1024) >= t)).logits
        assert torch.equal(after[:, : t + 1], before[:, : t + 1]) and not torch.equal(after, before)


@pytest.mark.parametrize("mode", MODES)
def test_a_mask_leaves_every_bit_of_the_logits_up_to_it(mode):
    model = tiny_prior(masking=mode)
    codes = some_codes(model)
    mask = torch.ones_like(codes, dtype=torch.bool)
    before = model(codes, mask).logits
    mask[:, 20] = False
    after = model(codes, mask).logits
    assert torch.equal(after[:, :21], before[:, :21]) and not torch.equal(after[:, 21:], before[:, 21:])


# masking


@pytest.mark.parametrize("mode", MODES)
def test_keeping_all_is_no_mask_bit_for_bit(mode):
    codes = some_codes(tiny_prior())
    results = []
    for mask in (None, torch.ones_like(codes, dtype=torch.bool)):
        model = tiny_prior(masking=mode).train()
        torch.manual_seed(1)  # dropout
        output = model(codes, mask)
        output.loss.backward()
        results.append([output.loss, output.logits, *(p.grad for p in model.parameters())])
    assert all(map(torch.equal, *results))


def test_token_mode_hides_a_token_completely():
    model = tiny_prior(masking="token")
    codes = some_codes(model)
    mask = some_mask(codes)
    before, after = model(codes, mask), model(flipped(codes, ~mask), mask)
    assert torch.equal(before.logits, after.logits), "not even its successor's prediction may know it"
    assert torch.equal(before.loss, after.loss)


def test_token_mode_predicts_as_if_masked_tokens_had_not_been_there():
    """Nothing attends to a masked token; its place, filled with the mask embedding, still predicts what follows."""
    model = tiny_prior(masking="token")
    codes = some_codes(model, batch=1)
    mask = some_mask(codes)
    logits = model(codes, mask).logits[0]
    state, skipped = model.init_state(1), 0
    torch.testing.assert_close(logits[0], state.logits[0], rtol=1e-4, atol=1e-4)
    for t in range(41):
        if mask[0, t]:
            following, state = model.step(codes[:, t], state)
            torch.testing.assert_close(logits[t + 1], following[0], rtol=1e-4, atol=1e-4)
        else:
            state, skipped = replace(state, position=state.position + 1), skipped + 1
    assert 10 < skipped < 30


def test_token_mode_prefix_that_is_masked_weighs_nothing():
    """All of a prefix masked: a kept code after it sees begin of sequence and itself alone."""
    model = tiny_prior(masking="token")
    codes = some_codes(model)
    mask = torch.ones_like(codes, dtype=torch.bool)
    mask[:, :20] = False
    logits = model(codes, mask).logits
    state = model.init_state(3)
    state.position += 20
    following, _ = model.step(codes[:, 20], state)
    torch.testing.assert_close(logits[:, 21], following, rtol=1e-4, atol=1e-4)


def test_value_mode_is_the_authors_formula():
    """out_i = sum_{j<=i} phi(q_i) phi(k_j) m_j v_j / sum_{j<=i} phi(q_i) phi(k_j): keys stay in the normaliser."""
    attention = tiny_prior(masking="value").layers[0].attention
    x = torch.randn(2, 30, 16, generator=torch.Generator().manual_seed(0))
    keep = some_mask(x[..., 0])
    query, key, value = (
        part.unflatten(-1, (2, 8)).transpose(1, 2).double() for part in (x @ attention.qkv.weight.t()).chunk(3, -1)
    )
    scale, projection = 8**-0.25, attention.projection.double()
    phi_query = torch.exp(query * scale @ projection.t())
    phi_key = torch.exp(key * scale @ projection.t() - (key * scale).square().sum(-1, keepdim=True) / 2) + KEY_EPSILON
    weights = torch.tril(phi_query @ phi_key.transpose(-1, -2))
    attended = weights @ (value * keep[:, None, :, None]) / weights.sum(-1, keepdim=True)
    expected = attended.transpose(1, 2).flatten(2).float() @ attention.out.weight.t()
    torch.testing.assert_close(attention(x, keep_values=keep)[0], expected, rtol=1e-4, atol=1e-5)


def test_value_mode_keeps_the_token_at_its_own_place():
    model = tiny_prior(masking="value")
    codes = some_codes(model)
    mask = torch.ones_like(codes, dtype=torch.bool)
    mask[:, 20] = False
    changed = flipped(codes, ~mask)
    before, after = model(codes, mask).logits, model(changed, mask).logits
    assert not torch.equal(before[:, 21], after[:, 21])
    unmasked = (model(changed).logits - model(codes).logits)[:, 22:].abs().mean()
    assert (before - after)[:, 22:].abs().mean() < unmasked, "what is left goes through the normaliser"


@pytest.mark.parametrize("mode", MODES)
def test_masked_loss_is_the_mean_over_kept_targets(mode):
    model = tiny_prior(masking=mode)
    codes = some_codes(model)
    mask = some_mask(codes)
    output = model(codes, mask)
    torch.testing.assert_close(output.loss, -log_probs(output.logits, codes)[mask].mean())
    torch.testing.assert_close(model(codes, mask.long()).loss, output.loss, msg="0 and 1 as well as booleans")


@pytest.mark.parametrize("mode", MODES)
def test_all_masked_gives_no_nan_and_no_update(mode):
    model = tiny_prior(masking=mode).train()
    codes = some_codes(model)
    output = model(codes, torch.zeros_like(codes, dtype=torch.bool))
    assert output.loss.item() == 0 and output.logits.isfinite().all()
    output.loss.backward()
    assert all(p.grad is None or not p.grad.any() for p in model.parameters())


@pytest.mark.parametrize("mode", MODES)
def test_begin_of_sequence_is_always_kept(mode):
    model = tiny_prior(masking=mode)
    codes = some_codes(model)
    mask = torch.ones_like(codes, dtype=torch.bool)
    mask[:, 0] = False
    first, second = model(codes, mask).logits[:, :2].unbind(1)
    assert torch.equal(first, model(codes).logits[:, 0])
    changed = tiny_prior(masking=mode)
    with torch.no_grad():
        changed.token_embedding.weight[changed.config.bos_token_id].neg_()
    assert not torch.allclose(changed(codes, mask).logits[:, 1], second), "what follows a masked first code sees it"


# the recurrent form


def scores_by_steps(model, codes, read):
    """Log-likelihoods (B, N) from a state; the first `read` codes are prefilled, the others stepped."""
    state = model.init_state(len(codes))
    scores = [log_probs(state.logits[:, None], codes[:, :1])]
    if read:
        scores = [model.log_likelihood(codes)[:, :read]]
        logits, state = model.prefill(codes[:, :read], state)
        scores.append(log_probs(logits[:, None], codes[:, read : read + 1]))
    for t in range(read, codes.shape[1] - 1):
        logits, state = model.step(codes[:, t], state)
        scores.append(log_probs(logits[:, None], codes[:, t + 1 : t + 2]))
    return torch.cat(scores, 1)


@pytest.mark.parametrize("read", [0, 1, 700])
def test_steps_equal_the_parallel_form_at_1024_codes(read):
    model = tiny_prior(grid_shape=(32, 32))
    codes = some_codes(model, batch=2)
    torch.testing.assert_close(scores_by_steps(model, codes, read), model.log_likelihood(codes), rtol=0, atol=1e-4)


@pytest.mark.slow
def test_steps_equal_the_parallel_form_at_8192_codes():
    model = tiny_prior(grid_shape=(64, 128))
    codes = some_codes(model, batch=2)
    exact = model.log_likelihood(codes)
    for read in (0, 5000):
        torch.testing.assert_close(scores_by_steps(model, codes, read), exact, rtol=0, atol=1e-4)


def masked_scores_by_runs(model, codes, mask):
    """Log-likelihoods of codes that follow a kept one, from a state which masked codes do not enter; NaN elsewhere."""
    scores = torch.full(codes.shape, math.nan)
    state, t, length = model.init_state(1), 0, codes.shape[1]
    while t < length - 1:
        run = t
        while run < length - 1 and mask[0, run]:
            run += 1
        if run > t:
            logits, state = model.prefill(codes[:, t:run], state)
            scores[:, run] = log_probs(logits[:, None], codes[:, run : run + 1])[:, 0]
        t = run + 1
        state.position.fill_(t)
    return scores


LENGTHS = pytest.mark.parametrize("length", [1024, pytest.param(8192, marks=pytest.mark.slow)])


@LENGTHS
def test_masked_runs_equal_the_parallel_form(length):
    model = tiny_prior(grid_shape=(32, length // 32), masking="token")
    codes = some_codes(model, batch=1)
    mask = some_mask(codes, 0.9)
    exact = log_probs(model(codes, mask).logits, codes).detach()
    scores = masked_scores_by_runs(model, codes, mask)
    assert scores.isfinite().sum() > 0.05 * length
    torch.testing.assert_close(scores, exact.where(scores.isfinite(), scores), rtol=0, atol=1e-4, equal_nan=True)


@LENGTHS
def test_bfloat16_autocast_agrees_with_itself(length):
    model = tiny_prior(grid_shape=(32, length // 32), gain=1.0)
    codes = some_codes(model, batch=2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        exact = model.log_likelihood(codes)
        assert exact.dtype == torch.float32
        torch.testing.assert_close(scores_by_steps(model, codes, 0), exact, rtol=0, atol=2e-2)
        torch.testing.assert_close(scores_by_steps(model, codes, length * 2 // 3), exact, rtol=0, atol=2e-2)
    torch.testing.assert_close(exact, model.log_likelihood(codes), rtol=0, atol=5e-2)


@LENGTHS
def test_masked_runs_under_bfloat16_autocast(length):
    model = tiny_prior(grid_shape=(32, length // 32), masking="token", gain=1.0)
    codes = some_codes(model, batch=1)
    mask = some_mask(codes, 0.9)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        exact = log_probs(model(codes, mask).logits, codes).detach()
        scores = masked_scores_by_runs(model, codes, mask)
    assert scores.isfinite().sum() > 0.05 * length
    torch.testing.assert_close(scores, exact.where(scores.isfinite(), scores), rtol=0, atol=2e-2, equal_nan=True)


@pytest.mark.parametrize("mode", MODES)
def test_prefill_of_ragged_runs(mode):
    """Padding is no token: it must not enter the sums, in neither masking mode."""
    model = tiny_prior(masking=mode)
    codes = some_codes(model, batch=5)
    lengths = torch.tensor([0, 7, 20, 1, 19])
    start = model.init_state(5)
    entering = [s.clone() for s in start.sums]
    _, start = model.prefill(codes[:, :9], start)
    entering = [s.clone() for s in start.sums]
    logits, state = model.prefill(codes[:, 9:29], start, lengths)
    assert all(map(torch.equal, entering, start.sums)) and (start.position == 9).all(), "the state given must stay"
    assert torch.equal(state.position, 9 + lengths) and torch.equal(logits, state.logits)
    parallel = model(codes).logits
    following, _ = model.step(codes[torch.arange(5), state.position], state.select(torch.arange(5)))
    for b, length in enumerate(lengths.tolist()):
        torch.testing.assert_close(logits[b], parallel[b, 9 + length], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(following[b], parallel[b, 10 + length], rtol=1e-4, atol=1e-4)
        _, alone = model.prefill(codes[b : b + 1, : 9 + length], model.init_state(1))
        for layer in range(2):
            torch.testing.assert_close(state.sums[layer][b], alone.sums[layer][0], rtol=1e-4, atol=1e-4)


def test_ragged_padding_changes_no_bit():
    model = tiny_prior()
    codes = some_codes(model)
    lengths = torch.tensor([0, 7, 20])
    padding = torch.arange(25) >= lengths[:, None]
    runs = [codes[:, :25], flipped(codes[:, :25], padding), flipped(codes[:, :25], ~padding)]
    first, same, other = (model.prefill(run, model.init_state(3), lengths)[1] for run in runs)
    assert all(map(torch.equal, first.sums, same.sums)) and torch.equal(first.logits, same.logits)
    assert torch.equal(first.logits[0], other.logits[0]), "nothing read, nothing changed"
    assert not (first.logits[1:] == other.logits[1:]).all(1).any()


def test_states_can_be_selected_and_repeated():
    model = tiny_prior()
    codes = some_codes(model)
    _, state = model.prefill(codes[:, :10], model.init_state(3))
    chosen = state.select(torch.tensor([2, 0, 2]))
    logits, after = model.step(codes[[2, 0, 2], 10], chosen)
    torch.testing.assert_close(logits, model(codes).logits[[2, 0, 2], 11], rtol=1e-4, atol=1e-4)
    assert (after.position == 11).all() and (state.position == 10).all()
    again, _ = model.step(codes[:, 10], state)
    torch.testing.assert_close(again, model(codes).logits[:, 11], rtol=1e-4, atol=1e-4, msg="copies share nothing")


def test_a_complete_grid_leaves_nothing_to_predict():
    model = tiny_prior()
    codes = some_codes(model)
    with pytest.raises(ValueError, match="complete"):
        model.prefill(codes, model.init_state(3))
    _, state = model.prefill(codes[:, :41], model.init_state(3))
    with pytest.raises(ValueError, match="complete"):
        model.step(codes[:, 41], state)
    with pytest.raises(ValueError, match="complete"):
        model.prefill(codes[:, 40:], state, torch.tensor([0, 1, 0]))
    model.prefill(codes[:, 40:], state, torch.tensor([0, 0, 0]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_weights(dtype):
    model = tiny_prior(gain=1.0).to(dtype)
    codes = some_codes(model)
    scores = model.log_likelihood(codes)
    assert scores.dtype == torch.float32 and scores.isfinite().all()
    assert all(s.dtype == torch.float32 for s in model.init_state(1).sums)
    torch.testing.assert_close(scores_by_steps(model, codes, 20), scores, rtol=0, atol=5e-2)


# random features


def test_redraw_depends_on_its_generator_alone():
    first, second = tiny_prior(0), tiny_prior(1)
    for model, global_seed in ((first, 5), (second, 6)):
        torch.manual_seed(global_seed)
        before = [layer.attention.projection.clone() for layer in model.layers]
        model.redraw_projections(torch.Generator().manual_seed(7))
        for old, layer in zip(before, model.layers, strict=True):
            new = layer.attention.projection
            assert not torch.equal(old, new)
            for block in new.split(8):
                torch.testing.assert_close(block @ block.t(), (block @ block.t()).diag().diag(), atol=1e-4, rtol=0)
    drawn = [[layer.attention.projection for layer in model.layers] for model in (first, second)]
    assert all(map(torch.equal, *drawn)) and not torch.equal(*drawn[0]), "alike in every process, not in every layer"


def test_evaluation_never_redraws():
    model = tiny_prior(feature_redraw_interval=1)
    codes = some_codes(model)
    before = model.layers[0].attention.projection.clone()
    model(codes)
    model.train()(codes)
    assert torch.equal(model.layers[0].attention.projection, before)


# configuration


def test_defaults_are_the_papers():
    config = PerformerPriorConfig()
    assert (config.num_hidden_layers, config.num_attention_heads, config.hidden_size) == (16, 8, 32)
    assert (config.head_dim, config.num_random_features, config.dropout, config.vocab_size) == (64, 266, 0.1, 256)
    assert (config.max_position_embeddings, config.bos_token_id, config.mask_token_id) == (1024, 256, 257)
    with torch.device("meta"):
        model = PerformerPriorModel(config)
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(1.2e6, rel=0.1)
    assert not any(isinstance(m, PerformerAttention) and m.qkv.bias is not None for m in model.modules())


@pytest.mark.parametrize(
    "changes, complaint",
    [
        ({"vocab_size": 0}, "vocab_size"),
        ({"hidden_size": 0}, "hidden_size"),
        ({"num_hidden_layers": 0}, "num_hidden_layers"),
        ({"num_attention_heads": 0}, "num_attention_heads"),
        ({"head_dim": 0}, "head_dim"),
        ({"num_random_features": 0}, "num_random_features"),
        ({"intermediate_ratio": 0}, "intermediate_ratio"),
        ({"feature_redraw_interval": -1}, "feature_redraw_interval"),
        ({"grid_shape": ()}, "grid_shape"),
        ({"grid_shape": (4, 0)}, "grid_shape"),
        ({"masking": "soft"}, "masking must be one of"),
        ({"ordering": "spiral"}, "ordering must be one of"),
        ({"dropout": 1.0}, "dropout"),
        ({"hidden_size": "wide"}, "hidden_size"),
    ],
)
def test_configuration_refuses(changes, complaint):
    with pytest.raises(StrictDataclassError, match=complaint):
        PerformerPriorConfig(**changes)


def fields_of(config):
    origin = ("_name_or_path", "transformers_version", "model_type")
    return {name: value for name, value in vars(config).items() if name not in origin}


def test_configuration_round_trip(tmp_path):
    config = PerformerPriorConfig(grid_shape=[4, 8], head_dim=16, masking="value", dropout=0.0)
    config.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "iltm_performer_prior"
    for loaded in (PerformerPriorConfig.from_pretrained(tmp_path), AutoConfig.from_pretrained(tmp_path)):
        assert isinstance(loaded, PerformerPriorConfig) and loaded.grid_shape == (4, 8)
        assert loaded.num_random_features == 44
        assert fields_of(loaded) == fields_of(config)


# saving and loading


def test_reload_is_bit_equal(tmp_path):
    model = tiny_prior()
    codes = some_codes(model)
    model.save_pretrained(tmp_path)
    for seed, loader in enumerate((PerformerPriorModel, AutoModel)):
        torch.manual_seed(seed)
        loaded = loader.from_pretrained(tmp_path)
        assert isinstance(loaded, PerformerPriorModel) and not loaded.training
        assert {*loaded.state_dict()} == {*model.state_dict()}
        assert all(torch.equal(tensor, loaded.state_dict()[name]) for name, tensor in model.state_dict().items())
        assert torch.equal(loaded(codes).logits, model(codes).logits)


def test_reload_in_a_fresh_process(tmp_path, run_fresh):
    model = tiny_prior()
    codes = some_codes(model)
    model.save_pretrained(tmp_path / "model")
    save_file({"codes": codes}, tmp_path / "in.safetensors")
    run_fresh(
        """
        import sys
        from safetensors.torch import load_file, save_file
        from transformers import AutoModel
        import iltm_anomaly.prior
        model = AutoModel.from_pretrained(sys.argv[1] + "/model")
        codes = load_file(sys.argv[1] + "/in.safetensors")["codes"]
        save_file({"scores": model.log_likelihood(codes)}, sys.argv[1] + "/out.safetensors")
        """,
        tmp_path,
    )
    assert torch.equal(load_file(tmp_path / "out.safetensors")["scores"], model.log_likelihood(codes))


def test_missing_keys_come_out_finite(tmp_path):
    model = tiny_prior()
    model.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    missing = [
        "layers.0.attention.projection",
        "layers.1.attention_norm.weight",
        "token_embedding.weight",
        "head.bias",
    ]
    kept = {name: tensor for name, tensor in weights.items() if name not in missing}
    save_file(kept, tmp_path / "model.safetensors", metadata={"format": "pt"})
    loaded, info = PerformerPriorModel.from_pretrained(tmp_path, output_loading_info=True)
    assert {*info["missing_keys"]} == {*missing}
    state = loaded.state_dict()
    assert all(tensor.isfinite().all() for tensor in state.values())
    assert all(torch.equal(state[name], tensor) for name, tensor in kept.items()), "what was loaded must stay"
    block = state["layers.0.attention.projection"][:8]
    torch.testing.assert_close(block @ block.t(), (block @ block.t()).diag().diag(), atol=1e-4, rtol=0)
    assert loaded(some_codes(model)).loss.isfinite()


def test_half_precision_checkpoint_in_float32(tmp_path):
    model = tiny_prior().half()
    model.save_pretrained(tmp_path)
    loaded = PerformerPriorModel.from_pretrained(tmp_path, dtype=torch.float32)
    assert all(t.dtype == torch.float32 for t in loaded.state_dict().values())
    assert torch.equal(loaded.head.weight, model.head.weight.float())
    assert loaded(some_codes(model)).loss.isfinite()
