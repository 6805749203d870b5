"""Causal FAVOR+ attention against a naive quadratic form, and its three uses against each other."""

import math

import pytest
import torch
from performer_pytorch.performer_pytorch import causal_linear_attention_noncuda

from iltm_anomaly.prior import linear_attention
from iltm_anomaly.prior.linear_attention import (
    KEY_EPSILON,
    _CausalAttention,
    causal_attention,
    chunk_size,
    default_num_features,
    draw_projection,
    key_features,
    new_state,
    prefill,
    query_features,
    step,
)

# features and head size: a chunk of 16 tokens, and one of 64
SMALL, LARGE = (10, 4), (130, 5)


@pytest.fixture(params=["one segment", "segments of one chunk", "segments of three chunks"])
def segments(request, monkeypatch):
    """Cuts sequences into segments of a given number of chunks of 16 tokens, for the SMALL sizes and 6 heads."""
    chunk = 6 * SMALL[0] * 16
    elements = {"one segment": 1 << 19, "segments of one chunk": 1, "segments of three chunks": 3 * chunk}[
        request.param
    ]
    monkeypatch.setitem(linear_attention.SEGMENT_ELEMENTS, "cpu", elements)


def inputs(length, sizes=SMALL, batch=3, heads=2, masked=False, seed=0, dtype=torch.float32):
    """Queries, keys, values (B, H, n, D), projection (M, D) and keep (B, n) or None."""
    generator = torch.Generator().manual_seed(seed)
    features, head_dim = sizes
    tensors = [torch.randn(batch, heads, length, head_dim, generator=generator).to(dtype) for _ in range(3)]
    keep = None
    if masked:
        keep = torch.rand(batch, length, generator=generator) < 0.6
        keep[:, 0] = True  # as the model does: begin of sequence is always kept
    return *tensors, draw_projection(features, head_dim, generator).to(dtype), keep


def naive(query, key, value, projection, keep=None):
    """The definition: n x n weights, float64."""
    query, key, value, projection = (x.double() for x in (query, key, value, projection))
    scale = query.shape[-1] ** -0.25
    phi_query = torch.exp(query * scale @ projection.t())
    phi_key = torch.exp(key * scale @ projection.t() - (key * scale).square().sum(-1, keepdim=True) / 2) + KEY_EPSILON
    weights = torch.tril(phi_query @ phi_key.transpose(-1, -2))
    if keep is not None:
        weights = weights * keep[:, None, None, :]
    return weights @ value / weights.sum(-1, keepdim=True)


def features(query, key, projection):
    """phi_q, phi_k (..., M) of queries and keys (..., D)."""
    query, key = (x * x.shape[-1] ** -0.25 for x in (query, key))
    exponents = query @ projection.t(), key @ projection.t() - key.square().sum(-1, keepdim=True) / 2
    return query_features(exponents[0] * math.log2(math.e), -1), key_features(exponents[1] * math.log2(math.e))


def step_by_step(query, key, value, projection, state):
    """`step` over all tokens, (B, H, n, D) x3 -> (B, H, n, D)."""
    tokens = torch.stack([query, key, value], 1).unbind(3)  # (B, 3, H, D) each
    return torch.stack([step(token, projection, state) for token in tokens], 2)


def gradients(function, query, key, value, *others):
    leaves = [x.detach().clone().requires_grad_() for x in (query, key, value)]
    out = function(*leaves, *others)
    towards = torch.randn(out.shape, generator=torch.Generator().manual_seed(9)).to(out.dtype)
    return out.detach(), torch.autograd.grad((out * towards).sum(), leaves)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("length", [1, 2, 15, 16, 17, 49, 130])
def test_forward_and_backward_equal_the_naive_form(segments, length, masked):
    arguments = inputs(length, masked=masked)
    out, grads = gradients(causal_attention, *arguments)
    expected, expected_grads = gradients(naive, *arguments)
    torch.testing.assert_close(out.double(), expected, rtol=1e-4, atol=1e-5)
    for name, grad, expected_grad in zip("qkv", grads, expected_grads, strict=True):
        assert torch.allclose(grad.double(), expected_grad.double(), rtol=1e-3, atol=1e-4), f"gradient of {name}"


