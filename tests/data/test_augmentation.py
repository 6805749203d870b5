import math

import numpy as np
import pytest
import torch

from iltm_anomaly.data.augmentation import AugmentationConfig, _elastic_field, augment
from iltm_anomaly.seeds import raw_integers, sample_seed, uniforms


def batch(count: int = 6, size: tuple[int, ...] = (24, 32), channels: int = 3) -> torch.Tensor:
    return torch.rand((count, channels, *size), generator=torch.Generator().manual_seed(0))


def only(**settings) -> AugmentationConfig:
    """A configuration in which only the named augmentation is on."""
    off = dict.fromkeys(
        ("affine_probability", "contrast_probability", "intensity_probability", "noise_probability"), 0.0
    )
    return AugmentationConfig(**(off | settings))


SHAPES = [(24, 32), (8, 12, 10)]


@pytest.mark.parametrize("size", SHAPES)
@pytest.mark.parametrize("padding_mode", ["zeros", "border", "reflection"])
def test_result_does_not_depend_on_the_batch(size, padding_mode):
    values, config, seeds = batch(size=size), AugmentationConfig(padding_mode=padding_mode), [5, 6, 7, 8, 9, 10]
    whole = augment(values, config, seeds)
    assert whole.shape == values.shape and whole.dtype == values.dtype
    assert whole.min() >= 0 and whole.max() <= 1
    for row in range(6):
        assert torch.equal(augment(values[row : row + 1], config, seeds[row : row + 1])[0], whole[row])
    order = [4, 1, 5]
    assert torch.equal(augment(values[order], config, [seeds[row] for row in order]), whole[order])
    assert torch.equal(augment(values, config, seeds), whole), "deterministic"


def test_global_random_state_is_neither_read_nor_changed():
    values, config = batch(), AugmentationConfig()
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002 - to see that it has no effect
    state = torch.get_rng_state()
    first = augment(values, config, range(6))
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert torch.equal(augment(values, config, range(6)), first)


def test_input_is_left_alone_and_seeds_differ():
    values = batch()
    copy = values.clone()
    result = augment(values[:1].expand(6, -1, -1, -1), AugmentationConfig(), range(6))
    assert torch.equal(values, copy)
    assert len({tuple(sample.flatten()[:50].tolist()) for sample in result}) == 6


def test_none_changes_nothing():
    values = batch()
    none = AugmentationConfig(
        affine_probability=0, contrast_probability=0, intensity_probability=0, noise_probability=0
    )
    assert torch.equal(augment(values, none, range(6)), values)
    zero = AugmentationConfig(rotation=0, translation=0, scale=0, contrast=0, intensity=0, noise_std=0)
    torch.testing.assert_close(augment(values, zero, range(6)), values, atol=1e-5, rtol=0)


