"""Healing, against enumeration and against a loop that recomputes every prefix."""

import itertools

import pytest
import torch
from scipy import stats
from tiny_models import some_codes, tiny_pipeline, tiny_prior

from iltm_anomaly.healing import accept_likelier, heal, sample_codes

SAMPLES = 4


def generators(count, seed=100):
    return [torch.Generator().manual_seed(seed + i) for i in range(count)]


def some_keep(codes, kept=0.8, seed=3):
    """A mask per image, among them: all kept, none kept, only the first given up, only the last."""
    keep = torch.rand(codes.shape, generator=torch.Generator().manual_seed(seed)) < kept
    keep[0], keep[1] = True, False
    keep[2] = keep[3] = True
    keep[2, 0] = keep[3, -1] = False
    return keep


@torch.no_grad()
def naive_heal(prior, codes, keep, num_samples, generators):
    """One sequence and one code at a time, the whole prefix scored anew for each, from the same uniform numbers."""
    healed = codes.unsqueeze(1).repeat(1, num_samples, 1)
    for image, generator in enumerate(generators):
        unlikely = (~keep[image]).nonzero().flatten().tolist()
        uniforms = torch.rand(len(unlikely), num_samples, generator=generator)
        for sample in range(num_samples):
            for number, t in enumerate(unlikely):
                logits = prior(healed[image, sample, : t + 1].unsqueeze(0), compute_loss=False).logits[0, t]
                cumulative = logits.double().softmax(-1).cumsum(-1)
                below = cumulative < uniforms[number, sample].double() * cumulative[-1]
                healed[image, sample, t] = int(below.sum())
    return healed


def test_keeping_all_returns_the_codes_and_costs_nothing():
    model = tiny_prior()
    codes = some_codes(model)
    model.register_forward_pre_hook(lambda *_: pytest.fail("scored"))
    drawn = generators(3)
    before = [generator.get_state() for generator in drawn]
    healed = heal(model, codes, torch.ones_like(codes, dtype=torch.bool), SAMPLES, drawn)
    assert torch.equal(healed, codes.unsqueeze(1).expand(-1, SAMPLES, -1))
    assert all(torch.equal(state, g.get_state()) for state, g in zip(before, drawn, strict=True))


@pytest.mark.parametrize("masking", ["token", "value"])
@pytest.mark.parametrize("kept", [0.3, 0.9])
def test_equals_recomputing_every_prefix(masking, kept):
    model = tiny_prior(masking=masking)
    codes = some_codes(model, batch=7)
    keep = some_keep(codes, kept)
    healed = heal(model, codes, keep, SAMPLES, generators(7))
    assert torch.equal(healed, naive_heal(model, codes, keep, SAMPLES, generators(7)))
    assert healed.dtype == torch.int64 and healed.shape == (7, SAMPLES, 42)


def test_kept_codes_are_untouched_and_others_valid():
    model = tiny_prior()
    codes = some_codes(model, batch=6)
    keep = some_keep(codes)
    before = codes.clone()
    healed = heal(model, codes, keep, SAMPLES, generators(6))
    assert torch.equal(codes, before), "the input must stay"
    kept = keep.unsqueeze(1).expand_as(healed)
    assert torch.equal(healed[kept], codes.unsqueeze(1).expand_as(healed)[kept])
    assert healed.min() >= 0 and healed.max() < model.config.vocab_size


def test_samples_and_images_differ():
    model = tiny_prior()
    codes = some_codes(model, batch=1).repeat(2, 1)
    keep = torch.arange(42).expand(2, -1) < 20
    healed = heal(model, codes, keep, SAMPLES, generators(2)).flatten(0, 1)
    assert healed.unique(dim=0).shape[0] == 2 * SAMPLES


def test_an_image_does_not_depend_on_its_batch():
    model = tiny_prior()
    codes = some_codes(model, batch=6)
    keep = some_keep(codes)
    together = heal(model, codes, keep, SAMPLES, generators(6))
    for i in range(6):
        alone = heal(model, codes[i : i + 1], keep[i : i + 1], SAMPLES, generators(6)[i : i + 1])
        assert torch.equal(alone[0], together[i])
    order = [5, 1, 3, 0, 2, 4]
    mixed = heal(model, codes[order], keep[order], SAMPLES, [generators(6)[i] for i in order])
    assert torch.equal(mixed, together[order])


