"""Causal FAVOR+ attention: one feature map, three ways to use it.

For queries q_i, keys k_j and values v_j of one head (Choromanski et al., "Rethinking Attention with Performers", 2021)

    out_i = phi_q(q_i) . sum_{j<=i} phi_k(k_j) v_j^T  /  phi_q(q_i) . sum_{j<=i} phi_k(k_j)

- `causal_attention`: all tokens at once, in chunks, differentiable; memory linear in length, because neither the features
  nor the running sums of every token are kept (backward recomputes them segment by segment).
- `prefill`: the same product, entering with the running sums of an earlier part and leaving with those of the whole.
- `step`: one token, with running sums of constant size.

The three agree because the feature map needs no maximum over the sequence: a key's exponent is bounded by |w|^2 / 2, which
float32 holds for every practical head size, and a query's own maximum over features cancels in the ratio exactly. The
library's stabiliser subtracts the maximum over all keys, future ones included, and so leaks the future into the past.
"""

import math

import torch
from torch import Tensor

# Floor of a key's features: keeps the normaliser away from zero when keys and features do not align.
KEY_EPSILON = 1e-4
# Features of one segment (batch * heads * tokens * features), which is what is alive at once: 1 MiB stays in a CPU's cache,
# an accelerator wants few large launches.
SEGMENT_ELEMENTS = {"cpu": 1 << 18, "cuda": 1 << 25}


def draw_projection(num_features: int, head_dim: int, generator: torch.Generator) -> Tensor:
    """Draws an orthogonal Gaussian projection, shape (num_features, head_dim), float32 on the CPU.

    The draw is performer-pytorch's `gaussian_orthogonal_random_matrix`; it takes no generator, so its draws from the
    global one are fenced in and seeded from `generator`.
    """
    from performer_pytorch.performer_pytorch import gaussian_orthogonal_random_matrix

    seed = int(torch.randint(2**62, (1,), generator=generator, device="cpu"))
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.manual_seed(seed)
        return gaussian_orthogonal_random_matrix(num_features, head_dim).float()


def default_num_features(head_dim: int) -> int:
    """Number of random features that performer-pytorch takes for a head size: int(d ln d), 266 for 64."""
    return max(1, int(head_dim * math.log(head_dim)))


def query_features(query: Tensor, projection: Tensor) -> Tensor:
    """phi_q, shape (..., features). The factor exp(-|q|^2 / 2 - max) is common to all features and cancels in the ratio."""
    exponent = query @ (projection * query.shape[-1] ** -0.25).t()
    return exponent.sub_(exponent.amax(-1, keepdim=True)).exp_()


def key_features(key: Tensor, projection: Tensor, keep: Tensor | None = None) -> Tensor:
    """phi_k, shape (..., features). `keep` (..., True = keep) zeroes the features of masked tokens: they leave numerator
    and normaliser alike."""
    scale = key.shape[-1] ** -0.25
    half_square = key.square().sum(-1, keepdim=True).mul_(scale**2 / 2)
    features = (key @ (projection * scale).t()).sub_(half_square).exp_().add_(KEY_EPSILON)
    return features if keep is None else features.mul_(keep.unsqueeze(-1))


