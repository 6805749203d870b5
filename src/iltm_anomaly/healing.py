"""Healing: unlikely codes of an image are drawn again from the prior, in sequence order, given what was healed before."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from iltm_anomaly.prior import PerformerPriorModel

ACCEPTANCE_REACH = 3  # tokens (Chebyshev distance) about a region whose likelihood counts; two do much the same


@dataclass
class Healed:
    """What became of the codes of one image.

    Args:
        samples: (S, *grid) int64, healed samples of its codes.
        resampled: (*grid) bool, True where a token was drawn again and not taken back in every sample.
        log_likelihood: (*grid) float32 of the image's own codes in their own context, natural logarithm.
    """

    samples: Tensor
    resampled: Tensor
    log_likelihood: Tensor


def heal_grids(
    prior: PerformerPriorModel,
    codes: Tensor,
    log_likelihood: Tensor,
    keep: Tensor,
    num_samples: int,
    generators: Sequence[torch.Generator],
    only_likelier: bool = False,
) -> list[Healed]:
    """Heals grids of codes.

    Args:
        prior: in eval mode.
        codes, log_likelihood: (B, *grid) int64 and float32.
        keep: (B, *grid) bool, False where a token is drawn again.
        num_samples, generators: as of `heal`.
        only_likelier: take back what does not make the codes likelier, see `accept_likelier`.
    """
    samples = heal(prior, codes.flatten(1), keep.flatten(1), num_samples, generators).unflatten(-1, codes.shape[1:])
    healed = []
    for own, drawn, likelihood, resampled in zip(codes, samples, log_likelihood, ~keep, strict=True):
        if only_likelier and bool(resampled.any()):
            drawn = accept_likelier(prior, own, drawn, resampled, likelihood)
            resampled &= (drawn != own).any(0)
        healed.append(Healed(drawn, resampled, likelihood))
    return healed


@torch.no_grad()
def heal(
    prior: PerformerPriorModel,
    codes: Tensor,
    keep: Tensor,
    num_samples: int,
    generators: Sequence[torch.Generator],
) -> Tensor:
    """Redraws the codes that `keep` gives up, `num_samples` times; which ones they are is fixed beforehand (`masking`).

    All samples of all images advance together: what precedes an image's first unlikely code is read once for all its samples,
    runs of kept codes are read as a whole, and a sequence leaves the batch after its last unlikely code. An image that keeps
    everything costs nothing.

    Args:
        prior: in eval mode.
        codes: (B, N) int64 on the prior's device.
        keep: (B, N) bool, True = keep. All False is ancestral sampling.
        num_samples: S.
        generators: one CPU generator per image; its draws depend on nothing else in the batch.

    Returns:
        (B, S, N) int64, equal to the image's codes wherever `keep` is True.

    Raises:
        ValueError: if shapes differ, or there is not one generator per image.
    """
    if keep.shape != codes.shape:
        raise ValueError(f"keep must have the shape of codes {tuple(codes.shape)}, got {tuple(keep.shape)}")
    if len(generators) != len(codes):
        raise ValueError(f"need one generator per image: got {len(generators)} for {len(codes)} images")
    healed = codes.unsqueeze(1).repeat(1, num_samples, 1)
    images = (~keep).any(1).nonzero().squeeze(1)
    if len(images) and num_samples:
        with torch.inference_mode():
            _Resampling(prior, codes, ~keep, num_samples, generators, images).run(healed)
    return healed


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
        cumulative = _in_float64(self.state.logits[here]).softmax(-1).cumsum(-1)
        uniform = _in_float64(self.uniforms[image, target, sample]).unsqueeze(1) * cumulative[:, -1:]
        drawn = torch.searchsorted(cumulative, uniform, right=True).squeeze(1).clamp(max=cumulative.shape[1] - 1)
        healed[image, sample, self.targets[image, target]] = drawn.to(healed.device)
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


def accept_likelier(
    prior: PerformerPriorModel, codes: Tensor, healed: Tensor, resampled: Tensor, log_likelihood: Tensor
) -> Tensor:
    """Takes the redrawn codes of a region back in every sample where they do not make the codes there and about it likelier.

    A causal prior draws without a look at what is kept further on. Where it could not foresee the image, which way a part is
    turned for instance, what it draws is likely by itself and contradicts what follows. A region is redrawn codes that touch,
    corners included; each is judged with all others healed, by its own codes and the kept ones about it.
    Not part of the paper's method, which accepts everything.

    Args:
        prior: in eval mode.
        codes: (*grid) int64, the image's own.
        healed: (S, *grid) int64, its healed samples.
        resampled: (*grid) bool, the codes that were redrawn.
        log_likelihood: (*grid) of `codes`, natural logarithm.

    Returns:
        (S, *grid) int64, each region as in `healed` or as in `codes`.
    """
    gained = (prior.log_likelihood(healed.flatten(1)).view(healed.shape) - log_likelihood).cpu()
    touching = np.ones((3,) * resampled.dim())
    labels, _ = ndimage.label(resampled.cpu().numpy(), touching)
    refused = torch.zeros(healed.shape, dtype=torch.bool)
    for label, box in enumerate(ndimage.find_objects(labels), start=1):
        near = tuple(slice(max(side.start - ACCEPTANCE_REACH, 0), side.stop + ACCEPTANCE_REACH) for side in box)
        region = labels[near] == label
        about = ndimage.binary_dilation(region, touching, ACCEPTANCE_REACH) & (region | (labels[near] == 0))
        likelier = gained[:, *near][:, torch.from_numpy(about)].sum(1) > 0
        refused[:, *near] |= ~likelier.view(-1, *[1] * resampled.dim()) & torch.from_numpy(region)
    return torch.where(refused.to(codes.device), codes, healed)


@torch.no_grad()
def healed_log_likelihood(prior: PerformerPriorModel, codes: Tensor, contexts: Tensor) -> Tensor:
    """Log-probability of an image's codes, each given *healed* codes before it: log mean_s p(x_i | healed_s,<i).

    In its own context a normal code that follows a defect is unlikely too, because the prior never saw the like.

    Args:
        codes: (N,) int64, the image's own.
        contexts: (S, N) int64, healed samples.

    Returns:
        (N,) float32, natural logarithm.
    """
    log_probability = prior(contexts, compute_loss=False).logits.log_softmax(-1)  # (S, N, K)
    own = log_probability.gather(-1, codes.expand_as(contexts).unsqueeze(-1)).squeeze(-1)
    return own.logsumexp(0) - math.log(len(contexts))


def sample_codes(
    prior: PerformerPriorModel, num_samples: int, generator: torch.Generator, length: int | None = None
) -> Tensor:
    """Draws whole code sequences from the prior, (num_samples, N) int64: healing an image of which nothing is kept."""
    length = length or prior.config.max_position_embeddings
    codes = torch.zeros(1, length, dtype=torch.long, device=prior.device)
    return heal(prior, codes, torch.zeros_like(codes, dtype=torch.bool), num_samples, [generator])[0]


def _in_float64(values: Tensor) -> Tensor:
    """The values in float64, on the CPU if their device has none, as Metal (MPS)."""
    try:
        return values.double()
    except TypeError:  # of PyTorch, for Metal
        return values.cpu().double()
