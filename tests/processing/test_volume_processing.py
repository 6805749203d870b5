"""`ILTMImageProcessor` on volumes."""

import nibabel as nib
import numpy as np
import pytest
import torch

from iltm_anomaly import ILTMImageProcessor
from iltm_anomaly.data.volume_files import read_volume
from iltm_anomaly.data.volume_grid import Volume, VolumeGrid
from iltm_anomaly.processing.volumes import cropped_to_foreground, resize

AFFINE = np.array([[-4.0, 0, 0, 60], [0, 0, 3.0, -40], [0, -5.0, 0, 50], [0, 0, 0, 1]])  # left, inferior, anterior


@pytest.fixture
def scan(tmp_path):
    """A smooth volume of 20 x 17 x 23 voxels, SUV up to 20, in an unusual orientation."""
    axes = np.meshgrid(*[np.linspace(-1, 1, side) for side in (20, 17, 23)], indexing="ij")
    values = 20 * np.exp(-4 * ((axes[0] - 0.3) ** 2 + axes[1] ** 2 + (axes[2] + 0.2) ** 2))
    path = tmp_path / "scan.nii.gz"
    nib.save(nib.Nifti1Image(values.astype(np.float32), AFFINE), path)
    return path


def processor(**settings):
    defaults = {"size": {"depth": 16, "height": 16, "width": 16}, "spacing": 6, "intensity_range": (0, 20)}
    return ILTMImageProcessor(**defaults | settings)


def test_a_volume_is_turned_resampled_centred_and_scaled(scan):
    batch = processor(size_divisor=8)(scan)
    assert batch["pixel_values"].shape == (1, 1, 16, 16, 16)
    # RAS extents 80 x 69 x 85 mm: 13, 12 and 14 voxels of 6 mm
    filled = (batch["pixel_values"][0, 0] > 0).nonzero()
    assert (filled.amax(0) - filled.amin(0) + 1).tolist() == [13, 12, 14]
    assert filled.amin(0).tolist() == [1, 2, 1]
    canonical = nib.as_closest_canonical(nib.load(scan)).get_fdata()
    peak = np.array(np.unravel_index(canonical.argmax(), canonical.shape)) / canonical.shape
    found = (batch["pixel_values"][0, 0] == batch["pixel_values"].max()).nonzero()[0].numpy()
    np.testing.assert_allclose((found - [1, 2, 1]) / [13, 12, 14], peak, atol=0.09)
    assert 0.8 < float(batch["pixel_values"].max()) <= 1


def test_maps_come_back_to_the_grid_of_the_file(scan):
    prepare = processor(spacing=3, size={"depth": 32, "height": 32, "width": 32})
    batch = prepare(scan)
    grid = batch["original_sizes"][0]
    volume = read_volume(scan)
    assert grid == volume.grid
    restored = prepare.restore_map(batch["pixel_values"][0, 0], grid)
    assert restored.shape == volume.values.shape and restored.dtype == np.float32
    np.testing.assert_allclose(restored, volume.values / 20, atol=0.04)
    healed = prepare.restore_image(batch["pixel_values"][0], grid)
    np.testing.assert_allclose(healed, volume.values, atol=0.8)


@pytest.mark.parametrize("sides", [(13, 9, 17), (8, 8, 8), (5, 30, 11)])
def test_sides_need_not_be_multiples(sides):
    """Without resampling, padding and cropping give the very same voxels."""
    values = np.random.default_rng(0).random(sides).astype(np.float32)
    prepare = ILTMImageProcessor.for_volumes([values], intensity_range=(0, 1))
    assert all(side % 8 == 0 for side in prepare.padded_size)
    batch = prepare(values)
    np.testing.assert_allclose(prepare.restore_map(batch["pixel_values"][0, 0], sides), values, atol=1e-6)


def test_a_volume_too_long_for_the_grid_is_resampled_until_it_fits():
    prepare = processor(spacing=1, intensity_range=(0, 1))
    values = np.random.default_rng(0).random((40, 10, 16)).astype(np.float32)
    batch = prepare(values)
    assert batch["pixel_values"].shape[2:] == (16, 16, 16)
    occupied = (batch["pixel_values"][0, 0] > 0).nonzero()
    assert (occupied.amax(0) - occupied.amin(0) + 1).tolist() == [16, 10, 16]
    assert prepare.restore_map(batch["pixel_values"][0, 0], batch["original_sizes"][0]).shape == (40, 10, 16)


