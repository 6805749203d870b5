"""The EMA codebook."""

import itertools

import pytest
import torch

from iltm_anomaly.tokenizers.quantizer import EMAQuantizer, perplexity


def quantizer(num_codes=6, dim=3, decay=0.9, epsilon=1e-5, dead_code_threshold=0.0, seed=0):
    """A quantiser as a fresh model has it: codes from a unit normal, counts of zero."""
    module = EMAQuantizer(num_codes, dim, decay, epsilon, dead_code_threshold)
    module.codebook.normal_(generator=torch.Generator().manual_seed(seed))
    module.code_sum.copy_(module.codebook)
    module.code_count.zero_()
    return module


def vectors(count=40, dim=3, seed=1):
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(seed))


def copy_of(module):
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def test_assigns_the_nearest_code():
    module, data = quantizer(), vectors()
    nearest = torch.cdist(data.double(), module.codebook.double()).argmin(1)
    quantized, codes, counts = module.eval()(data)
    assert torch.equal(codes, nearest) and torch.equal(module.assign(data), nearest)
    assert torch.equal(quantized, module.codebook[nearest])
    assert torch.equal(counts, nearest.bincount(minlength=6).float())


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.99])
def test_update_is_moving_averages_with_laplace_smoothing(decay):
    """N <- d N + (1 - d) n; m <- d m + (1 - d) sum z; code = m / W, W = (N + e) / (sum N + K e) sum N."""
    epsilon = 0.01  # large enough to show
    module = quantizer(decay=decay, epsilon=epsilon).train()
    count, total, codebook = (x.clone().double() for x in (module.code_count, module.code_sum, module.codebook))
    for step in range(4):
        data = vectors(seed=step)
        codes = torch.cdist(data.double(), codebook).argmin(1)
        quantized, used, _ = module(data)
        assert torch.equal(used, codes)
        torch.testing.assert_close(
            quantized, codebook[codes].float(), msg="quantised with the codes before the update"
        )
        for k in range(len(codebook)):
            members = data.double()[codes == k]
            count[k] = decay * count[k] + (1 - decay) * len(members)
            total[k] = decay * total[k] + (1 - decay) * members.sum(0)
        smoothed = (count + epsilon) / (count.sum() + len(count) * epsilon) * count.sum()
        codebook = total / smoothed[:, None]
        torch.testing.assert_close(module.code_count.double(), count, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(module.code_sum.double(), total, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(module.codebook.double(), codebook, rtol=1e-4, atol=1e-4)


def test_code_moves_to_the_mean_of_its_vectors_geometrically():
    decay = 0.8
    module = quantizer(num_codes=2, decay=decay, epsilon=1e-12).train()
    module.codebook.copy_(torch.tensor([[0.0, 0.0, 0.0], [100.0, 0.0, 0.0]]))
    module.code_count.fill_(10)
    module.code_sum.copy_(10 * module.codebook)
    data = vectors(10) + torch.tensor([3.0, -2.0, 1.0])
    distances = [(module.codebook[0] - data.mean(0)).norm().item()]
    for _ in range(12):
        assert not module(data)[1].any()
        distances.append((module.codebook[0] - data.mean(0)).norm().item())
    ratios = [after / before for before, after in itertools.pairwise(distances)]
    assert ratios == pytest.approx([decay] * 12, rel=1e-3)


def test_evaluation_never_moves_it():
    module = quantizer(dead_code_threshold=0.5).eval()
    before = copy_of(module)
    module(vectors())
    assert all(torch.equal(before[name], tensor) for name, tensor in module.state_dict().items())
    module.train()(vectors())
    assert not torch.equal(before["codebook"], module.codebook)


def test_codebook_has_no_gradient():
    module, data = quantizer().train(), vectors().requires_grad_()
    assert not list(module.parameters())
    quantized, _, counts = module(data)
    assert not any(x.requires_grad for x in (quantized, counts, *module.buffers()))


def test_dead_codes_move_onto_the_batch():
    data = vectors()
    for threshold in (0.0, 0.2):
        module = quantizer(decay=0.5, dead_code_threshold=threshold).train()
        module.codebook[0] = module.code_sum[0] = 1000.0
        module.code_count.fill_(40 / 6)
        module.code_sum.copy_(module.codebook * module.code_count[:, None])
        for _ in range(4):  # its share of use halves with each
            module(data)
        distance = (data - module.codebook[0]).norm(dim=1).min()
        assert distance > 900 if not threshold else distance < 0.5
        if threshold:
            assert (module.code_count >= 0.1 * module.code_count.mean()).all()


def test_revived_code_starts_on_an_encoder_output():
    module, data = quantizer(dead_code_threshold=0.2).train(), vectors()
    module.codebook[0] = 1000.0
    module(data)
    assert (data - module.codebook[0]).norm(dim=1).min() < 1e-3


def test_revival_is_reproducible_whatever_the_global_random_state():
    results = []
    for seed in (0, 1):
        module = quantizer(dead_code_threshold=0.9).train()
        torch.manual_seed(seed)
        for step in range(3):
            module(vectors(seed=step))
        results.append(copy_of(module))
    assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])


def test_data_driven_start_is_where_the_data_is():
    module, data = quantizer(), vectors()
    module.initialize_from(data)
    torch.testing.assert_close(module.code_sum / module.code_count.unsqueeze(1), module.codebook)
    # fixed point of k-means: a code that is in use is the mean of what falls to it
    codes = module.assign(data)
    used = codes.unique()
    means = torch.stack([data[codes == code].mean(0) for code in used])
    torch.testing.assert_close(module.codebook[used], means, atol=0.05, rtol=0)


def test_bypass_passes_vectors_as_they_are_and_leaves_the_codebook_alone():
    module, data = quantizer().train(), vectors()
    before = copy_of(module)
    module.bypass = True
    quantized, _, counts = module(data)
    assert torch.equal(quantized, data) and not counts.any()
    assert all(torch.equal(before[name], value) for name, value in copy_of(module).items())


def test_autocast_leaves_it_in_float32():
    module, data = quantizer().eval(), vectors()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        quantized, codes, _ = module(data)
    assert quantized.dtype == torch.float32
    assert torch.equal(codes, module.assign(data))


@pytest.mark.parametrize(
    "counts, expected",
    [([3, 3, 3, 3], 4), ([7, 0, 0, 0], 1), ([0, 0, 0, 0], 1), ([2, 2, 0, 0], 2), ([1, 3, 0, 0], 1.7547)],
)
def test_perplexity(counts, expected):
    assert perplexity(torch.tensor(counts, dtype=torch.float32)).item() == pytest.approx(expected, rel=1e-4)


def test_draws_are_spread_evenly_and_differ_from_update_to_update():
    module = quantizer()
    data = torch.arange(50.0).unsqueeze(1)
    drawn = []
    for number in range(200):
        module.updates.fill_(number)
        drawn.append(module._draw(data, 100).flatten().long())
    counts = torch.cat(drawn).bincount(minlength=50)
    # 20,000 draws over 50: chi-square with 49 degrees of freedom is below 85.4 in 99.9 % of cases
    assert ((counts - 400.0).square() / 400).sum() < 85.4
    assert all((a == b).float().mean() < 0.15 for a, b in itertools.pairwise(drawn))