def test_generators_advance_for_their_own_image_only():
    model = tiny_prior()
    codes = some_codes(model, batch=6)
    keep = some_keep(codes)
    drawn, expected = generators(6), generators(6)
    torch.manual_seed(0)
    global_state = torch.get_rng_state()
    heal(model, codes, keep, SAMPLES, drawn)
    for i, generator in enumerate(expected):
        if count := int((~keep[i]).sum()):
            torch.rand(count, SAMPLES, generator=generator)
        assert torch.equal(generator.get_state(), drawn[i].get_state())
    assert torch.equal(torch.get_rng_state(), global_state)


def test_no_samples():
    model = tiny_prior()
    codes = some_codes(model)
    assert heal(model, codes, torch.zeros_like(codes, dtype=torch.bool), 0, generators(3)).shape == (3, 0, 42)


def test_arguments_that_do_not_fit():
    model = tiny_prior()
    codes = some_codes(model)
    with pytest.raises(ValueError, match="keep must have the shape"):
        heal(model, codes, torch.ones(3, 41, dtype=torch.bool), 1, generators(3))
    with pytest.raises(ValueError, match="one generator per image: got 2 for 3"):
        heal(model, codes, torch.ones_like(codes, dtype=torch.bool), 1, generators(2))


# what of it is taken

GRID = (12, 12)


class CodesAndWhatFollows:
    """A prior of a grid: code k costs k nats; 20 more right after a 0, and 20 at the end of a first row that starts with 1."""

    @staticmethod
    def log_likelihood(codes):
        cost = codes.clone()
        cost[:, 1:] += 20 * (codes[:, :-1] == 0)
        cost[:, GRID[1] - 1] += 20 * (codes[:, 0] == 1)
        return -cost.float()


def test_a_region_is_healed_where_that_makes_codes_likelier():
    """A bent region, and a second one two tokens away; in every sample other codes."""
    bent, near = [(4, 1), (5, 1), (5, 2)], [(4, 4)]
    samples = [  # codes of the two regions, and which are accepted
        ([4, 4, 4], [4], "both"),
        ([4, 4, 4], [9], "bent"),
        ([4, 4, 4], [6], "bent"),  # a loss that the gain next to it would make good
        ([9, 9, 9], [4], "near"),
        ([1, 4, 8], [5], "bent"),  # as a whole
        ([4, 5, 6], [5], ""),  # no gain
        ([5, 5, 0], [5], ""),  # likelier itself, but it contradicts what follows
    ]
    prior, codes = CodesAndWhatFollows(), torch.full(GRID, 5)
    resampled = torch.zeros(GRID, dtype=torch.bool)
    healed, expected = codes.repeat(len(samples), 1, 1), codes.repeat(len(samples), 1, 1)
    for name, region in (("bent", bent), ("near", near)):
        for position, token in enumerate(region):
            resampled[token] = True
            for sample, (*values, accepted) in enumerate(samples):
                healed[sample, *token] = values[name == "near"][position]
                if accepted in (name, "both"):
                    expected[sample, *token] = healed[sample, *token]
    own = prior.log_likelihood(codes.view(1, -1)).view(GRID)
    assert torch.equal(accept_likelier(prior, codes, healed, resampled, own), expected)


@pytest.mark.parametrize("code, accepted", [(4, True), (1, True), (0, False)])
def test_what_is_far_from_a_region_does_not_count(code, accepted):
    """A diagonal, the bounding box of which is the grid: a code 1 at its start costs something in the far corner only."""
    prior, codes = CodesAndWhatFollows(), torch.full(GRID, 5)
    resampled = torch.eye(*GRID, dtype=torch.bool)
    healed = codes.clone()
    healed[0, 0] = code
    own = prior.log_likelihood(codes.view(1, -1)).view(GRID)
    result = accept_likelier(prior, codes, healed[None], resampled, own)[0]
    assert torch.equal(result, healed if accepted else codes)


