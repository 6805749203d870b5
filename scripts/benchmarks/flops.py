"""Floating point operations by hand, a multiply-add counted as two; the least that a method needs.

For one layer, H heads of size D, M random features, n tokens, width W, feed-forward factor r, vocabulary K:

    dense layers      2 n (3 W H D + H D W + 2 r W^2), and 2 n W K for the head, once
    features          2 * 2 n M D H                          of queries and keys
    linear attention  4 n M (D + 1) H                        into the running sums and out of them
    softmax attention 2 n^2 D H                              the causal half of 4 n^2 D H

The triangle inside a chunk (2 n C (M + D + 1) H for chunks of C tokens) is left out: it is a price for being a matmul and
no need, so that shares understate the rate of the kernels. A backward pass needs twice the forward one; what
is recomputed in it to save memory is left out too. Normalisation, activations, exponentials and softmax are left out.
"""

from iltm_anomaly.prior import PerformerPriorConfig
from iltm_anomaly.tokenizers.vqvae import VQVAEConfig


def dense(config: PerformerPriorConfig, tokens: int) -> float:
    width, inner = config.hidden_size, config.num_attention_heads * config.head_dim
    layer = 4 * width * inner + 2 * config.intermediate_ratio * width**2
    return 2 * tokens * (config.num_hidden_layers * layer + width * config.vocab_size)


def linear_attention(tokens: int, heads: int, head_dim: int, features: int) -> float:
    """One layer, features included."""
    return tokens * heads * (4 * features * head_dim + 4 * features * (head_dim + 1))


def softmax_attention(tokens: int, heads: int, head_dim: int) -> float:
    """One layer, causal."""
    return 2.0 * tokens**2 * head_dim * heads


def performer(config: PerformerPriorConfig, tokens: int) -> float:
    """One forward pass, in parallel or step by step alike."""
    heads, head_dim, features = config.num_attention_heads, config.head_dim, config.num_random_features
    attention = linear_attention(tokens, heads, head_dim, features)
    return dense(config, tokens) + config.num_hidden_layers * attention


def transformer(config: PerformerPriorConfig, tokens: int) -> float:
    """One forward pass of the same model with softmax attention."""
    attention = softmax_attention(tokens, config.num_attention_heads, config.head_dim)
    return dense(config, tokens) + config.num_hidden_layers * attention


def decoder_trunk(config: VQVAEConfig, cells: int) -> float:
    """Decoder of a 2-D VQ-VAE up to its dropout, for a grid of `cells` codes."""
    widths = config.channels
    # kernels: 3x3 at the entry, 3x3 and 1x1 in a residual block, 4x4 in an up-convolution
    total = 2 * cells * 9 * config.embedding_dim * widths[-1]
    for level in reversed(range(len(widths))):
        total += config.num_res_blocks * 2 * cells * 10 * widths[level] ** 2
        if level:
            total += 2 * cells * 16 * widths[level] * widths[level - 1]
            cells *= 4
    return float(total)


def decoder_head(config: VQVAEConfig, cells: int) -> float:
    """The last up-convolution, once."""
    return 2.0 * cells * 4 ** (len(config.channels) - 1) * 16 * config.channels[0] * config.in_channels