@pytest.mark.parametrize("masked", [False, True])
def test_equals_the_naive_form_in_large_chunks(masked):
    arguments = inputs(150, LARGE, masked=masked)
    assert chunk_size(LARGE[0], 150) == 64
    out, grads = gradients(causal_attention, *arguments)
    expected, expected_grads = gradients(naive, *arguments)
    torch.testing.assert_close(out.double(), expected, rtol=1e-4, atol=1e-5)
    for grad, expected_grad in zip(grads, expected_grads, strict=True):
        torch.testing.assert_close(grad.double(), expected_grad.double(), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("length", [1, 16, 49])
def test_the_form_that_is_exported_equals_the_naive_one_and_leaves_with_the_same_sums(monkeypatch, length, masked):
    query, key, value, projection, keep = inputs(length, masked=masked)
    entering = torch.rand(new_state(3, 2, projection).shape, generator=torch.Generator().manual_seed(1))
    out, leaving = prefill(query, key, value, projection, entering, keep)
    monkeypatch.setattr(torch.compiler, "is_exporting", lambda: True)
    torch.testing.assert_close(prefill(query, key, value, projection, entering, keep), (out, leaving))
    expected = naive(query, key, value, projection, keep)
    exported = causal_attention(query, key, value, projection, keep)
    torch.testing.assert_close(exported.double(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("masked", [False, True])
def test_gradcheck_in_float64(monkeypatch, masked):
    """The autograd function follows the dtype of its inputs. 37 tokens: two chunks and a part, a segment each."""
    monkeypatch.setitem(linear_attention.SEGMENT_ELEMENTS, "cpu", 1)
    query, key, value, projection, keep = inputs(37, batch=2, masked=masked, dtype=torch.float64)
    entering = torch.rand(4, *new_state(1, 1, projection).shape[2:], dtype=torch.float64)  # an earlier part's sums

    def function(qkv):
        return _CausalAttention.apply(qkv, keep, projection, entering)[0]

    qkv = torch.stack([query, key, value]).permute(0, 2, 4, 1, 3)  # (3, H, D, B, n)
    assert torch.autograd.gradcheck(function, [qkv.requires_grad_()], fast_mode=True)


def test_equals_performer_pytorch_given_the_same_features():
    query, key, value, projection, _ = inputs(257)
    theirs = causal_linear_attention_noncuda(*features(query, key, projection), value, eps=0)
    torch.testing.assert_close(causal_attention(query, key, value, projection), theirs, rtol=1e-4, atol=1e-5)


def test_features_approximate_the_softmax_kernel():
    """E[phi(q) phi(k)] = exp(q k / sqrt d): the kernel is the one whose name it bears."""
    generator = torch.Generator().manual_seed(0)
    query, key = torch.randn(2, 500, 8, generator=generator) * 0.5
    projection = draw_projection(4096, 8, generator)
    exponent = query * 8**-0.25 @ projection.t()
    phi_query, phi_key = features(query, key, projection)
    scaled = phi_query * exponent.amax(-1, keepdim=True).exp()
    scaled = scaled * torch.exp(-(query * 8**-0.25).square().sum(-1, keepdim=True) / 2)
    estimate = (scaled * (phi_key - KEY_EPSILON)).mean(-1)
    exact = torch.exp((query * key).sum(-1) / math.sqrt(8))
    assert (estimate / exact).mean().item() == pytest.approx(1, abs=0.02)
    assert torch.corrcoef(torch.stack([estimate, exact]))[0, 1] > 0.9


# causality


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("changed", [1, 15, 16, 40, 99])
def test_the_future_leaves_every_bit_of_the_past(segments, changed, masked):
    query, key, value, projection, keep = inputs(100, masked=masked)
    before = causal_attention(query, key, value, projection, keep)
    for tensor in (query, key, value):
        tensor[:, :, changed:] = 5 * tensor[:, :, changed:].flip(2) + 1
    after = causal_attention(query, key, value, projection, keep)
    assert torch.equal(after[:, :, :changed], before[:, :, :changed])
    assert not torch.equal(after[:, :, changed:], before[:, :, changed:])


def test_the_past_sends_no_gradient_into_the_future(segments):
    *leaves, projection, _ = inputs(100)
    leaves = [x.requires_grad_() for x in leaves]
    causal_attention(*leaves, projection)[:, :, :40].square().sum().backward()
    for leaf in leaves:
        assert leaf.grad[:, :, :40].any() and not leaf.grad[:, :, 40:].any()


# masking


def test_masked_tokens_leave_numerator_and_normaliser(segments):
    query, key, value, projection, keep = inputs(100, masked=True)
    whole = causal_attention(query, key, value, projection, keep)
    for b in range(len(query)):
        kept = [x[b : b + 1, :, keep[b]] for x in (query, key, value)]
        torch.testing.assert_close(
            whole[b : b + 1, :, keep[b]], causal_attention(*kept, projection), rtol=1e-4, atol=1e-5
        )


def test_content_of_masked_tokens_changes_no_bit(segments):
    query, key, value, projection, keep = inputs(100, masked=True)
    before = causal_attention(query, key, value, projection, keep)
    hidden = ~keep[:, None, :, None]
    key, value = key.where(~hidden, 3 - key), value.where(~hidden, 7 - value)
    assert torch.equal(causal_attention(query, key, value, projection, keep), before)


def test_masked_tokens_get_no_gradient_as_keys_and_values(segments):
    query, key, value, projection, keep = inputs(100, masked=True)
    _, (_, grad_key, grad_value) = gradients(causal_attention, query, key, value, projection, keep)
    hidden = ~keep[:, None, :, None].expand_as(key)
    assert not grad_key[hidden].any() and not grad_value[hidden].any()
    assert grad_key[~hidden].any() and grad_value[~hidden].any()


def test_keeping_all_is_no_mask_bit_for_bit(segments):
    query, key, value, projection, _ = inputs(100)
    out, grads = gradients(causal_attention, query, key, value, projection)
    masked, masked_grads = gradients(
        causal_attention, query, key, value, projection, torch.ones(3, 100, dtype=torch.bool)
    )
    assert torch.equal(out, masked) and all(map(torch.equal, grads, masked_grads))


# the recurrent forms


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("cut", [1, 16, 37, 99])
def test_two_prefills_equal_one(segments, cut, masked):
    query, key, value, projection, keep = inputs(100, masked=masked)
    state = new_state(3, 2, projection)
    whole, last = prefill(query, key, value, projection, state, keep)
    outs = []
    for part in (slice(0, cut), slice(cut, None)):
        entering = state.clone()
        part_keep = None if keep is None else keep[:, part]
        out, leaving = prefill(query[:, :, part], key[:, :, part], value[:, :, part], projection, state, part_keep)
        assert torch.equal(state, entering), "the state given must stay"
        outs.append(out)
        state = leaving
    torch.testing.assert_close(torch.cat(outs, 2), whole, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(state, last, rtol=1e-4, atol=1e-5)


def test_steps_equal_the_parallel_form(segments):
    query, key, value, projection, _ = inputs(60)
    state = new_state(3, 2, projection)
    whole, last = prefill(query, key, value, projection, state)
    out = step_by_step(query, key, value, projection, state)
    torch.testing.assert_close(out, whole, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(state, last, rtol=1e-4, atol=1e-5)


def test_state_is_the_sum_of_key_features_with_values():
    query, key, value, projection, keep = inputs(50, masked=True)
    _, state = prefill(query, key, value, projection, new_state(3, 2, projection), keep)
    phi_key = features(query, key, projection)[1] * keep[:, None, :, None]
    torch.testing.assert_close(state[:, :, :-1], torch.einsum("bhnm,bhnd->bhdm", phi_key, value), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(state[:, :, -1], phi_key.sum(2), rtol=1e-4, atol=1e-4)


# numbers and memory


@pytest.mark.parametrize("scale", [0.0, 1.0, 20.0, 100.0])
def test_extreme_inputs_stay_finite(scale):
    query, key, value, projection, _ = inputs(70, sizes=(default_num_features(64), 64))
    out, grads = gradients(causal_attention, query * scale, key * scale, value, projection)
    assert out.isfinite().all() and all(grad.isfinite().all() for grad in grads)
    assert out.abs().max() <= value.abs().max() * 1.01, "a weighted mean of values"


def test_autocast_and_half_precision_inputs_are_summed_in_float32():
    query, key, value, projection, _ = inputs(200, dtype=torch.bfloat16)
    exact = causal_attention(query.float(), key.float(), value.float(), projection.float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = causal_attention(query, key, value, projection)
        state = new_state(3, 2, projection.float())
        steps = step_by_step(query, key, value, projection, state)
    assert out.dtype == torch.bfloat16 and state.dtype == torch.float32
    assert torch.equal(out, exact.bfloat16())
    torch.testing.assert_close(steps.float(), exact, rtol=1e-2, atol=1e-2)


def test_backward_keeps_no_features_and_no_running_sums():
    """Saved: queries, keys, values, outputs, the normaliser and a state per segment; not M features a token."""
    query, key, value, projection, _ = inputs(4096, sizes=(44, 16), batch=1, heads=1)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: (saved.append(x.numel()), x)[1], lambda x: x):
        causal_attention(query.requires_grad_(), key, value, projection)
    assert sum(saved) < 5 * query.numel() + 4096


@pytest.mark.parametrize("features", [1, 5, 44, 110, 266, 1000])
def test_chunk_size(features):
    sizes = [chunk_size(features, length) for length in (1, 7, 64, 1000, 10**6)]
    assert sizes[:2] == [1, 7], "never longer than the sequence"
    assert sizes[3] == sizes[4] and 16 <= sizes[3] <= 64, "small enough for a cache, whatever the length"


# the projection


@pytest.mark.parametrize("features, head_dim", [(8, 8), (20, 8), (3, 8), (44, 16)])
def test_projection_has_orthogonal_rows(features, head_dim):
    projection = draw_projection(features, head_dim, torch.Generator().manual_seed(0))
    assert projection.shape == (features, head_dim) and projection.dtype == torch.float32
    for block in projection.split(head_dim):
        products = block @ block.t()
        torch.testing.assert_close(products, products.diag().diag(), atol=1e-4, rtol=0)
    many = draw_projection(4000, head_dim, torch.Generator().manual_seed(0))
    assert many.square().sum(1).mean().item() == pytest.approx(head_dim, rel=0.05), "rows as long as Gaussian ones"


def test_projection_depends_on_its_generator_alone():
    torch.manual_seed(0)
    state = torch.get_rng_state()
    first = draw_projection(20, 8, torch.Generator().manual_seed(3))
    assert torch.equal(torch.get_rng_state(), state), "the global random state must stay"
    torch.manual_seed(1)
    generator = torch.Generator().manual_seed(3)
    assert torch.equal(draw_projection(20, 8, generator), first)
    assert not torch.equal(draw_projection(20, 8, generator), first)


def test_default_number_of_features():
    assert [default_num_features(d) for d in (64, 32, 16, 4, 1)] == [266, 110, 44, 5, 1]
