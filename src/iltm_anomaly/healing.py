"""Healing: unlikely codes of an image are drawn again from the prior, in sequence order, given what was healed before."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from iltm_anomaly.masking import keep_mask
from iltm_anomaly.prior import PerformerPriorModel


@dataclass
class HealingResult:
    """
    Args:
        log_likelihood: (B, N) float32, natural log-probability of each code of the image as it came.
        resampled: (B, N) bool, the codes that were drawn again.
        healed: (B, S, N) int64, the samples; equal to the image's codes where `resampled` is False.
    """

    log_likelihood: Tensor
    resampled: Tensor
    healed: Tensor


@torch.no_grad()
def heal(
    prior: PerformerPriorModel,
    codes: Tensor,
    token_threshold: float,
    num_samples: int,
    generators: Sequence[torch.Generator],
) -> HealingResult:
    """Scores every code once, then redraws those less likely than `token_threshold`, `num_samples` times.

    Which codes are redrawn is fixed by the scoring pass. All samples of all images advance together: what precedes an image's
    first unlikely code is read once for all its samples, runs of kept codes are read as a whole, and a sequence leaves the
    batch after its last unlikely code. An image without unlikely codes costs the scoring pass alone.

    Args:
        prior: in eval mode.
        codes: (B, N) int64 on the prior's device.
        token_threshold: probability; 0 redraws nothing, more than 1 everything (ancestral sampling).
        num_samples: S.
        generators: one CPU generator per image; its draws depend on nothing else in the batch.

    Raises:
        ValueError: if there is not one generator per image, or if the threshold is negative.
    """
    if len(generators) != len(codes):
        raise ValueError(f"need one generator per image: got {len(generators)} for {len(codes)} images")
    log_likelihood = prior.log_likelihood(codes)
    resampled = ~keep_mask(log_likelihood, token_threshold)
    healed = codes.unsqueeze(1).repeat(1, num_samples, 1)
    images = resampled.any(1).nonzero().squeeze(1)
    if len(images) and num_samples:
        _Resampling(prior, codes, resampled, num_samples, generators, images).run(healed)
    return HealingResult(log_likelihood, resampled, healed)


class _Resampling:
    """The sequences under way: rows of `state`, each with its image, its sample and the index of its next target."""

    def __init__(self, prior, codes, resampled, num_samples, generators, images):
        self.prior, device = prior, codes.device
        counts = resampled.sum(1)
        longest = int(counts.max())
        # Positions to redraw, in order, and the uniform numbers that decide each draw: (B, T) and (B, T, S).
        self.targets = torch.argsort((~resampled).to(torch.uint8), dim=1, stable=True)[:, :longest]
        self.uniforms = torch.zeros(len(codes), longest, num_samples)
        for image in images.tolist():
            count = int(counts[image])
            self.uniforms[image, :count] = torch.rand(count, num_samples, generator=generators[image])
        self.uniforms, self.counts = self.uniforms.to(device), counts

        prefix = self.targets[images, 0]
        state = prior.init_state(len(images))
        if int(prefix.max()):
            _, state = prior.prefill(codes[images, : int(prefix.max())], state, prefix)
        rows = torch.arange(len(images), device=device).repeat_interleave(num_samples)
        self.state = state.select(rows)
        self.image = images[rows]
        self.sample = torch.arange(num_samples, device=device).repeat(len(images))
        self.target = torch.zeros_like(self.image)

    def run(self, healed: Tensor) -> None:
        while True:
            self._draw(healed)
            self._drop_finished()
            if not len(self.image):
                return
            self._read_on(healed)

    def _next_position(self) -> Tensor:
        return self.targets[self.image, self.target]

    def _draw(self, healed: Tensor) -> None:
        """Draws the next code of every sequence that has arrived at its target, by inverting the distribution function."""
        here = (self.state.position == self._next_position()).nonzero().squeeze(1)
        image, sample, target = self.image[here], self.sample[here], self.target[here]
        cumulative = self.state.logits[here].double().softmax(-1).cumsum(-1)
        uniform = self.uniforms[image, target, sample].double().unsqueeze(1) * cumulative[:, -1:]
        drawn = torch.searchsorted(cumulative, uniform, right=True).squeeze(1).clamp(max=cumulative.shape[1] - 1)
        healed[image, sample, self.targets[image, target]] = drawn
        self.target[here] += 1

    def _drop_finished(self) -> None:
        left = (self.target < self.counts[self.image]).nonzero().squeeze(1)
        if len(left) < len(self.image):
            self.state = self.state.select(left)
            self.image, self.sample, self.target = self.image[left], self.sample[left], self.target[left]

    def _read_on(self, healed: Tensor) -> None:
        """Reads codes up to the next target. Sequences whose run is longer than the median one take it in several parts, so
        that one long run does not pad all the others."""
        run = self._next_position() - self.state.position
        length = int(run.median())
        position = self.state.position[:, None] + torch.arange(length, device=run.device)
        codes = healed[self.image[:, None], self.sample[:, None], position.clamp(max=healed.shape[-1] - 1)]
        if length == 1:
            _, self.state = self.prior.step(codes[:, 0], self.state)
        else:
            _, self.state = self.prior.prefill(codes, self.state, run.clamp(max=length))


def sample_codes(
    prior: PerformerPriorModel, num_samples: int, generator: torch.Generator, length: int | None = None
) -> Tensor:
    """Draws whole code sequences from the prior, (num_samples, N) int64: healing an image of which nothing is kept."""
    length = length or prior.config.max_position_embeddings
    codes = torch.zeros(1, length, dtype=torch.long, device=prior.device)
    return heal(prior, codes, 2.0, num_samples, [generator]).healed[0]