def test_the_box_around_the_subject_is_looked_at_and_goes_back():
    """Air and a speck in it are left out: a smaller grid, a map that is 0 there and unchanged inside."""
    values = np.zeros((30, 20, 24), np.float32)
    body = np.random.default_rng(0).uniform(0.5, 1, (13, 9, 17)).astype(np.float32)
    values[4:17, 8:17, 3:20] = body
    values[27, 2, 2] = 0.9
    axes = np.array([[0, -2.0, 0, 30], [0, 0, 2.0, -40], [-2.0, 0, 0, 50], [0, 0, 0, 1]])
    scan = nib.Nifti1Image(values, axes)
    prepare = ILTMImageProcessor.for_volumes([scan], intensity_range=(0, 1), foreground=0.2, size_divisor=4)
    assert prepare.size == {"depth": 12, "height": 20, "width": 16}  # right, front, head: the array's axes 1, 2, 0
    batch = prepare(scan)
    grid = batch["original_sizes"][0]
    assert grid.box == ((3, 12), (3, 20), (13, 26)) and grid.shape == values.shape
    assert batch["pixel_values"].count_nonzero() == body.size
    back = prepare.restore_map(batch["pixel_values"][0, 0], grid)
    np.testing.assert_allclose(back[4:17, 8:17, 3:20], body, atol=1e-6)
    assert back.shape == values.shape and np.count_nonzero(back) == body.size
    mask = values > 0.95
    np.testing.assert_array_equal(prepare.to_model_grid(mask, grid) > 0.5, batch["pixel_values"][0, 0].numpy() > 0.95)
    assert prepare(np.zeros((8, 8, 8)))["original_sizes"][0].box is None  # nothing to find


@pytest.mark.parametrize("settings", [{}, {"spacing": 1e-6}])
def test_one_volume_does_not_make_a_grid_that_no_machine_holds(tmp_path, settings):
    for name, side in {"a": 1.0, "b": 1.0, "far": 900.0}.items():
        nib.save(nib.Nifti1Image(np.ones((8, 8, 8), np.uint8), np.diag([side] * 3 + [1])), tmp_path / f"{name}.nii")
    with pytest.raises(
        ValueError, match=r"a grid for all volumes would have .*far\.nii measures 7200 x 7200 x 7200 mm"
    ):
        ILTMImageProcessor.for_volumes(sorted(tmp_path.iterdir()), **settings)


def test_every_large_part_of_a_subject_is_in_the_box():
    """Legs do not touch, and a field of view may part a head from its body."""
    values = np.zeros((30, 20, 24), np.float32)
    values[3:9, 5:15, 2:20] = values[14:18, 6:13, 2:20] = 1
    values[16, 9, 10] = 12
    grid = cropped_to_foreground(Volume(values, VolumeGrid.of(values.shape)), 0.2)
    assert grid.box == ((3, 18), (5, 15), (2, 20))


def test_outside_the_box_a_healed_volume_has_the_lowest_value():
    values = np.full((12, 12, 12), -1000.0, np.float32)  # CT: air
    values[3:9, 3:9, 3:9] = 40
    scan = nib.Nifti1Image(values, np.eye(4))
    prepare = ILTMImageProcessor.for_volumes([scan], intensity_range=(-1000, 1000), foreground=-500, size_divisor=2)
    batch = prepare(scan)
    healed = prepare.restore_image(batch["pixel_values"][0], batch["original_sizes"][0])
    np.testing.assert_allclose(healed, values, atol=0.01)


def test_a_range_is_found_in_all_of_a_volume():
    """Of 200 x 200 columns of 6 voxels a step of 12 would meet the first one alone, which is air here."""
    values = np.zeros((200, 200, 6), np.float32)
    values[50:150, 50:150, 2:] = np.random.default_rng(0).uniform(1, 15, (100, 100, 4))
    low, high = ILTMImageProcessor.for_volumes([nib.Nifti1Image(values, np.eye(4))], size=(8, 8, 8)).intensity_range
    assert low == 0 and 14.5 < high <= 15


def test_stretched_volumes_fill_a_grid_of_median_size():
    generator = np.random.default_rng(0)
    volumes = [
        generator.uniform(0.5, 1, sides).astype(np.float32) for sides in ((12, 9, 30), (16, 8, 40), (18, 12, 35))
    ]
    prepare = ILTMImageProcessor.for_volumes(volumes, spacing=2, intensity_range=(0, 1), stretch=True, size_divisor=2)
    assert prepare.size == {"depth": 8, "height": 6, "width": 18} and prepare.spacing is None
    for values in volumes:
        batch = prepare(values)
        assert (batch["pixel_values"] >= 0.5).all()  # no margin
        assert prepare.restore_map(batch["pixel_values"][0, 0], values.shape).shape == values.shape
    ramp = np.linspace(0, 1, 40, dtype=np.float32) * np.ones((16, 8, 1), np.float32)
    np.testing.assert_allclose(
        prepare.restore_map(prepare(ramp)["pixel_values"][0, 0], ramp.shape)[:, :, 3:-3], ramp[:, :, 3:-3], atol=0.01
    )


