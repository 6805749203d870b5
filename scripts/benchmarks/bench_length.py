"""B5: long sequences: time per token, share of the matmul rate, and likelihoods beyond MONAI's context."""

from collections.abc import Callable
from types import SimpleNamespace

import flops
import peers
import torch
from harness import MONAI, OURS, Report, interleaved, summary, timed

from iltm_anomaly.prior import PerformerPriorModel

TRAINING_LAYERS = 4  # of 16: a training pass over 16384 tokens of all 16 would need 13 GB


def scoring(prior: PerformerPriorModel, batch: int, length: int) -> Callable[[], None]:
    codes = torch.randint(256, (batch, length), generator=torch.Generator().manual_seed(length))
    return lambda: prior.log_likelihood(codes)


def training(prior: PerformerPriorModel, length: int) -> Callable[[], None]:
    """Forward, loss and backward; without the optimiser, whose cost no token has a part in."""
    codes = torch.randint(256, (1, length), generator=torch.Generator().manual_seed(length))

    def call() -> None:
        prior.zero_grad()
        prior(codes).loss.backward()

    return call


def per_token(report: Report, short: int, long: int) -> None:
    kinds = {"scoring": (scoring, 16, 1), "training": (training, TRAINING_LAYERS, 3)}
    for kind, (make, layers, factor) in kinds.items():
        prior = peers.make_prior(long, layers)
        calls = {n: make(prior, 1, n) if kind == "scoring" else make(prior, n) for n in (short, long)}
        timings = interleaved(calls, 2 if report.quick else 3)
        for length, timing in timings.items():
            needed = {OURS: factor * flops.performer(prior.config, length)}
            report.add_times(f"{kind}, n = {length}, {layers} layers", {OURS: timing}, needed)
        value = timings[long]["median_s"] / long / (timings[short]["median_s"] / short)
        what = f"{kind}, {layers} layers: time per token at n = {long} / that at n = {short}"
        report.target(what, value, 1.15, at_least=False)


def share_of_rate(report: Report, batch: int, length: int) -> None:
    prior = peers.make_prior(length)
    case = f"scoring, n = {length}, batch {batch}"
    timings = interleaved({OURS: scoring(prior, batch, length)}, 3)
    report.add_times(case, timings, {OURS: flops.performer(prior.config, batch * length)})
    row = report.times[-1]
    share = row["flop"] / row["median_s"] / report.rate
    note = f"{row['flop'] / row['median_s'] / 1e9:.0f} of {report.rate / 1e9:.0f} GFLOP/s"
    report.target(f"{case}: share of the measured float32 matmul rate", share, 0.5, note=note)


def beyond_context(report: Report, context: int, length: int) -> None:
    """MONAI's `get_likelihood` recomputes a window of `context` tokens for every further token; ours reads on."""
    from monai.inferers import VQVAETransformerInferer

    prior, windowed = peers.make_prior(length), peers.make_prior(context)
    model = peers.MODELS[MONAI](windowed)
    case = f"likelihood of {length} tokens, MONAI's context {context}"
    codes = torch.randint(256, (1, length), generator=torch.Generator().manual_seed(5))
    ordered = SimpleNamespace(
        get_sequence_ordering=lambda: slice(None), get_revert_sequence_ordering=lambda: slice(None)
    )

    def likelihood(tokens: int) -> torch.Tensor:
        vqvae = SimpleNamespace(num_embeddings=256, index_quantize=lambda _: codes[:, :tokens].view(1, 1, tokens))
        return VQVAETransformerInferer().get_likelihood(torch.empty(1), vqvae, model, ordered)

    with peers.our_attention(model, windowed):
        theirs = likelihood(context).view(1, -1)
    value = (windowed.log_likelihood(codes[:, :context]) - theirs).abs().max().item()
    agrees = report.check(
        case, "log-likelihoods within the context, MONAI given our attention for softmax", value, 1e-3
    )
    timings = interleaved({OURS: scoring(prior, 1, length)}, 3)
    report.add_times(case, timings, {OURS: flops.performer(prior.config, length)})
    further = 4
    window = (min(timed(lambda: likelihood(context + further)) for _ in range(2))) / (further + 1)
    total = window * (length - context + 1)
    report.add_times(case, {MONAI: summary([total])}, derived=f"the cost of a window x {length - context + 1} windows")
    report.target(f"{case}: MONAI get_likelihood / ours", total / timings[OURS]["median_s"], 50, agrees)
    for head in (prior.head, model.to_logits):
        head.weight.data.mul_(1000)  # a prior that is very sure of something else
    minus_infinities = likelihood(context).isinf().sum().item()
    finite = prior.log_likelihood(codes).isfinite().all().item()
    report.notes.append(
        f"With logits a thousand times as large, {minus_infinities} of MONAI's {context} log-likelihoods are -inf (it takes "
        f"the logarithm of a softmax); all of ours are {'finite' if finite else 'NOT finite'}."
    )


def run(report: Report) -> None:
    per_token(report, *((256, 1024) if report.quick else (1024, 16384)))
    share_of_rate(report, *((1, 1024) if report.quick else (4, 4096)))
    if MONAI not in report.missing:
        beyond_context(report, *((128, 256) if report.quick else (1024, 2048)))
    report.notes.append(
        f"Training is measured with {TRAINING_LAYERS} of 16 layers, which all cost the same, for the sake of memory."
    )
