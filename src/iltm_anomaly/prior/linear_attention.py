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

Exponentials are powers of two of exponents that were scaled by log2(e): PyTorch's `exp2` is four times as fast on CPUs as its
`exp`.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

# Floor of a key's features: keeps the normaliser away from zero when keys and features do not align.
KEY_EPSILON = 1e-4
LOG2_E, LN_2 = math.log2(math.e), math.log(2)
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


def query_features(exponent: Tensor, axis: int) -> Tensor:
    """phi_q, in place of the exponents log2(e) w.q, with the features along `axis`. The factor exp(-|q|^2 / 2 - max) is common
    to all features and cancels in the ratio."""
    return exponent.sub_(exponent.amax(axis, keepdim=True)).exp2_()


def key_features(exponent: Tensor) -> Tensor:
    """phi_k, in place of the exponents log2(e) (w.k - |k|^2 / 2)."""
    return exponent.exp2_().add_(KEY_EPSILON)


def _exponent_weights(projection: Tensor) -> Tensor:
    """What queries and keys, both scaled by D^(-1/4), are multiplied with."""
    return projection * (LOG2_E * projection.shape[1] ** -0.25)


def _half_square(key: Tensor, axis: int) -> Tensor:
    """log2(e) |k|^2 / 2 of keys that are yet to be scaled by D^(-1/4)."""
    return key.square().sum(axis, keepdim=True).mul_(LOG2_E * key.shape[axis] ** -0.5 / 2)