def chunk_size(num_features: int, length: int) -> int:
    """Tokens whose mutual attention is computed as one triangle.

    A triangle costs 2 C (M + D) operations a token, the running sums 4 M D and some M D / C memory accesses to add them up: the
    power of two at or above M / 2 keeps them alike. 64 is as large as stays in a CPU's cache, 32 is faster up to 128 features.
    """
    largest = 32 if num_features <= 128 else 64
    return min(length, largest, max(16, 1 << (num_features // 2 - 1).bit_length()))


def _append_ones(value: Tensor) -> Tensor:
    # The column of ones makes the normaliser one more value: one product gives both.
    return torch.cat([value, value.new_ones(*value.shape[:-1], 1)], -1)


def _into_chunks(x: Tensor, size: int) -> Tensor:
    """(G, n, F) -> (G, n / size, size, F), zero-padded at the end: padded keys are zero and padded queries are cut off."""
    missing = -x.shape[1] % size
    if missing:
        x = torch.nn.functional.pad(x, (0, 0, 0, missing))
    return x.unflatten(1, (-1, size))


def _prefix_sums(first: Tensor, parts: Tensor) -> Tensor:
    """Running sums *before* each part: (G, M, E), (G, T, M, E) -> (G, T, M, E). No subtraction, so strictly causal bits."""
    if parts.shape[1] == 1:
        return first.unsqueeze(1)
    return torch.cat([first.unsqueeze(1), parts[:, :-1]], 1).cumsum(1)


def _add_product(total: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """total + a @ b, (G, T, ., .) each, in place of `total`."""
    total.flatten(0, 1).baddbmm_(a.flatten(0, 1), b.flatten(0, 1))
    return total


def _attend_segment(query: Tensor, key: Tensor, value: Tensor, state: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Numerator and normaliser of one segment from features (G, n, M) x2 and values (G, n, E); and the state after it."""
    length = query.shape[1]
    query, key, value = (_into_chunks(x, size) for x in (query, key, value))
    sums = key.transpose(-1, -2) @ value  # (G, T, M, E)
    before = _prefix_sums(state, sums)
    out = _add_product(query @ before, (query @ key.transpose(-1, -2)).tril_(), value)
    return out.flatten(1, 2)[:, :length], before[:, -1] + sums[:, -1]


class _CausalAttention(torch.autograd.Function):
    """Saves queries, keys, values and outputs only; features and running sums live for one segment at a time."""

    @staticmethod
    def forward(ctx, query, key, value, keep, projection, state):
        # (G, n, D) x3, keep (G, n) or None, projection (M, D), state (G, M, D + 1)
        groups, length, _ = query.shape
        size = chunk_size(len(projection), length)
        elements = SEGMENT_ELEMENTS.get(query.device.type, SEGMENT_ELEMENTS["cuda"])
        segment = max(1, elements // (groups * len(projection) * size)) * size
        out = torch.empty_like(value)
        normaliser = value.new_empty(groups, length, 1)
        states = []
        for start in range(0, length, segment):
            part = slice(start, start + segment)
            states.append(state)
            result, state = _attend_segment(
                query_features(query[:, part], projection),
                key_features(key[:, part], projection, None if keep is None else keep[:, part]),
                _append_ones(value[:, part]),
                state,
                size,
            )
            normaliser[:, part] = result[..., -1:]
            torch.div(result[..., :-1], result[..., -1:], out=out[:, part])
        ctx.save_for_backward(query, key, value, keep, projection, out, normaliser, *states)
        ctx.size, ctx.segment = size, segment
        ctx.mark_non_differentiable(state)
        return out, state

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_out, _grad_state):
        query, key, value, keep, projection, out, normaliser, *states = ctx.saved_tensors
        grad_query, grad_key, grad_value = (torch.empty_like(x) for x in (query, key, value))
        grad_state = torch.zeros_like(states[0])
        for index in reversed(range(len(states))):
            part = slice(index * ctx.segment, (index + 1) * ctx.segment)
            # d(num / den) = d num / den - (num / den) d den / den
            grad = grad_out[:, part] / normaliser[:, part]
            grad = torch.cat([grad, -(grad * out[:, part]).sum(-1, keepdim=True)], -1)
            part_keep = None if keep is None else keep[:, part]
            parts = _segment_gradients(
                query[:, part],
                key[:, part],
                value[:, part],
                part_keep,
                projection,
                states[index],
                grad,
                grad_state,
                ctx.size,
            )
            grad_query[:, part], grad_key[:, part], grad_value[:, part], grad_state = parts
        return grad_query, grad_key, grad_value, None, None, None


def _segment_gradients(query, key, value, keep, projection, state, grad, grad_state, size):
    """Gradients of one segment's queries, keys, values (G, n, D), and of the state that enters it (G, M, D + 1)."""
    length = query.shape[1]
    phi_q, phi_k = query_features(query, projection), key_features(key, projection, keep)
    q, k, v, g = (_into_chunks(x, size) for x in (phi_q, phi_k, _append_ones(value), grad))
    before = _prefix_sums(state, k.transpose(-1, -2) @ v)
    sums = q.transpose(-1, -2) @ g
    after = _prefix_sums(grad_state, sums.flip(1)).flip(1)  # what later chunks ask of the running sums
    scores = (q @ k.transpose(-1, -2)).tril_()
    grad_scores = (g @ v.transpose(-1, -2)).tril_()
    grad_q = _add_product(g @ before.transpose(-1, -2), grad_scores, k)
    grad_k = _add_product(v @ after.transpose(-1, -2), grad_scores.transpose(-1, -2), q)
    grad_v = _add_product(k @ after, scores.transpose(-1, -2), g)
    grad_q, grad_k, grad_v = (x.flatten(1, 2)[:, :length] for x in (grad_q, grad_k, grad_v))

    scale = query.shape[-1] ** -0.25
    projection = projection * scale
    grad_query = grad_q.mul_(phi_q) @ projection
    # phi_k = (exp(w.k - |k|^2 / 2) + epsilon) * keep: the exponential part is what the gradient goes through
    phi_k -= KEY_EPSILON if keep is None else KEY_EPSILON * keep.unsqueeze(-1)
    grad_exponent = grad_k.mul_(phi_k)
    grad_key = (grad_exponent @ projection).addcmul_(grad_exponent.sum(-1, keepdim=True), key, value=-(scale**2))
    return grad_query, grad_key, grad_v[..., :-1], after[:, 0] + sums[:, 0]


def new_state(batch_size: int, num_heads: int, projection: Tensor) -> Tensor:
    """Empty running sums, shape (B, H, M, D + 1): of values and, in the last column, of the key features themselves."""
    num_features, head_dim = projection.shape
    return projection.new_zeros(batch_size, num_heads, num_features, head_dim + 1)


def prefill(
    query: Tensor, key: Tensor, value: Tensor, projection: Tensor, state: Tensor, keep: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Attends with everything summed up in `state` and causally within the new tokens.

    Args:
        query, key, value: (B, H, n, D), any float dtype; computed in float32, also under autocast.
        projection: (M, D) random features.
        state: (B, H, M, D + 1) from `new_state` or an earlier call.
        keep: (B, n) bool, True = keep. A masked token is never attended to, not by itself either.

    Returns:
        Outputs (B, H, n, D) in the dtype of `value`, and the state after the new tokens.
    """
    batch, heads, length, head_dim = query.shape
    with torch.autocast(query.device.type, enabled=False):
        flat = (x.float().reshape(batch * heads, length, head_dim) for x in (query, key, value))
        if keep is not None:
            keep = keep.to(torch.float32).repeat_interleave(heads, 0)
        out, state = _CausalAttention.apply(*flat, keep, projection.float(), state.flatten(0, 1))
    return out.view(batch, heads, length, head_dim).to(value.dtype), state.unflatten(0, (batch, heads))


def causal_attention(
    query: Tensor, key: Tensor, value: Tensor, projection: Tensor, keep: Tensor | None = None
) -> Tensor:
    """Causal FAVOR+ attention over whole sequences: `prefill` from an empty state. Shapes as there; differentiable."""
    state = new_state(query.shape[0], query.shape[1], projection.float())
    return prefill(query, key, value, projection, state, keep)[0]


def step(query: Tensor, key: Tensor, value: Tensor, projection: Tensor, state: Tensor) -> Tensor:
    """One token: (B, H, D) x3 -> (B, H, D). Adds the token to `state` (B, H, M, D + 1) in place, then attends."""
    with torch.autocast(query.device.type, enabled=False):
        projection = projection.float()
        state.addcmul_(key_features(key.float(), projection).unsqueeze(-1), _append_ones(value.float()).unsqueeze(-2))
        result = (query_features(query.float(), projection).unsqueeze(-2) @ state).squeeze(-2)
        return (result[..., :-1] / result[..., -1:]).to(value.dtype)