def test_working_voxels_may_be_longer_along_one_axis(scan):
    prepare = processor(spacing=(4, 3, 10), size={"depth": 24, "height": 24, "width": 16})
    batch = prepare(scan)
    occupied = (batch["pixel_values"][0, 0] > 0).nonzero()
    assert (occupied.amax(0) - occupied.amin(0) + 1).tolist() == [20, 23, 8]  # 80 x 69 x 85 mm
    restored = prepare.restore_map(batch["pixel_values"][0, 0], batch["original_sizes"][0])
    np.testing.assert_allclose(restored, read_volume(scan).values / 20, atol=0.12)


def test_a_tilted_volume_is_turned_to_the_nearest_axes(tmp_path):
    values = np.random.default_rng(0).uniform(1, 9, (9, 10, 11)).astype(np.float32)
    turn, tilt = np.radians(25), np.eye(4)
    tilt[1:3, 1:3] = [[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]
    nib.save(nib.Nifti1Image(values, tilt @ AFFINE), tmp_path / "tilted.nii")
    volume = read_volume(tmp_path / "tilted.nii")
    np.testing.assert_allclose(volume.grid.ras_spacing, (4, 3, 5), rtol=1e-5)
    expected = nib.as_closest_canonical(nib.load(tmp_path / "tilted.nii")).get_fdata()
    np.testing.assert_array_equal(volume.grid.to_ras(volume.values), expected)
    prepare = ILTMImageProcessor.for_volumes([volume], intensity_range=(0, 10))
    back = prepare.restore_map(prepare(volume)["pixel_values"][0, 0], volume.grid)
    np.testing.assert_allclose(back, values / 10, atol=1e-6)


def test_clipping_and_power():
    values = np.array([-5.0, 0, 5, 20, 64]).repeat(25).reshape(5, 5, 5).astype(np.float32)
    size = {"depth": 5, "height": 5, "width": 5}
    prepare = ILTMImageProcessor(size=size, intensity_range=(0, 20), intensity_power=0.5, size_divisor=1)
    pixels = prepare(values)["pixel_values"][0, 0]
    np.testing.assert_allclose(pixels[:, 0, 0], [0, 0, 0.5, 1, 1])
    np.testing.assert_allclose(prepare.restore_image(pixels[None])[:, 0, 0], [0, 0, 5, 20, 20], atol=1e-5)


def test_percentiles_make_scans_of_different_units_alike(tmp_path):
    values = np.random.default_rng(0).normal(100, 10, (8, 8, 8)).astype(np.float32)
    prepare = ILTMImageProcessor.for_volumes([values, 7 * values + 30], intensity_percentiles=(1, 99))
    assert prepare.intensity_range is None
    one, other = prepare([values, 7 * values + 30])["pixel_values"]
    np.testing.assert_allclose(one, other, atol=1e-4)
    assert 0.01 <= float((one == 0).float().mean()) < 0.02 and 0.01 <= float((one == 1).float().mean()) < 0.02
    small = prepare(values * 1e-9)["pixel_values"][0]  # such as diffusivity in m2/s
    np.testing.assert_allclose(small, one, atol=1e-4)
    inputs = prepare(7 * values + 30)
    back = prepare.restore_image(inputs["pixel_values"][0], inputs["original_sizes"][0])
    assert np.median(np.abs(back - (7 * values + 30))) < 1  # in the scan's own units
    flat = prepare(np.full((8, 8, 8), 3.0))["pixel_values"]
    assert float(flat.abs().max()) == 0  # nothing to stretch
    prepare.save_pretrained(tmp_path)
    assert ILTMImageProcessor.from_pretrained(tmp_path).intensity_percentiles == [1.0, 99.0]


def test_settings_follow_from_training_volumes(tmp_path):
    generator = np.random.default_rng(0)
    for name, sides, spacing in (("a", (10, 12, 14), 2.0), ("b", (20, 11, 9), 2.0), ("c", (6, 6, 6), 3.0)):
        values = generator.normal(100, 10, sides).astype(np.float32)
        nib.save(nib.Nifti1Image(values, np.diag([spacing] * 3 + [1])), tmp_path / f"{name}.nii")
    found = ILTMImageProcessor.for_volumes(sorted(tmp_path.iterdir()), size_divisor=4)
    assert found.spacing == [2.0, 2.0, 2.0]
    assert found.size == {"depth": 20, "height": 12, "width": 16}
    assert found.intensity_range == pytest.approx([100 - 31, 100 + 31], abs=5)
    found.save_pretrained(tmp_path / "saved")
    assert ILTMImageProcessor.from_pretrained(tmp_path / "saved").to_dict() == found.to_dict()
    with pytest.raises(ValueError, match="no volumes given"):
        ILTMImageProcessor.for_volumes([])


def test_every_form_of_a_volume_is_the_same(scan):
    prepare = processor(spacing=None)
    from_file = prepare(scan)["pixel_values"]
    image = nib.as_closest_canonical(nib.load(scan))
    array = image.get_fdata().astype(np.float32)
    forms = [
        str(scan),
        nib.load(scan),
        read_volume(scan),
        array,
        torch.from_numpy(array),
        array[None],
        array[None, None],
    ]
    for form in forms:
        assert torch.equal(prepare(form)["pixel_values"], from_file)
    assert prepare([scan, scan])["pixel_values"].shape[0] == 2


@pytest.mark.parametrize(
    ("item", "reason"),
    [
        (np.zeros((8, 8)), "volume has shape"),
        (np.zeros((8, 1, 8)), "at least 2 voxels"),
        (np.zeros((0, 8, 8)), "at least 2 voxels"),
        (np.full((8, 8, 8), np.nan), "512 NaN or infinite"),
        (np.zeros((8, 8, 8), complex), "complex128"),
        ([], "the list is empty"),
    ],
)
def test_bad_arrays_are_refused(item, reason):
    with pytest.raises(ValueError, match=reason):
        processor()(item)


def test_values_without_a_range_must_lie_in_the_unit_interval():
    with pytest.raises(ValueError, match="give the processor an intensity_range"):
        processor(intensity_range=None)(np.full((8, 8, 8), 200.0))


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"spacing": 0}, "spacing"),
        ({"spacing": [1, 2]}, "spacing"),
        ({"spacing": -1.0}, "spacing"),
        ({"intensity_range": (5, 5)}, "low < high"),
        ({"intensity_range": []}, "two numbers"),
        ({"intensity_range": None, "intensity_percentiles": (5, 101)}, "low < high <= 100"),
        ({"intensity_range": None, "intensity_percentiles": 99}, "two numbers"),
        ({"intensity_range": None, "intensity_percentiles": [1, float("nan")]}, "low < high"),
        ({"intensity_percentiles": (1, 99)}, "give only one of"),
        ({"intensity_power": 0}, "intensity_power"),
        ({"num_channels": 3}, "one channel"),
        ({"size": {"depth": 8, "height": 8}}, "size must be"),
        ({"size": 64}, "are for volumes"),
        ({"size": 64, "spacing": None, "intensity_range": None, "foreground": 0.2}, "are for volumes"),
    ],
)
def test_bad_settings_are_refused(settings, reason):
    with pytest.raises(ValueError, match=reason):
        processor(**settings)


