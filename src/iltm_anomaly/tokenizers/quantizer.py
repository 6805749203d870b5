"""Vector quantiser whose codebook follows the encoder by exponential moving averages (van den Oord et al., 2017)."""

import torch
import torch.distributed as dist
from torch import Tensor, nn

KMEANS_ITERATIONS = 10
# Distances held at once: all of them, vectors x codes, would be most of the memory of a step. 4 MiB stay in a CPU's cache.
DISTANCES = {"cpu": 1 << 20, "cuda": 1 << 26}


def _sum_over_processes(counts: Tensor, sums: Tensor) -> tuple[Tensor, Tensor]:
    # Without this every process would keep a codebook of its own: buffers are not gradients, DDP does not reduce them.
    if dist.is_available() and dist.is_initialized():
        both = torch.cat([counts.unsqueeze(1), sums], 1)  # one message for the two
        dist.all_reduce(both)
        counts, sums = both[:, 0], both[:, 1:]
    return counts, sums


def _hashed(numbers: Tensor) -> Tensor:
    """Scattered evenly over 32 bits, the same on every device: two rounds of xorshift and multiplication."""
    hashed = numbers & 0xFFFFFFFF
    for _ in range(2):
        hashed = ((hashed ^ (hashed >> 16)) * 0x45D9F3B) & 0xFFFFFFFF
    return hashed ^ (hashed >> 16)


class EMAQuantizer(nn.Module):
    """Nearest code by squared distance; codes are moving averages of the encoder outputs assigned to them.

    In float32 whatever the autocast type. Buffers, all saved: `codebook` (K, D), and the moving averages of how many
    vectors fell to each code, `code_count` (K,), and of their sum, `code_sum` (K, D).

    Args:
        num_codes, dim: K and D.
        decay, epsilon: of the moving averages and of their Laplace smoothing.
        dead_code_threshold: see `VQVAEConfig`.

    While `bypass` is set, vectors pass unquantised and the codebook rests.
    """

    codebook: Tensor
    code_count: Tensor
    code_sum: Tensor
    updates: Tensor

    def __init__(self, num_codes: int, dim: int, decay: float, epsilon: float, dead_code_threshold: float = 0.0):
        super().__init__()
        self.decay, self.epsilon, self.dead_code_threshold = decay, epsilon, dead_code_threshold
        self.bypass = False
        self.defer = False
        self.pending: tuple[Tensor, Tensor] | None = None
        self.register_buffer("codebook", torch.empty(num_codes, dim))
        self.register_buffer("code_count", torch.empty(num_codes))
        self.register_buffer("code_sum", torch.empty(num_codes, dim))
        self.register_buffer("updates", torch.zeros((), dtype=torch.long))

    @torch.no_grad()
    def assign(self, vectors: Tensor) -> Tensor:
        """(T, D) float32 -> nearest code of each, (T,) int64."""
        codebook = self.codebook.float()  # a model cast to bfloat16 has cast its buffers too
        squares, transposed = codebook.square().sum(1), codebook.t()
        rows = max(1, DISTANCES.get(vectors.device.type, DISTANCES["cuda"]) // len(codebook))
        nearest = torch.empty(len(vectors), dtype=torch.long, device=vectors.device)
        distances = vectors.new_empty(min(rows, len(vectors)), len(codebook))  # one, or the heap grows by one a part
        for part, codes in zip(vectors.split(rows), nearest.split(rows), strict=True):
            # |z|^2 is the same for every code and does not change which is nearest
            torch.mm(part, transposed, out=distances[: len(part)]).mul_(-2).add_(squares)
            torch.argmin(distances[: len(part)], 1, out=codes)
        return nearest

    def forward(self, vectors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(T, D) -> quantised vectors (T, D), codes (T,), and how many fell to each code (K,).

        In training mode the codebook is updated, after it was used, and the counts are those of all processes. While `defer`
        is set, counts and sums are only added up, for the update of the next call without it: a step in micro-batches moves
        the codebook once, as a whole batch does.
        """
        with torch.autocast(vectors.device.type, enabled=False):
            vectors = vectors.float()
            codes = self.assign(vectors)
            if self.bypass:
                return vectors, codes, vectors.new_zeros(len(self.codebook))
            quantized = self.codebook[codes].float()
            counts = vectors.new_zeros(len(self.codebook)).index_add_(0, codes, vectors.new_ones(len(codes)))
            if self.training:
                counts = self._update(vectors.detach(), codes, counts)
        return quantized, codes, counts

    @torch.no_grad()
    def _update(self, vectors: Tensor, codes: Tensor, counts: Tensor) -> Tensor:
        sums = torch.zeros_like(self.code_sum).index_add_(0, codes, vectors)
        if self.pending is not None:
            counts, sums = counts + self.pending[0], sums + self.pending[1]
        self.pending = (counts, sums) if self.defer else None
        if self.defer:
            return counts
        counts, sums = _sum_over_processes(counts, sums)
        self.code_count.lerp_(counts, 1 - self.decay)
        self.code_sum.lerp_(sums, 1 - self.decay)
        self.updates += 1
        if self.dead_code_threshold > 0:
            even_share = self.code_count.mean()
            dead = self.code_count < self.dead_code_threshold * even_share
            fresh = self._draw(vectors, len(self.codebook)) * even_share
            self.code_sum.copy_(torch.where(dead.unsqueeze(1), fresh, self.code_sum))
            self.code_count.copy_(torch.where(dead, even_share, self.code_count))
        total = self.code_count.sum()
        smoothed = (self.code_count + self.epsilon) / (total + len(self.codebook) * self.epsilon) * total
        self.codebook.copy_(self.code_sum / smoothed.unsqueeze(1))
        return counts

    def _draw(self, vectors: Tensor, count: int) -> Tensor:
        # A function of the update's number: the same in a resumed run, and no device waits to tell the host that number. The
        # first process draws for all.
        numbers = self.updates * count + torch.arange(count, device=vectors.device)
        drawn = vectors[_hashed(numbers) % len(vectors)]
        if dist.is_available() and dist.is_initialized():
            dist.broadcast(drawn, 0)
        return drawn

    @torch.no_grad()
    def initialize_from(self, vectors: Tensor) -> None:
        """Puts the codes where encoder outputs (T, D) are: onto some drawn at random, then k-means (Lloyd's iterations)."""
        vectors = vectors.float()
        self.codebook.copy_(self._draw(vectors, len(self.codebook)))
        for _ in range(KMEANS_ITERATIONS):
            codes = self.assign(vectors)
            counts = torch.bincount(codes, minlength=len(self.codebook)).to(vectors)
            sums = torch.zeros_like(self.code_sum).index_add_(0, codes, vectors)
            counts, sums = _sum_over_processes(counts, sums)
            self.codebook.copy_(torch.where(counts.unsqueeze(1) > 0, sums / counts.unsqueeze(1), self.codebook))
        even_share = int(counts.sum()) / len(self.codebook)  # of all processes, as the counts are
        self.code_count.copy_(counts.clamp(min=1) / even_share)
        self.code_sum.copy_(self.codebook * self.code_count.unsqueeze(1))


def perplexity(counts: Tensor) -> Tensor:
    """exp of the entropy of code use, from counts (K,): K if all codes are used alike, 1 if one code is all there is."""
    share = counts / counts.sum().clamp(min=1)
    return torch.exp(-torch.xlogy(share, share).sum())
