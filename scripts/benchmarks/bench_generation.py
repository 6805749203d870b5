"""B3: generating 1024 tokens (16 layers, 8 heads of 32, width 256) from begin of sequence, batch 1 and 32.

The peers recompute the whole prefix for every token: some 500 s a sample. Their own sampling loop is therefore asked for one
token behind prefixes of a few lengths, and the total is the sum over all lengths of the straight lines between these.
"""

import functools
from collections.abc import Callable
from types import SimpleNamespace

import flops
import numpy as np
import peers
import torch
from harness import MONAI, OURS, PERFORMER, Report, interleaved, ratio, summary, timed
from torch import Tensor, nn
from torch.nn import functional as F

from iltm_anomaly.healing import sample_codes
from iltm_anomaly.prior import PerformerPriorModel

LENGTH = 1024
LINEAR = "ours, linear layers alone"


def performer_next(model: nn.Module, tokens: Tensor) -> Tensor:
    """One token of performer-pytorch's wrapper, all of the vocabulary allowed."""
    from performer_pytorch import AutoregressiveWrapper

    return AutoregressiveWrapper(model).generate(tokens, 1, filter_thres=0.0)


def monai_next(model: nn.Module, tokens: Tensor) -> Tensor:
    """One token of MONAI's `sample`; a stand-in for the VQ-VAE returns the codes undecoded."""
    from monai.inferers import VQVAETransformerInferer

    codes_only = SimpleNamespace(num_embeddings=model.num_tokens - 2, decode_samples=lambda codes: codes)
    last = SimpleNamespace(get_revert_sequence_ordering=lambda: [-1])
    return VQVAETransformerInferer().sample((1, 1), tokens, codes_only, model, last, verbose=False)


NEXT: dict[str, Callable[[nn.Module, Tensor], Tensor]] = {PERFORMER: performer_next, MONAI: monai_next}


@functools.cache
def prefix_costs(label: str, batch: int, prefixes: tuple[int, ...], runs: int) -> tuple[float, ...]:
    """CPU seconds of one more token behind each prefix, minimum of the runs: in the peers' favour."""
    prior = peers.make_prior(LENGTH)
    model = peers.MODELS[label](prior)
    seconds = []
    for prefix in prefixes:
        tokens = torch.full((batch, prefix), prior.config.bos_token_id)
        seconds.append(min(timed(lambda tokens=tokens: NEXT[label](model, tokens)) for _ in range(runs)))
        print(f"  {label}, batch {batch}, prefix {prefix}: {seconds[-1]:.3f} s", flush=True)
    return tuple(seconds)


def interpolated(label: str, batch: int, positions: np.ndarray, prefixes: tuple[int, ...], runs: int) -> float:
    """Summed cost of one more token behind each of these prefixes."""
    return float(np.interp(positions, prefixes, prefix_costs(label, batch, prefixes, runs)).sum())


@torch.no_grad()
def step_difference(prior: PerformerPriorModel, codes: Tensor) -> float:
    """Largest difference between log-probabilities of `step`, code by code, and of performer-pytorch in parallel."""
    model = peers.performer_lm(prior)
    inputs = F.pad(codes[:, :-1], (1, 0), value=prior.config.bos_token_id)
    with peers.same_features():
        theirs = model(inputs)[..., : prior.config.vocab_size].log_softmax(-1)
    state = prior.init_state(len(codes))
    worst = 0.0
    for position in range(codes.shape[1]):
        worst = max(worst, (state.logits.log_softmax(-1) - theirs[:, position]).abs().max().item())
        if position + 1 < codes.shape[1]:
            _, state = prior.step(codes[:, position], state)
    return worst


def check_outputs(report: Report, prior: PerformerPriorModel, length: int) -> dict[str, bool]:
    codes = torch.randint(256, (1, length), generator=torch.Generator().manual_seed(2))
    agrees = {}
    if PERFORMER not in report.missing:
        compared = f"log-probabilities of every step over {length} codes, performer-pytorch given our features"
        agrees[PERFORMER] = report.check("generation", compared, step_difference(prior, codes), 1e-3)
    if MONAI not in report.missing:
        value = peers.logit_difference(MONAI, peers.MODELS[MONAI](prior), prior, codes)
        agrees[MONAI] = report.check("generation", peers.COMPARED[MONAI], value, 1e-3)
    return agrees


def linear_layers(prior: PerformerPriorModel, batch: int, count: int) -> Callable[[], None]:
    """The linear layers of `count` steps and nothing else, as our steps have them: every weight is read once per step."""
    weights = [layer.step_weights() for layer in prior.layers]
    heads = prior.config.num_attention_heads * prior.config.head_dim
    hidden, attended = torch.randn(batch, prior.config.hidden_size), torch.randn(batch, heads)

    @torch.inference_mode()
    def call() -> None:
        for _ in range(count):
            for qkv, out, widen, widen_bias, narrow, narrow_bias in weights:
                F.linear(hidden, qkv)
                F.linear(attended, out)
                F.linear(F.linear(hidden, widen, widen_bias), narrow, narrow_bias)
            prior.head(hidden)

    return call


def run(report: Report) -> None:
    length = 64 if report.quick else LENGTH
    prior = peers.make_prior(LENGTH)
    agrees = check_outputs(report, prior, 64 if report.quick else 256)
    prefixes = (1, 32, 64) if report.quick else (1, 64, 256, 512, 1024)
    for batch, limit in ((1, 100), (32, 500)):
        case = f"generate {length} tokens, batch {batch}"
        generator = torch.Generator().manual_seed(0)
        sample = functools.partial(sample_codes, prior, batch, generator, length)
        contenders = {OURS: sample, LINEAR: linear_layers(prior, batch, length)}
        timings = interleaved(contenders, 3 if batch == 1 else 2, warm_up=batch == 1)
        needed = {
            OURS: flops.performer(prior.config, batch * length),
            LINEAR: flops.dense(prior.config, batch * length),
        }
        report.add_times(case, timings, needed)
        report.profile(f"{case}, the first 32", functools.partial(sample_codes, prior, batch, generator, 32))
        for label in agrees:
            # one run at batch 32: a prefix of 1024 takes half a minute
            total = interpolated(label, batch, np.arange(1, length + 1), prefixes, 2 if batch == 1 else 1)
            timings[label] = summary([total])
            derived = f"its cost behind prefixes of {', '.join(map(str, prefixes))} tokens, summed over all"
            report.add_times(case, {label: timings[label]}, derived=derived)
            at_most = timings[label]["median_s"] / timings[LINEAR]["median_s"]
            note = (
                f"{timings[label]['min_s'] / batch:.3g} s against {timings[OURS]['median_s'] / batch:.3g} s a sample; if our "
                f"linear layers were all there is to do, it would be {at_most:.0f}"
            )
            report.target(f"{case}: {label} / ours", ratio(timings, label), limit, agrees[label], note=note)
    report.notes.append(
        "Ours is measured in full. The floor at batch 1 is reading all weights, 51 MB, once per token: more than this machine's "
        "cache. At batch 32 it is arithmetic, and reading and writing the running sums, 60 MB."
    )
