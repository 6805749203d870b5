"""B6: the full map of one image, 256 x 256 x 3, from 20 healed code maps x 20 dropout passes.

Against the straightforward way: all 400 reconstructions decoded from their codes (measured on a few, scaled), and scipy's
`gaussian_kde` for every pixel and channel (measured on a crop, scaled). VQ-VAE of channels (96, 96, 192).
"""

from collections.abc import Callable
from types import SimpleNamespace

import flops
import numpy as np
import torch
from harness import OURS, Report, interleaved, peak_in_fresh_process, summary, timed
from scipy import stats
from torch import Tensor

from iltm_anomaly import scoring
from iltm_anomaly.tokenizers.vqvae import VQVAEConfig, VQVAEModel

FLOOR = 0.01
ONE_BY_ONE, PER_PIXEL = "decoding every reconstruction", "scipy gaussian_kde per pixel"


def setting(quick: bool) -> SimpleNamespace:
    """The model, healed codes (S, *grid) that differ in 5 % of the tokens, and the image (C, H, W)."""
    generator, side, samples = torch.Generator().manual_seed(0), 64 if quick else 256, 4 if quick else 20
    torch.manual_seed(0)
    vqvae = VQVAEModel(VQVAEConfig(channels=(96, 96, 192))).eval()
    vqvae.decoder_head.bias.data.fill_(0.5)  # values between 0 and 1, as those of a trained model are
    grid = vqvae.grid_shape((side, side))
    codes = torch.randint(256, grid, generator=generator).repeat(samples, 1, 1)
    redrawn = torch.rand(grid, generator=generator) < 0.05
    codes[:, redrawn] = torch.randint(256, (samples, int(redrawn.sum())), generator=generator)
    image = torch.rand(3, side, side, generator=generator)
    return SimpleNamespace(vqvae=vqvae, codes=codes, image=image, samples=samples, passes=samples)


