"""B4: healing 5 % of 1024 tokens, 20 samples, against recomputing a pass per unlikely token.

Two ways of recomputing are derived from the prefix costs of B3, the second kinder: a pass over the whole sequence per
unlikely token and sample, which is what the public pipelines do, and a pass over its prefix only.
"""

import bench_generation
import flops
import numpy as np
import peers
import torch
from harness import MONAI, OURS, PERFORMER, Report, interleaved, summary
from torch import Tensor, nn

from iltm_anomaly.healing import heal
from iltm_anomaly.prior import PerformerPriorModel

LENGTH, SHARE, SAMPLES = 1024, 0.05, 20


def problem(length: int, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Random codes (1, N), and where to keep them: all but `count`."""
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(256, (1, length), generator=generator)
    keep = torch.ones_like(codes, dtype=torch.bool)
    keep[0, torch.randperm(length, generator=generator)[:count]] = False
    return codes, keep


@torch.no_grad()
def heal_by_recomputing(
    model: nn.Module, prior: PerformerPriorModel, codes: Tensor, keep: Tensor, samples: int
) -> Tensor:
    """What `heal` must equal: a full pass of performer-pytorch, given our features, per token and sample."""
    positions = (~keep[0]).nonzero().squeeze(1).tolist()
    uniforms = torch.rand(len(positions), samples, generator=torch.Generator().manual_seed(0))
    healed = codes.repeat(samples, 1)
    for position, uniform in zip(positions, uniforms, strict=True):
        inputs = torch.nn.functional.pad(healed[:, :position], (1, 0), value=prior.config.bos_token_id)
        with peers.same_features():
            logits = model(inputs)[:, -1, : prior.config.vocab_size]
        cumulative = logits.double().softmax(-1).cumsum(-1)
        healed[:, position] = torch.searchsorted(cumulative, uniform.double().unsqueeze(1)).squeeze(1)
    return healed


def run(report: Report) -> None:
    length, samples = (128, 4) if report.quick else (LENGTH, SAMPLES)
    prior = peers.make_prior(LENGTH)
    agrees = {PERFORMER: True, MONAI: True}
    if PERFORMER not in report.missing:
        codes, keep = problem(128, 6, 3)
        theirs = heal_by_recomputing(peers.performer_lm(prior), prior, codes, keep, 2)
        ours = heal(prior, codes, keep, 2, [torch.Generator().manual_seed(0)])[0]
        compared = (
            "share of healed codes that differ, 6 of 128 redrawn twice by passes of performer-pytorch, our features"
        )
        agrees[PERFORMER] = report.check("healing", compared, (ours != theirs).float().mean().item(), 0)
    codes, keep = problem(length, round(SHARE * length), 4)
    positions = (~keep[0]).nonzero().squeeze(1).numpy()
    case = f"heal {len(positions)} of {length} tokens, {samples} samples"
    heals = {OURS: lambda: heal(prior, codes, keep, samples, [torch.Generator().manual_seed(0)])}
    timings = interleaved(heals, 3, warm_up=report.quick)
    report.profile(case, heals[OURS])
    # read once: what precedes the first unlikely token; never read: what follows the last one
    tokens = positions[0] + samples * (positions[-1] - positions[0])
    report.add_times(case, timings, {OURS: flops.performer(prior.config, int(tokens))})
    if MONAI not in report.missing:
        value = peers.logit_difference(MONAI, peers.MODELS[MONAI](prior), prior, codes)
        agrees[MONAI] = report.check("healing", peers.COMPARED[MONAI], value, 1e-3)
    prefixes, floor = (1, 32, 64) if report.quick else (1, 64, 256, 512, 1024), report.times[-1]["bound_s"]
    for label in (PERFORMER, MONAI):
        if label in report.missing:
            continue
        for way, where in (("whole passes", np.full(len(positions), length)), ("prefixes", positions + 1)):
            total = samples * bench_generation.interpolated(label, 1, where, prefixes, 2)
            derived = f"{samples} samples x {len(positions)} passes at the costs of B3"
            report.add_times(case, {f"{label}, {way}": summary([total])}, derived=derived)
            note = f"at our FLOP bound it would be {total / floor:.0f}"
            value = total / timings[OURS]["median_s"]
            report.target(f"{case}: {label}, {way} / ours", value, 300, agrees[label], note=note)
    report.notes.append(
        "Every sample has a past of its own behind its first redrawn code, so that all that follows must be read once "
        "per sample, at least: a pass of ours per sample against one of theirs per unlikely token and sample. The ratio is "
        "bounded by the number of unlikely tokens times the ratio of the two passes, however the rest is done."
    )
