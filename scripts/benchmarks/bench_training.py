"""B2: a training step of the prior (16 layers, 8 heads of 32, width 256), batch 1: forward, loss, backward, AdamW."""

from collections.abc import Callable

import flops
import peers
import torch
from harness import MONAI, OURS, PERFORMER, Report, in_fresh_process, interleaved, ratio
from torch import nn
from torch.nn import functional as F

LONG_LAYERS = 4  # of 16, at n = 8192: MONAI keeps an n x n mask per layer, and all figures grow with the layers alike


def train_step(model: nn.Module, codes: torch.Tensor, bos_token_id: int) -> Callable[[], None]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    inputs = F.pad(codes[:, :-1], (1, 0), value=bos_token_id)

    def call() -> None:
        optimizer.zero_grad()
        if hasattr(model, "log_likelihood"):
            model(codes).loss.backward()
        else:
            F.cross_entropy(model(inputs).flatten(0, 1), codes.flatten()).backward()
        optimizer.step()

    return call


def contender(label: str, length: int, layers: int) -> tuple[nn.Module, Callable[[int], Callable[[], None]]]:
    prior = peers.make_prior(length, layers)
    model = prior if label == OURS else peers.MODELS[label](prior)
    codes = torch.randint(256, (1, length), generator=torch.Generator().manual_seed(1))
    return model.train(), lambda n: train_step(model, codes[:, :n], prior.config.bos_token_id)


def memory(label: str, size: int) -> Callable[[], None]:
    # The first step, on a few tokens, makes gradients and the optimiser's state: what is counted is what a step adds.
    _, step = contender(label, size, 16 if size == 1024 else LONG_LAYERS)
    step(16)()
    return step(size)


def run(report: Report) -> None:
    for length, layers in ((256, 4),) if report.quick else ((1024, 16), (8192, LONG_LAYERS)):
        case = f"train step, n = {length}, {layers} layers"
        # At 8192 tokens performer-pytorch's running sums of every token would need some 8 GB.
        labels = [OURS, *(label for label in (PERFORMER, MONAI) if label not in report.missing)]
        labels = [label for label in labels if length < 8192 or label != PERFORMER]
        prior, agrees = peers.make_prior(length, layers), {}
        codes = torch.randint(256, (1, min(length, 1024)), generator=torch.Generator().manual_seed(1))
        steps = {}
        for label in labels:
            model, make = contender(label, length, layers)
            steps[label] = make(length)
            if label != OURS:
                value = peers.logit_difference(label, model, prior, codes)
                agrees[label] = report.check(case, peers.COMPARED[label], value, 1e-3)
        timings = interleaved(steps, 3 if length < 8192 else 2)
        linear, softmax = flops.performer(prior.config, length), flops.transformer(prior.config, length)
        report.add_times(case, timings, {OURS: 3 * linear, PERFORMER: 3 * linear, MONAI: 3 * softmax})
        report.profile(case, steps[OURS])
        del steps, model, make
        fresh = {label: in_fresh_process("B2", label, length) for label in labels}
        peaks = {label: measured["peak_mb"] for label, measured in fresh.items()}
        for label in labels:
            report.add_peak(case, label, peaks[label])
        if PERFORMER in agrees:
            what = f"{case}: performer-pytorch / ours"
            floor = 3 * flops.dense(prior.config, length) / report.rate
            at_most = timings[PERFORMER]["median_s"] / floor
            note = f"the dense layers, which both have, need {floor:.2g} s: without any attention it would be {at_most:.2g}"
            report.target(f"{what}, time", ratio(timings, PERFORMER), 6, agrees[PERFORMER], note=note)
            first = {label: fresh[label]["first_s"] for label in (PERFORMER, OURS)}
            report.notes.append(
                "These are steps of a process that has its memory already. The first long one, for which the system has to "
                f"clear and hand it out, takes {first[PERFORMER]:.2g} s with performer-pytorch and {first[OURS]:.2g} s with "
                f"ours, a ratio of {first[PERFORMER] / first[OURS]:.1f}."
            )
            report.target(f"{what}, added peak memory", peaks[PERFORMER] / peaks[OURS], 6, agrees[PERFORMER])
        if MONAI in agrees:
            limit = 1 if length < 8192 else 4
            note = f"at our FLOP bound it would be {timings[MONAI]['median_s'] * report.rate / (3 * linear):.2g}"
            report.target(
                f"{case}: MONAI with SDPA / ours, time", ratio(timings, MONAI), limit, agrees[MONAI], note=note
            )
    report.notes.append(
        "MONAI's model is softmax attention by design: compared are the same weights with our attention in its place."
    )