def test_translation_moves_by_the_same_part_of_every_size():
    shifts = []
    for size in (64, 128):
        axis = (torch.arange(size) + 0.5) / size
        ramp = axis.expand(1, 1, size, size)
        config = only(affine_probability=1.0, rotation=0, scale=0, translation=8, padding_mode="border")
        shift = [(augment(ramp, config, [seed]) - ramp)[0, 0, size // 2, size // 2].item() for seed in range(40)]
        assert max(map(abs, shift)) <= 8 / 256 + 1e-5
        assert max(map(abs, shift)) > 6 / 256
        shifts.append(shift)
    np.testing.assert_allclose(shifts[0], shifts[1], atol=1e-5)


@pytest.mark.parametrize("size", [(40, 80), (24, 32, 48)])
def test_rotation_keeps_lengths_in_pixels(size):
    # A linear image keeps the length of its gradient when turned, also where the axes differ in length.
    axes = torch.meshgrid(*[torch.arange(length, dtype=torch.float32) for length in size], indexing="ij")
    direction = torch.tensor([0.5, 1.0, -0.7][: len(size)])
    ramp = sum(weight * axis for weight, axis in zip(direction, axes, strict=True))
    ramp = 0.5 + (ramp - ramp.mean()) / 400
    config = only(affine_probability=1.0, rotation=0.3, scale=0, translation=0, padding_mode="border")
    turned = augment(ramp[None, None], config, [4])[0, 0]
    middle = [slice(length // 2 - 3, length // 2 + 3) for length in size]
    gradient = torch.stack([g.mean() for g in torch.gradient(turned[tuple(middle)])]) * 400
    assert gradient.norm().item() == pytest.approx(direction.norm().item(), rel=1e-3)
    assert (gradient - direction).norm() > 0.05


def test_padding_modes():
    values = torch.ones(1, 1, 32, 32)
    config = {"affine_probability": 1.0, "rotation": 0, "scale": 0, "translation": 32}
    assert augment(values, only(**config), [0]).min() == 0
    assert augment(values, only(**config, padding_mode="border"), [0]).min() > 0.999


def test_magnitudes_of_intensity_changes():
    values = torch.full((200, 1, 8, 8), 0.5)
    contrast = augment(values, only(contrast_probability=1.0), range(200))
    gamma = contrast[:, 0, 0, 0].log() / math.log(0.5)
    assert gamma.min() >= 0.975 - 1e-5 and gamma.max() <= 1.025 + 1e-5 and gamma.std() > 0.01
    offset = augment(values, only(intensity_probability=1.0), range(200))[:, 0, 0, 0] - 0.5
    assert offset.min() >= 0 and offset.max() <= 0.025 + 1e-6 and offset.mean() == pytest.approx(0.0125, abs=0.002)
    noise = augment(values, only(noise_probability=1.0), range(200)) - 0.5
    assert noise.std().item() == pytest.approx(0.025, rel=0.03) and abs(noise.mean()) < 1e-3


def test_probabilities():
    values = torch.full((400, 1, 2, 2), 0.5)
    changed = (augment(values, only(noise_probability=0.6), range(400)) != values).flatten(1).any(1)
    assert changed.float().mean().item() == pytest.approx(0.6, abs=0.08)


def test_one_setting_leaves_the_other_draws_alone():
    values = batch()
    noise = augment(values * 0.5 + 0.2, only(noise_probability=0.5), range(6)) - (values * 0.5 + 0.2)
    both = only(noise_probability=0.5, intensity_probability=1.0)
    offset = augment(values * 0.5 + 0.2, both, range(6)) - (values * 0.5 + 0.2) - noise
    assert offset.flatten(1).std(1).max() < 1e-6


def test_half_precision_and_empty_batch():
    values = batch().to(torch.bfloat16)
    assert augment(values, AugmentationConfig(), range(6)).dtype == torch.bfloat16
    assert augment(values[:0], AugmentationConfig(), []).shape == (0, 3, 24, 32)


@pytest.mark.parametrize(
    ("values", "seeds", "message"),
    [
        (torch.rand(3, 8, 8), [1, 2, 3], r"must be \(B, C, H, W\)"),
        (torch.zeros(1, 3, 8, 8, dtype=torch.uint8), [1], "must be floats"),
        (torch.rand(2, 3, 8, 8), [1], "got 1 seeds for 2 samples"),
    ],
)
def test_bad_arguments(values, seeds, message):
    with pytest.raises(ValueError, match=message):
        augment(values, AugmentationConfig(), seeds)


@pytest.mark.parametrize(
    "settings",
    [
        {"padding_mode": "edge"},
        {"affine_probability": 1.1},
        {"noise_probability": -0.1},
        {"rotation": -1},
        {"noise_std": float("nan")},
        {"scale": 1},
        {"reference_size": 0},
    ],
)
def test_bad_settings(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        AugmentationConfig(**settings)


def test_sample_seed():
    assert sample_seed(0, 1, 2) == 8133785646714665734
    seeds = {sample_seed(0, a, b) for a in range(50) for b in range(50)} | {
        sample_seed(1),
        sample_seed(0),
        sample_seed(0, 0),
    }
    assert len(seeds) == 2503 and all(0 <= seed < 2**63 for seed in seeds)
    assert sample_seed(-1) == sample_seed(2**64 - 1)
    bits = np.array([[seed >> bit & 1 for bit in range(63)] for seed in seeds])
    assert np.abs(bits.mean(0) - 0.5).max() < 0.06


def test_random_stream_is_the_documented_one():
    assert raw_integers(0, 2).tolist() == np.random.PCG64(0).random_raw(2).tolist()
    np.testing.assert_array_equal(uniforms(7, 5), np.random.Generator(np.random.PCG64(7)).random(5))


@pytest.mark.parametrize("size", [(24, 40), (16, 24, 40)])
def test_elastic_deformation_bends_by_its_magnitude(size):
    """Coordinates as values: the deformed image tells where each pixel came from."""
    axes = torch.meshgrid(*[(torch.arange(side) + 0.5) / side for side in size], indexing="ij")
    config = only(elastic_probability=1, elastic_spacing=64, elastic_magnitude=8, padding_mode="border")
    inside = (slice(None), slice(None), *[slice(4, side - 4) for side in size])
    moved = []
    for axis, values in enumerate(axes):
        image = values[None, None].repeat(20, 1, *[1] * len(size))
        shift = (augment(image, config, range(20)) - image)[inside] * size[axis]
        moved.append(shift)
    # a cubic B-spline through independent points of standard deviation s has about 0.69 s per axis of the grid
    expected = 8 * max(size) / 256 * 0.69 ** len(size)
    for shift in moved:
        assert 0.6 * expected < float(shift.std()) < 1.2 * expected
    assert float(torch.stack(moved).abs().amax()) < 4 * expected


def test_elastic_deformation_never_folds():
    """With shifts as wild as can be, neighbouring pixels keep their order."""
    config = AugmentationConfig(elastic_probability=1, elastic_spacing=40, elastic_magnitude=400)
    field = _elastic_field((24, 32, 40), config, 5, torch.device("cpu"))[0]  # x first, [-1, 1]
    jacobian = torch.stack([torch.stack(torch.gradient(field[..., i], dim=(2, 1, 0))) for i in range(3)])
    jacobian = jacobian.movedim((0, 1), (-2, -1)) * torch.tensor([40.0, 32.0, 24.0])[:, None] / 2 + torch.eye(3)
    assert float(torch.linalg.det(jacobian).min()) > 0
    assert float(field.abs().max()) * 20 > 1  # and it does move


def test_elastic_deformation_leaves_the_other_draws_as_they_were():
    values = torch.rand(3, 1, 8, 12, 16, generator=torch.Generator().manual_seed(0))
    plain = augment(values, AugmentationConfig(), [1, 2, 3])
    assert torch.equal(
        plain, augment(values, AugmentationConfig(elastic_probability=0.0, elastic_magnitude=50), [1, 2, 3])
    )
    bent = AugmentationConfig(elastic_probability=1.0, elastic_magnitude=0.0)
    torch.testing.assert_close(plain, augment(values, bent, [1, 2, 3]))
    both = augment(values, AugmentationConfig(elastic_probability=1.0), [1, 2, 3])
    assert torch.equal(both[1:2], augment(values[1:2], AugmentationConfig(elastic_probability=1.0), [2]))
    assert not torch.allclose(both, plain)