@pytest.mark.parametrize("grid_shape", [(6, 7), (3, 4, 5)])
def test_a_region_is_healed_as_a_whole(grid_shape):
    model = tiny_prior(grid_shape=grid_shape, gain=1.5)
    codes = sample_codes(model, 1, torch.Generator().manual_seed(2))  # not unlikely, as `some_codes` are
    keep = torch.ones_like(codes, dtype=torch.bool)
    keep[0, :4] = keep[0, -4:] = False  # two regions
    healed = heal(model, codes, keep, 20, generators(1))[0].unflatten(1, grid_shape)
    own, resampled = codes[0].view(grid_shape), ~keep[0].view(grid_shape)
    accepted = accept_likelier(model, own, healed, resampled, model.log_likelihood(codes)[0].view(grid_shape))
    accepted, healed = accepted.flatten(1), healed.flatten(1)
    for region in (slice(4), slice(-4, None)):
        taken = (accepted[:, region] == healed[:, region]).all(1)
        refused = (accepted[:, region] == codes[:, region]).all(1)
        assert (taken | refused).all() and taken.any() and refused.any()
    assert torch.equal(accepted[:, 4:-4], codes[:, 4:-4].expand(20, -1))


# what it draws from


def exact_distribution(model, codes, keep):
    """Probability of every way to fill in the positions given up, in order; kept codes are given, not scored."""
    unlikely = (~keep).nonzero().flatten().tolist()
    probabilities = {}
    for values in itertools.product(range(model.config.vocab_size), repeat=len(unlikely)):
        filled = codes.clone()
        filled[unlikely] = torch.tensor(values)
        scores = model.log_likelihood(filled.unsqueeze(0))[0]
        probabilities[values] = scores[unlikely].double().sum().exp().item()
    assert sum(probabilities.values()) == pytest.approx(1, abs=1e-5)
    return unlikely, probabilities


@pytest.mark.parametrize("given_up", [(0, 1, 2), (1,), (0, 2), (1, 2)])
def test_draws_follow_the_exact_distribution(given_up):
    """All given up is ancestral sampling from p(x1) p(x2 | x1) p(x3 | x1, x2)."""
    model = tiny_prior(vocab_size=3, grid_shape=(1, 3), gain=1.5)
    codes = torch.tensor([[2, 0, 1]])
    keep = torch.ones(1, 3, dtype=torch.bool)
    keep[0, list(given_up)] = False
    unlikely, probabilities = exact_distribution(model, codes[0], keep[0])
    draws = 4000
    healed = heal(model, codes, keep, draws, generators(1))[0, :, unlikely].tolist()
    observed = [healed.count(list(values)) for values in probabilities]
    expected = [draws * p for p in probabilities.values()]
    assert max(probabilities.values()) > 2 * min(probabilities.values()), "an even distribution would test little"
    assert stats.chisquare(observed, expected, sum_check=False).pvalue > 1e-3


def test_whole_sequences():
    model = tiny_prior()
    drawn = sample_codes(model, 5, torch.Generator().manual_seed(1))
    assert drawn.shape == (5, 42) and drawn.unique(dim=0).shape[0] == 5
    keep = torch.zeros(1, 42, dtype=torch.bool)
    assert torch.equal(drawn, heal(model, some_codes(model, 1), keep, 5, generators(1, seed=1))[0])
    assert sample_codes(model, 5, torch.Generator().manual_seed(1), length=9).shape == (5, 9)


def test_a_device_without_float64_heals_by_the_same_draws(monkeypatch):
    """As Metal (MPS) does, every tensor refuses to become float64, unless it was brought to the CPU before."""
    pipeline = tiny_pipeline(token_threshold=0.9)
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    expected = pipeline.score_batch(images, pipeline.settings, 0)
    assert expected[3].any(), "something is drawn"
    at_home, double, cpu, moved = [], torch.Tensor.double, torch.Tensor.cpu, []

    def to_cpu(values, *arguments):
        at_home.append(cpu(values, *arguments).clone())
        return at_home[-1]

    def to_float64(values):
        if not any(one is values for one in at_home):
            raise TypeError("Cannot convert a MPS Tensor to float64 dtype")
        moved.append(values)
        return double(values)

    monkeypatch.setattr(torch.Tensor, "cpu", to_cpu)
    monkeypatch.setattr(torch.Tensor, "double", to_float64)
    found = pipeline.score_batch(images, pipeline.settings, 0)
    assert moved and torch.equal(expected[0][0], found[0][0]) and torch.equal(expected[3], found[3])