def chunk_size(num_features: int, length: int) -> int:
    """Tokens whose mutual attention is computed as one triangle.

    A triangle costs 2 C (M + D) operations a token, the running sums 4 M D and some M D / C memory accesses to add them up: the
    power of two at or above M / 2 keeps them alike. 64 is as large as stays in a CPU's cache, 32 is faster up to 128 features.
    """
    largest = 32 if num_features <= 128 else 64
    return min(length, largest, max(16, 1 << (num_features // 2 - 1).bit_length()))


# Whole sequences are cut into chunks with the tokens as the last axis, which is the one that processors run along:
# (T, G, D + 1, C) for T chunks of C tokens and G = batch * heads. The last of the D + 1 rows is 1 for values, so that one
# product gives numerator and normaliser, and -|k|^2 / 2 for keys, so that one gives their exponents.


def _into_chunks(x: Tensor, size: int) -> Tensor:
    """(..., H, D, B, n) -> (..., T, B * H, D + 1, size), at least float32, zero-padded at the end. Leaves the last row to
    the caller."""
    *leading, heads, head_dim, batch, length = x.shape
    x = F.pad(x, (0, -length % size)).unflatten(-1, (-1, size))
    dtype = torch.promote_types(x.dtype, torch.float32)
    chunks = x.new_empty(*leading, x.shape[-2], batch, heads, head_dim + 1, size, dtype=dtype)
    chunks[..., :head_dim, :] = x.movedim((-2, -3), (-5, -4))
    return chunks.flatten(-4, -3)


def _from_chunks(chunks: Tensor, batch: int, length: int, dtype: torch.dtype) -> Tensor:
    """(..., T, B * H, D, size) -> (..., H, D, B, n)."""
    chunks = chunks.to(dtype).unflatten(-3, (batch, -1)).movedim((-5, -4), (-2, -3))
    return chunks.contiguous().flatten(-2)[..., :length]


def _chunk_inputs(qkv: Tensor, size: int) -> Tensor:
    """(3, H, D, B, n) -> queries, keys, values (3, T, G, D + 1, C), with their last rows."""
    chunks = _into_chunks(qkv, size)
    chunks[0, ..., -1, :] = 0
    chunks[1, ..., -1:, :] = -_half_square(chunks[1, ..., :-1, :], -2)
    chunks[2, ..., -1, :] = 1
    return chunks


def _chunk_mask(keep: Tensor | None, qkv: Tensor, size: int) -> Tensor | None:
    """Which keys to attend to, (B, n) bool -> (T, G, 1, C); padding is not, and None is all."""
    _, heads, _, batch, length = qkv.shape
    missing = -length % size
    if keep is None:
        if not missing:
            return None
        keep = torch.ones(batch, length, dtype=torch.bool, device=qkv.device)
    dtype = torch.promote_types(qkv.dtype, torch.float32)
    chunks = F.pad(keep, (0, missing)).to(dtype).unflatten(1, (-1, size)).transpose(0, 1)
    return chunks.repeat_interleave(heads, 1).unsqueeze(2)


def _running_sums(first: Tensor, a: Tensor, b: Tensor, reverse: bool = False) -> Tensor:
    """`first` (G, E, M), then with every chunk's a @ b^T added, (T + 1, G, E, M); `reverse` starts behind the last chunk. No
    subtraction, so that what a chunk enters with depends on no bit of it."""
    count = len(a) // len(first)
    sums = first.new_empty(count + 1, *first.shape)
    start, parts = (count, sums[:-1]) if reverse else (0, sums[1:])
    sums[start] = first
    torch.bmm(a, b.transpose(1, 2), out=parts.flatten(0, 1))
    for t in reversed(range(count)) if reverse else range(1, count + 1):
        sums[t] += sums[t + 1 if reverse else t - 1]
    return sums


def _segment_features(query: Tensor, key: Tensor, weights: Tensor, keep: Tensor | None) -> tuple[Tensor, Tensor]:
    """phi_q and phi_k (T * G, M, C) of chunks (T, G, D + 1, C); masked and padding keys have none, so that they leave
    numerator and normaliser alike."""
    weights = weights.expand(query.shape[0] * query.shape[1], -1, -1)
    phi_q = query_features(torch.bmm(weights, query.flatten(0, 1)), -2)
    phi_k = key_features(torch.bmm(weights, key.flatten(0, 1)))
    return phi_q, phi_k if keep is None else phi_k.mul_(keep.flatten(0, 1))


def _augmented(projection: Tensor) -> Tensor:
    """(M, D) -> (M, D + 1): what exponents are made with from the D + 1 rows of a chunk."""
    return torch.cat([_exponent_weights(projection), projection.new_ones(len(projection), 1)], 1)


class _CausalAttention(torch.autograd.Function):
    """Saves queries, keys, values and outputs only; features and running sums live for one segment at a time."""

    @staticmethod
    def forward(ctx, qkv, keep, projection, state):
        # (3, H, D, B, n), keep (B, n) bool or None, projection (M, D), state (G, D + 1, M)
        _, _, _, batch, length = qkv.shape
        size, weights = chunk_size(len(projection), length), _augmented(projection)
        chunks, keep = _chunk_inputs(qkv, size), _chunk_mask(keep, qkv, size)
        elements = SEGMENT_ELEMENTS.get(qkv.device.type, SEGMENT_ELEMENTS["cuda"])
        segment = max(1, elements // (len(state) * len(projection) * size))
        out, states = torch.empty_like(chunks[2]), []
        for start in range(0, chunks.shape[1], segment):
            part = slice(start, start + segment)
            states.append(state)
            query, key, value = chunks[:, part]
            phi_q, phi_k = _segment_features(query, key, weights, None if keep is None else keep[part])
            value = value.flatten(0, 1)
            sums = _running_sums(state, value, phi_k)
            result = out[part].flatten(0, 1)
            torch.bmm(sums[:-1].flatten(0, 1), phi_q, out=result)
            result.baddbmm_(value, torch.bmm(phi_k.transpose(1, 2), phi_q).triu_())
            state = sums[-1].clone()  # not a view of all of them
        out[..., :-1, :] /= out[..., -1:, :]
        ctx.save_for_backward(chunks, keep, weights, out, *states)
        ctx.segment, ctx.batch, ctx.length, ctx.dtype = segment, batch, length, qkv.dtype
        ctx.mark_non_differentiable(state)
        return _from_chunks(out[..., :-1, :], batch, length, qkv.dtype), state

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_out, _grad_state):
        chunks, keep, weights, out, *states = ctx.saved_tensors
        with torch.autocast(grad_out.device.type, enabled=False):
            # d(num / den) = d num / den - (num / den) d den / den
            grad = _into_chunks(grad_out.to(out.dtype), out.shape[-1])
            values = grad[..., :-1, :]
            values /= out[..., -1:, :]
            torch.sum(values * out[..., :-1, :], -2, keepdim=True, out=grad[..., -1:, :]).neg_()
            grads = torch.empty_like(chunks[..., :-1, :], memory_format=torch.contiguous_format)
            grad_state = torch.zeros_like(states[0])
            for index in reversed(range(len(states))):
                part = slice(index * ctx.segment, (index + 1) * ctx.segment)
                part_keep = None if keep is None else keep[part]
                grad_state = _segment_gradients(
                    chunks[:, part], part_keep, weights, states[index], grad[part], grad_state, grads[:, part]
                )
        return _from_chunks(grads, ctx.batch, ctx.length, ctx.dtype), None, None, None


def _attend_in_a_graph(qkv: Tensor, keep: Tensor | None, projection: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """`_CausalAttention.forward` as a graph of a fixed size: no segments, no loop over chunks, and nothing written into parts of
    a tensor. Features and running sums of all tokens are alive at once."""
    _, _, _, batch, length = qkv.shape
    size, weights = chunk_size(len(projection), length), _exponent_weights(projection)
    chunks = F.pad(qkv.float(), (0, -length % size)).unflatten(-1, (-1, size))
    query, key, value = chunks.permute(0, 4, 3, 1, 2, 5).flatten(2, 3)  # (T, G, D, C) each
    value = torch.cat([value, torch.ones_like(value[..., :1, :])], -2)
    phi_q, phi_k = query_features(weights @ query, -2), key_features(weights @ key - _half_square(key, -2))
    mask = _chunk_mask(keep, qkv, size)
    phi_k = phi_k if mask is None else phi_k * mask
    sums = torch.cat([state[None], value @ phi_k.transpose(-1, -2)]).cumsum(0)
    out = sums[:-1] @ phi_q + value @ (phi_k.transpose(-1, -2) @ phi_q).triu()
    return _from_chunks(out[..., :-1, :] / out[..., -1:, :], batch, length, qkv.dtype), sums[-1]


def _segment_gradients(chunks, keep, weights, state, grad, grad_state, out):
    """Writes the gradients of one segment's queries, keys and values to `out` (3, T, G, D, C); returns that of the state
    which enters it (G, D + 1, M)."""
    query, key, value = chunks
    phi_q, phi_k = _segment_features(query, key, weights, keep)
    value, grad = value.flatten(0, 1), grad.flatten(0, 1)
    before = _running_sums(state, value[: -len(state)], phi_k[: -len(state)]).flatten(0, 1)
    sums = _running_sums(grad_state, grad, phi_q, reverse=True)
    after = sums[1:].flatten(0, 1)  # what later chunks ask of the running sums
    scores = torch.bmm(phi_k.transpose(1, 2), phi_q).triu_()
    grad_scores = torch.bmm(value.transpose(1, 2), grad).triu_()
    grad_q = torch.bmm(before.transpose(1, 2), grad).baddbmm_(phi_k, grad_scores)
    grad_k = torch.bmm(after.transpose(1, 2), value).baddbmm_(phi_q, grad_scores.transpose(1, 2))
    grad_v = torch.bmm(after, phi_k).baddbmm_(grad, scores.transpose(1, 2))

    grad_query, grad_key, grad_value = (x.flatten(0, 1) for x in out)
    grad_value.copy_(grad_v[:, :-1])
    back = (weights.t() * LN_2).expand(len(phi_q), -1, -1)
    torch.bmm(back[:, :-1], grad_q.mul_(phi_q), out=grad_query)
    # phi_k = (exp(w.k - |k|^2 / 2) + epsilon) * keep: the exponential part is what the gradient goes through
    phi_k -= KEY_EPSILON if keep is None else KEY_EPSILON * keep.flatten(0, 1)
    grad_exponent = torch.bmm(back, grad_k.mul_(phi_k))
    key, scale = key.flatten(0, 1)[:, :-1], LOG2_E * grad_key.shape[1] ** -0.5  # of d _half_square / d key
    torch.addcmul(grad_exponent[:, :-1], grad_exponent[:, -1:], key, value=-scale, out=grad_key)
    return sums[0]


def new_state(batch_size: int, num_heads: int, projection: Tensor) -> Tensor:
    """Empty running sums, shape (B, H, D + 1, M): of values and, in the last row, of the key features themselves."""
    num_features, head_dim = projection.shape
    return projection.new_zeros(batch_size, num_heads, head_dim + 1, num_features)


def attend(qkv: Tensor, projection: Tensor, state: Tensor, keep: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Attends with everything summed up in `state` and causally within the new tokens.

    Args:
        qkv: (3, H, D, B, n) queries, keys and values, any float dtype; computed in float32, also under autocast. Tokens come
            last because that is how the product needs them, and what a projection of them gives for nothing.
        projection: (M, D) random features.
        state: (B, H, D + 1, M) from `new_state` or an earlier call.
        keep: (B, n) bool, True = keep. A masked token is never attended to, not by itself either.

    Returns:
        Outputs (H, D, B, n) in the dtype of `qkv`, and the state after the new tokens. While `torch.export` traces, there are no
        gradients.
    """
    with torch.autocast(qkv.device.type, enabled=False):
        attention = _attend_in_a_graph if torch.compiler.is_exporting() else _CausalAttention.apply
        out, leaving = attention(qkv, keep, projection.float(), state.flatten(0, 1))
    return out, leaving.view_as(state)


def prefill(
    query: Tensor, key: Tensor, value: Tensor, projection: Tensor, state: Tensor, keep: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """`attend` with the usual axes: queries, keys, values and outputs (B, H, n, D)."""
    out, state = attend(torch.stack([query, key, value]).permute(0, 2, 4, 1, 3), projection, state, keep)
    return out.permute(2, 0, 3, 1), state


def causal_attention(
    query: Tensor, key: Tensor, value: Tensor, projection: Tensor, keep: Tensor | None = None
) -> Tensor:
    """Causal FAVOR+ attention over whole sequences: `prefill` from an empty state. Shapes as there; differentiable."""
    state = new_state(query.shape[0], query.shape[1], projection.float())
    return prefill(query, key, value, projection, state, keep)[0]


def step(qkv: Tensor, projection: Tensor, state: Tensor) -> Tensor:
    """One token: (B, 3, H, D) -> (B, H, D). Adds the token to `state` (B, H, D + 1, M) in place, then attends."""
    with torch.autocast(qkv.device.type, enabled=False):
        _, key, value = qkv.float().unbind(1)
        exponent = qkv[:, :2].float() @ _exponent_weights(projection.float()).t()  # (B, 2, H, M)
        phi_q = query_features(exponent[:, 0], -1)
        phi_k = key_features(exponent[:, 1].sub_(_half_square(key, -1)))
        state[:, :, :-1].addcmul_(value.unsqueeze(-1), phi_k.unsqueeze(-2))
        state[:, :, -1].add_(phi_k)
        # a row times a matrix: as a matrix times a column it takes CPUs seven times as long
        result = (phi_q.unsqueeze(-2) @ state.transpose(-1, -2)).squeeze(-2)
        return (result[..., :-1] / result[..., -1:]).to(qkv.dtype)