def strips(given: SimpleNamespace) -> list[tuple[slice, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return list(scoring.reconstruction_strips(given.vqvae, given.codes, given.passes, generator))


@torch.no_grad()
def decode_one(given: SimpleNamespace, sample: int, mask: Tensor) -> Tensor:
    """One reconstruction as the model's `decode` makes it, with a dropout mask (F,) that is given."""
    features = given.vqvae.decode_trunk(given.codes[sample : sample + 1]) * mask[:, None, None]
    return given.vqvae.decoder_head(features)[0].clamp(0, 1)


def check_decoding(report: Report, given: SimpleNamespace, reconstructions: Tensor) -> bool:
    """The streamed reconstructions (S * D, C, H, W) against single ones, a few of them."""
    config, generator = given.vqvae.config, torch.Generator().manual_seed(1)
    masks = scoring.draw_channel_masks(given.samples, given.passes, config.channels[0], config.dropout, generator)
    worst = 0.0
    for sample in (0, given.samples - 1):
        for dropout_pass in (0, given.passes - 1):
            single = decode_one(given, sample, masks[sample, dropout_pass])
            worst = max(worst, (reconstructions[sample * given.passes + dropout_pass] - single).abs().max().item())
    return report.check("decoding", "4 reconstructions against single ones with the same dropout masks", worst, 1e-5)


def scipy_densities(reconstructions: Tensor, image: Tensor, crop: int) -> tuple[np.ndarray, float]:
    """-log density (C, crop, crop) by scipy at our bandwidths, and CPU seconds."""
    cropped = reconstructions[:, :, :crop, :crop].double()
    values = cropped.numpy()
    widths = scoring.bandwidth(cropped.var(0, correction=0), len(cropped), FLOOR).numpy()
    factors = widths / values.std(0, ddof=1)  # scipy's factor is relative to the deviation
    observed, out = image[:, :crop, :crop].double().numpy(), np.empty(widths.shape)

    def call() -> None:
        for at in np.ndindex(out.shape):
            out[at] = -stats.gaussian_kde(values[:, *at], factors[at]).logpdf(observed[at])[0]

    return out, timed(call)


def check_density(report: Report, given: SimpleNamespace, reconstructions: Tensor, crop: int) -> tuple[bool, float]:
    # a small part, but of every channel
    theirs, seconds = scipy_densities(reconstructions, given.image, crop)
    part = reconstructions[:, :, :crop, :crop]
    ours = scoring.negative_log_density(part, given.image[:, :crop, :crop], FLOOR, relative=False).double()
    worst = ((ours - torch.from_numpy(theirs)).abs() / (1 + torch.from_numpy(theirs).abs())).max().item()
    return report.check(
        "density", f"-log density on a {crop} x {crop} crop against scipy, relative", worst, 1e-4
    ), seconds


def run(report: Report) -> None:
    given = setting(report.quick)
    side, config, crop = given.image.shape[-1], given.vqvae.config, 4 if report.quick else 8
    streamed = strips(given)
    reconstructions = torch.cat([part for _, part in streamed], 2)
    # the observed image: a reconstruction plus noise, so that densities are those of a plausible image
    noise = torch.randn(given.image.shape, generator=torch.Generator().manual_seed(2))
    given.image = (reconstructions.mean(0) + 0.02 * noise).clamp(0, 1)
    decoded = check_decoding(report, given, reconstructions)
    agrees, kde_seconds = check_density(report, given, reconstructions, crop)

    def densities() -> None:
        for rows, part in streamed:
            scoring.negative_log_density(part, given.image[:, rows], FLOOR)

    ones = torch.ones(config.channels[0])
    single: Callable[[], object] = lambda: [decode_one(given, i, ones) for i in range(2)]  # noqa: E731
    exponents = [-torch.rand_like(part).flatten() for _, part in streamed]
    powers = torch.empty_like(exponents[0])

    def exponentials() -> None:
        for part in exponents:
            torch.exp2(part, out=powers[: len(part)])

    calls = {"exponentials": exponentials, "strips": lambda: strips(given), "single": single, "densities": densities}
    timings = interleaved(calls, 3)
    count, cells = given.samples * given.passes, given.codes[0].numel()
    trunk, head = flops.decoder_trunk(config, cells), flops.decoder_head(config, cells)

    case = f"decode {given.samples} x {given.passes} reconstructions, {side} x {side}"
    report.add_times(case, {OURS: timings["strips"]}, {OURS: given.samples * trunk + count * head})
    every = {key: value * count / 2 if key != "runs" else value for key, value in timings["single"].items()}
    needed = {ONE_BY_ONE: count * (trunk + head)}
    report.add_times(case, {ONE_BY_ONE: every}, needed, derived=f"two of them x {count // 2}")
    note = f"by FLOPs it would be {count * (trunk + head) / (given.samples * trunk + count * head):.1f}"
    report.target(
        f"{case}: {ONE_BY_ONE} / ours", every["median_s"] / timings["strips"]["median_s"], 15, decoded, note=note
    )

    case = f"density of {side} x {side} x 3 values under {count} reconstructions"
    report.add_times(
        case, {OURS: timings["densities"], "one exponential per term and nothing else": timings["exponentials"]}
    )
    report.profile(case, densities)
    per_pixel = summary([kde_seconds * (side / crop) ** 2])
    report.add_times(case, {PER_PIXEL: per_pixel}, derived=f"a crop of {crop} x {crop} x {(side // crop) ** 2}")
    value = per_pixel["median_s"] / timings["densities"]["median_s"]
    at_most = per_pixel["median_s"] / timings["exponentials"]["median_s"]
    note = f"if the exponentials were all there is to do, it would be {at_most:.0f}; the rest is ten more passes over all terms"
    report.target(f"{case}: {PER_PIXEL} / ours", value, 1000, agrees, note=note)
    whole_map(report, given)


def mapping(given: SimpleNamespace) -> Callable[[], object]:
    """Decoding and densities together, as the pipeline calls them."""
    generator = torch.Generator().manual_seed(1)
    return lambda: scoring.density_map(given.vqvae, given.codes, given.image, given.passes, generator, FLOOR)


def memory(contender: str, size: int) -> Callable[[], object]:
    mapping(setting(quick=True))()
    return mapping(setting(quick=size < 256))


def whole_map(report: Report, given: SimpleNamespace) -> None:
    """CPU time of the map, and the memory it adds in a fresh process."""
    case, side = "map of one image, streamed", given.image.shape[-1]
    report.add_times(case, {OURS: summary([timed(mapping(given)) for _ in range(2)])})
    report.add_peak(case, OURS, peak_in_fresh_process("B6", OURS, side))
    tensor = given.samples * given.passes * given.image.numel() * 4 / 2**20
    report.notes.append(f"All reconstructions together would be {tensor:.0f} MB; the map never holds them.")