def test_the_grid_of_a_plain_array_is_ras():
    grid = VolumeGrid.of((3, 4, 5))
    values = np.arange(60).reshape(3, 4, 5)
    assert grid.ras_shape == (3, 4, 5) and grid.ras_spacing == (1, 1, 1)
    np.testing.assert_array_equal(grid.from_ras(grid.to_ras(values)), values)


def test_resize_averages_and_interpolates():
    ramp = np.linspace(0, 1, 12, dtype=np.float32)[:, None, None] * np.ones((1, 3, 4), np.float32)
    smaller = resize(ramp, (4, 3, 4))
    assert smaller.shape == (4, 3, 4)
    np.testing.assert_allclose(smaller[:, 0, 0].mean(), 0.5, atol=1e-6)
    np.testing.assert_allclose(np.diff(smaller[1:3, 0, 0]), 3 / 11, atol=1e-6)  # linear inside
    noise = np.random.default_rng(0).normal(size=(40, 4, 4)).astype(np.float32)
    assert resize(noise, (10, 4, 4)).std() < 0.6 * noise.std()  # an average, not a pick
    assert resize(ramp, ramp.shape) is ramp
    np.testing.assert_allclose(resize(np.full((3, 3, 3), 7, np.float32), (5, 2, 9)), 7, rtol=1e-6)
