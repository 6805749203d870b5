import gzip
import struct

import nibabel as nib
import numpy as np
import pytest

from iltm_anomaly.data.thinning import thinned
from iltm_anomaly.data.volume_files import find_volumes, read_mask, read_volume, volume_stem, write_volume
from iltm_anomaly.data.volume_grid import Volume, VolumeGrid, VolumeReadError
from iltm_anomaly.data.volumes import load_volumes
from iltm_anomaly.evaluation.inputs import Input, list_inputs

AFFINE = np.array(
    [[-2.0, 0, 0, 30], [0, 0, 3.0, -40], [0, -4.0, 0, 50], [0, 0, 0, 1]]
)  # axes: left, inferior, anterior


def save(path, values=None, affine=AFFINE):
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.arange(5 * 6 * 7, dtype=np.int16).reshape(5, 6, 7) if values is None else values
    nib.save(nib.Nifti1Image(values, affine), path)
    return path


def patch(path, offset, data):
    """Overwrites bytes of the header, which nibabel would not write wrong."""
    content = bytearray(gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes())
    content[offset : offset + len(data)] = data
    path.write_bytes(gzip.compress(bytes(content)) if path.suffix == ".gz" else bytes(content))
    return path


def test_values_and_place_are_those_of_the_file(tmp_path):
    values = np.random.default_rng(0).integers(0, 900, (5, 6, 7)).astype(np.int16)
    image = nib.Nifti1Image(values, AFFINE)
    image.header.set_slope_inter(0.5, -3)
    nib.save(image, tmp_path / "a.nii.gz")
    volume = read_volume(tmp_path / "a.nii.gz")
    expected = nib.load(tmp_path / "a.nii.gz")
    np.testing.assert_allclose(volume.values, expected.get_fdata(), rtol=1e-6)
    assert volume.values.dtype == np.float32
    np.testing.assert_array_equal(volume.grid.matrix, expected.affine)
    assert volume.grid.ras_shape == (5, 7, 6)
    assert volume.grid.ras_spacing == (2, 3, 4)


def test_ras_is_nibabels_canonical_orientation_and_goes_back(tmp_path):
    volume = read_volume(save(tmp_path / "a.nii"))
    turned = volume.grid.to_ras(volume.values)
    np.testing.assert_array_equal(turned, nib.as_closest_canonical(nib.load(tmp_path / "a.nii")).get_fdata())
    np.testing.assert_array_equal(volume.grid.from_ras(turned), volume.values)


def test_writing_keeps_affine_and_header(tmp_path):
    image = nib.Nifti1Image(np.ones((5, 6, 7), np.int16), AFFINE)
    image.header.set_xyzt_units("mm", "sec")
    image.header["descrip"] = b"a scan"
    image.set_sform(AFFINE, code=4)
    nib.save(image, tmp_path / "in.nii.gz")
    volume = read_volume(tmp_path / "in.nii.gz")
    values = np.random.default_rng(0).random((5, 6, 7)).astype(np.float32)
    written = nib.load(write_volume(values, tmp_path / "out" / "map.nii.gz", volume))
    np.testing.assert_array_equal(written.get_fdata(), values)
    np.testing.assert_array_equal(written.affine, image.affine)
    assert written.get_data_dtype() == np.float32
    assert written.header["descrip"].item() == b"a scan" and written.header.get_xyzt_units() == ("mm", "sec")
    assert int(written.header["sform_code"]) == 4
    mask = nib.load(write_volume(values > 0.5, tmp_path / "mask.nii.gz", volume))
    assert mask.get_data_dtype() == np.uint8 and set(np.unique(mask.dataobj)) == {0, 1}
    with pytest.raises(ValueError, match=r"values have shape \(5, 6, 8\)"):
        write_volume(np.zeros((5, 6, 8)), tmp_path / "x.nii", volume)


BAD = {
    "truncated": (lambda p: p.write_bytes(p.read_bytes()[:-60]), "truncated"),
    "header only": (lambda p: p.write_bytes(p.read_bytes()[:50]), "truncated"),
    "empty": (lambda p: p.write_bytes(b""), "empty"),
    "text": (lambda p: p.write_bytes(gzip.compress(b"hello" * 200)), "no NIfTI file"),
    "zero spacing": (lambda p: patch(p, 80, struct.pack("<f", 0)), "0 x 4 x 3 mm"),
    "negative spacing": (lambda p: patch(p, 84, struct.pack("<f", -4)), "2 x -4 x 3 mm"),
    "NaN spacing": (lambda p: patch(p, 88, struct.pack("<f", np.nan)), "nan mm"),
    "no affine": (lambda p: patch(p, 252, struct.pack("<hh", 0, 0)), "no affine"),
    "singular affine": (lambda p: patch(p, 280, struct.pack("<12f", *[0] * 12)), "singular"),
    "slope 0": (lambda p: patch(p, 112, struct.pack("<f", 0)), "rescale slope"),
    "infinite slope": (lambda p: patch(p, 112, struct.pack("<f", np.inf)), "rescale slope"),
    "micrometres": (lambda p: patch(p, 123, b"\x03"), "lengths in micrometres"),
}


CLAIMS = {
    "more than a gzip holds": ((1000, 1000, 1000), 0, 352, "holds .* at the most"),
    "too many voxels": ((1000, 1000, 1000), 2_000_000, 352, r"1000 x 1000 x 1000 voxels, and 268,435,456 in all"),
    "too long an axis": ((9000, 2, 2), 0, 352, r"9000 x 2 x 2 voxels, and .* 8,192 along an axis are the most"),
    "much before voxels": ((5, 6, 7), 0, 1e9, "no more than 67,108,864 are read before voxels"),
}


@pytest.mark.parametrize("kind", CLAIMS)
def test_what_a_header_claims_is_refused_before_it_is_read(tmp_path, kind, monkeypatch):
    shape, padding, before, reason = CLAIMS[kind]
    path = patch(save(tmp_path / "claims.nii.gz"), 40, struct.pack("<8h", 3, *shape, 1, 1, 1, 1))
    patch(path, 108, struct.pack("<f", before))
    with open(path, "ab") as file:  # as large as a file that holds so much could be
        file.write(bytes(padding))
    monkeypatch.setattr(np, "asanyarray", None)  # reads the voxels
    with pytest.raises(VolumeReadError, match=reason) as caught:
        read_volume(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("side", [1e-30, 1e-7, 1e4, 1e30])
def test_voxels_of_impossible_size_are_refused(tmp_path, side):
    affine = np.diag([side, 1.0, 1.0, 1.0])
    path = save(tmp_path / "bad.nii", affine=np.diag([2.0, 1.0, 1.0, 1.0]))
    patch(path, 76, struct.pack("<4f", 1, side, 1, 1))
    patch(path, 280, affine[:3].astype("<f4").tobytes())
    with pytest.raises(VolumeReadError, match=r"bad.nii: by its affine, voxels measure .* x 1 x 1 mm"):
        read_volume(path)


def test_a_bad_volume_of_a_folder_is_an_error_of_its_own(tmp_path, caplog):
    good = save(tmp_path / "good.nii.gz")
    patch(save(tmp_path / "huge.nii.gz"), 40, struct.pack("<8h", 3, 1000, 1000, 1000, 1, 1, 1, 1))
    assert load_volumes(tmp_path)["train"]["image"][:] == [str(good)]
    assert "left out: cannot read volume" in caplog.text and "huge.nii.gz" in caplog.text


def test_an_uncompressed_file_may_be_truncated_too(tmp_path):
    path = save(tmp_path / "bad.nii")
    path.write_bytes(path.read_bytes()[:-60])
    with pytest.raises(VolumeReadError, match="truncated"):
        read_volume(path)


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_file_is_named_with_its_reason(tmp_path, kind):
    damage, reason = BAD[kind]
    path = save(tmp_path / "bad.nii.gz", np.random.default_rng(0).integers(0, 999, (5, 6, 7)).astype(np.int16))
    read_volume(path)
    damage(path)
    with pytest.raises(VolumeReadError, match=reason) as caught:
        read_volume(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        (np.zeros((5, 6, 7, 3), np.float32), "4-D"),
        (np.zeros((5, 6), np.float32), "2-D"),
        (np.zeros((5, 6, 1), np.float32), "single slice"),
        (np.full((5, 6, 7), np.nan, np.float32), "210 NaN or infinite"),
        (np.full((5, 6, 7), np.inf, np.float32), "NaN or infinite"),
        (np.zeros((5, 6, 7), np.complex64), "complex64"),
    ],
)
def test_bad_voxels_are_refused(tmp_path, values, reason):
    with pytest.raises(VolumeReadError, match=reason):
        read_volume(save(tmp_path / "bad.nii", values))


def test_missing_and_foreign_files(tmp_path):
    with pytest.raises(VolumeReadError, match="no such file"):
        read_volume(tmp_path / "absent.nii")
    (tmp_path / "x.txt").write_text("x")
    with pytest.raises(VolumeReadError, match="not a NIfTI file"):
        read_volume(tmp_path / "x.txt")
    with pytest.raises(VolumeReadError, match=r"iltm-anomaly\[dicom\]|no DICOM series"):
        read_volume(tmp_path)


def test_a_trailing_axis_of_one_is_no_fourth_dimension(tmp_path):
    assert read_volume(save(tmp_path / "a.nii", np.zeros((5, 6, 7, 1), np.float32))).values.shape == (5, 6, 7)


def test_nifti_2_and_nibabel_images(tmp_path):
    image = nib.Nifti2Image(np.ones((4, 5, 6), np.float32), AFFINE)
    nib.save(image, tmp_path / "two.nii.gz")
    assert read_volume(tmp_path / "two.nii.gz").values.sum() == 120
    assert read_volume(image).grid == VolumeGrid.of((4, 5, 6), AFFINE)


def test_names_of_masks_and_volumes(tmp_path):
    for name in ("p1_suv.nii.gz", "p1_lesion.nii.gz", "p2.nii", "p2_mask.nii", ".hidden.nii", "notes.txt"):
        save(tmp_path / name) if "nii" in name else (tmp_path / name).write_text("")
    assert [path.name for path in find_volumes(tmp_path)] == ["p1_suv.nii.gz", "p2.nii"]
    assert volume_stem("a/b.c.nii.gz") == "b.c"


def test_a_tree_like_mvtecs_is_loaded(tmp_path, caplog):
    for name in ("train/good/a", "train/loose", "test/good/a", "test/lesion/b"):
        save(tmp_path / f"{name}.nii.gz")
    save(tmp_path / "ground_truth/lesion/b_mask.nii.gz", np.ones((5, 6, 7), np.uint8))
    dataset = load_volumes(tmp_path)
    assert dataset["train"]["label"] == [0, -1] and dataset["test"]["label"] == [0, 1]
    assert dataset["test"]["defect"] == ["good", "lesion"]
    assert dataset["test"][0]["mask"] is None and dataset["test"][1]["mask"].endswith("b_mask.nii.gz")
    assert load_volumes(tmp_path.parent, tmp_path.name)["train"].num_rows == 2
    save(tmp_path / "test/lesion/c.nii.gz")
    with pytest.raises(ValueError, match="c_mask"):
        load_volumes(tmp_path)
    save(tmp_path / "ground_truth/lesion/c_mask.nii.gz", np.zeros((5, 6, 7), np.uint8))
    assert load_volumes(tmp_path)["test"]["label"] == [0, 1]
    assert "c_mask.nii.gz marks no voxel although" in caplog.text


def test_a_training_volume_never_takes_the_ground_truth_of_a_test_volume(tmp_path):
    for name in ("train/lesion/a", "train/lesion/b", "test/lesion/b"):
        save(tmp_path / f"{name}.nii.gz")
    for name in ("a", "b"):
        save(tmp_path / f"ground_truth/lesion/{name}_mask.nii.gz", np.ones((5, 6, 7), np.uint8))
    dataset = load_volumes(tmp_path)
    assert dataset["test"][0]["mask"].endswith("b_mask.nii.gz")
    assert dataset["train"][0]["mask"].endswith("a_mask.nii.gz") and dataset["train"][1]["mask"] is None


def test_plain_folders_and_patterns_find_their_masks(tmp_path):
    for patient in ("p1", "p2"):
        for kind in ("suv", "ct", "lesion"):
            save(tmp_path / f"{patient}_{kind}.nii.gz", np.ones((5, 6, 7), np.uint8))
    train = load_volumes(str(tmp_path / "*_suv.nii.gz"))["train"]
    assert train.num_rows == 2 and all(mask.endswith("_lesion.nii.gz") for mask in train["mask"])
    assert train["label"] == [-1, -1]
    assert load_volumes(tmp_path)["train"].num_rows == 4
    with pytest.raises(FileNotFoundError, match="no NIfTI file matches"):
        load_volumes(str(tmp_path / "*_mr.nii.gz"))
    with pytest.raises(ValueError, match="is a pattern, which has no category 'brain'"):
        load_volumes(str(tmp_path / "*_suv.nii.gz"), "brain")
    with pytest.raises(FileNotFoundError, match="no such folder"):
        load_volumes(tmp_path / "absent")


def test_a_folder_per_patient_has_its_mask_in_it(tmp_path, caplog):
    for name in ("p1/pet", "p1/mask", "p2/pet", "p2/ct", "p2/seg"):
        save(tmp_path / f"{name}.nii.gz", np.ones((5, 6, 7), np.uint8))
    rows = load_volumes(tmp_path)["train"]
    assert [path.split("/")[-1] for path in rows["image"]] == ["pet.nii.gz", "ct.nii.gz", "pet.nii.gz"]
    # of two volumes it is not known whose the mask is
    assert [mask is None for mask in rows["mask"]] == [False, True, True]
    save(tmp_path / "p3" / "label.nii.gz")
    assert (
        load_volumes(tmp_path)["train"].num_rows == 3 and "p3/label.nii.gz is named like ground truth" in caplog.text
    )
    save(tmp_path / "p1" / "ground_truth" / "pet_mask.nii.gz")
    assert load_volumes(tmp_path)["train"].num_rows == 3


def test_a_folder_above_data_sets_is_not_trained_on_with_their_lesions(tmp_path):
    for name in ("train/good/a", "test/good/b"):
        save(tmp_path / "sets" / "brain" / f"{name}.nii.gz")
    with pytest.raises(ValueError, match=r"Give .*sets and the category brain"):
        load_volumes(tmp_path / "sets")


def test_a_bad_volume_is_left_out_with_a_warning(tmp_path, caplog):
    save(tmp_path / "good.nii.gz")
    (tmp_path / "bad.nii.gz").write_bytes(b"")
    assert load_volumes(tmp_path)["train"].num_rows == 1
    assert "bad.nii.gz: the file is empty" in caplog.text
    (tmp_path / "good.nii.gz").unlink()
    with pytest.raises(ValueError, match="no readable volume"):
        load_volumes(tmp_path)


def test_a_mask_must_lie_on_its_volume(tmp_path):
    grid = read_volume(save(tmp_path / "a.nii")).grid
    mask = save(tmp_path / "m.nii", np.eye(6)[None].repeat(5, 0).astype(np.uint8) @ np.ones((6, 7), np.uint8))
    assert read_mask(mask, grid).all() and not read_mask(None, grid).any()
    shifted = save(tmp_path / "s.nii", affine=AFFINE + np.eye(4, k=3) * 9)
    with pytest.raises(ValueError, match="resample it onto the volume"):
        read_mask(shifted, grid)


def test_training_needs_no_ground_truth_and_is_not_stopped_by_it(tmp_path, caplog):
    for name in ("P1_suv", "P1_ct"):
        save(tmp_path / f"{name}.nii.gz", affine=AFFINE * (1 if name == "P1_suv" else 2))
    save(tmp_path / "P1_lesion.nii.gz", np.ones((5, 6, 7), np.uint8))
    rows = load_volumes(tmp_path)["train"]
    assert [path is None for path in rows["mask"]] == [True, False]  # that of the CT lies on another grid
    assert "training needs none" in caplog.text and "resample it onto the volume" in caplog.text

    tree = tmp_path / "tree"
    save(tree / "train" / "good" / "a.nii.gz")
    save(tree / "test" / "lesion" / "b.nii.gz")
    mask = save(tree / "ground_truth" / "lesion" / "b_mask.nii.gz", np.ones((5, 6, 7), np.uint8), affine=AFFINE * 2)
    with pytest.raises(ValueError, match="resample it onto the volume"):
        load_volumes(tree)
    # what a mask's values are scaled by does not matter
    patch(save(mask, np.ones((5, 6, 7), np.uint8)), 112, struct.pack("<f", 0))
    assert load_volumes(tree)["test"]["mask"] == [str(mask)]


def test_folders_that_are_not_meant_get_an_error_that_helps(tmp_path, caplog):
    scan = save(tmp_path / "test" / "good" / "a.nii.gz")
    with pytest.raises(ValueError, match="a folder test or ground_truth and none named train"):
        load_volumes(tmp_path)
    with pytest.raises(ValueError, match="is a file: give its folder"):
        load_volumes(scan)
    with pytest.raises(FileNotFoundError, match="not from the Hub"):
        load_volumes("owner/name")
    (tmp_path / "dicom" / "series").mkdir(parents=True)
    dicom = tmp_path / "dicom" / "series" / "IM0001.dcm"
    dicom.write_bytes(bytes(128) + b"DICM")
    with pytest.raises(ValueError, match="DICOM must be converted to NIfTI"):
        load_volumes(tmp_path / "dicom")
    with pytest.raises(VolumeReadError, match="of a DICOM series give the folder"):
        read_volume(dicom)
    (tmp_path / "dicom" / "DICOMDIR").write_bytes(bytes(128) + b"DICM")
    assert list_inputs([tmp_path / "dicom"], volumes=True) == [Input(dicom.parent)]
    save(tmp_path / "train" / "good" / "no_lesion.nii.gz")
    save(tmp_path / "train" / "good" / "b.nii.gz")
    assert load_volumes(tmp_path)["train"].num_rows == 1
    assert "no_lesion.nii.gz is named like ground truth; rename it" in caplog.text


def test_a_nibabel_image_of_a_file_is_checked_and_written_like_the_file(tmp_path):
    path = save(tmp_path / "a.nii.gz")
    image = nib.load(path)
    image.header["descrip"] = b"in memory"
    written = nib.load(write_volume(np.zeros((5, 6, 7)), tmp_path / "map.nii", read_volume(image)))
    assert int(written.header["qform_code"]) == int(image.header["qform_code"])
    assert int(written.header["sform_code"]) == int(image.header["sform_code"]) > 0
    moved = nib.Nifti1Image(np.zeros((5, 6, 7)), 2 * AFFINE, image.header)
    moved.set_filename(path)  # no longer what the file holds
    assert read_volume(moved).path is None
    patch(path, 112, struct.pack("<f", 0))
    with pytest.raises(VolumeReadError, match="rescale slope"):
        read_volume(nib.load(path))
    assert read_volume(nib.Nifti1Image(np.zeros((5, 6, 7)), AFFINE)).path is None


def test_small_voxels_are_no_singular_affine(tmp_path):
    scan = save(tmp_path / "a.nii.gz", affine=np.diag([5e-4, 5e-4, 5e-4, 1]))
    assert read_volume(scan).grid.ras_spacing == pytest.approx([5e-4] * 3)


@pytest.mark.parametrize("shape", [(200, 200, 6), (64, 64, 64), (50, 41, 1), (3, 2, 5)])
def test_thinned_values_come_from_everywhere(shape):
    for axis in range(3):
        places = thinned(np.indices(shape)[axis], 2_000)
        assert np.array_equal(np.unique(places), np.arange(shape[axis]))
        assert 0.25 * 2_000 < places.size <= 4_000 or places.size == np.prod(shape)
    assert np.array_equal(thinned(np.arange(10.0), 20), np.arange(10.0))


def test_nifti_columns_of_datasets_are_volumes(tmp_path):
    """What `load_dataset("niftifolder", ...)` gives, without its slow search for a builder."""
    from datasets import Dataset, Nifti

    from iltm_anomaly import ILTMImageProcessor

    path = save(tmp_path / "a.nii.gz", np.ones((5, 6, 7), np.uint8))
    dataset = Dataset.from_dict({"nifti": [str(path)]}).cast_column("nifti", Nifti())
    processor = ILTMImageProcessor(size={"depth": 8, "height": 8, "width": 8})
    assert processor(dataset[0]["nifti"]).original_sizes[0].ras_shape == (5, 7, 6)


def test_every_real_volume_can_be_read(data_root):
    if not (data_root / "volumes").is_dir():
        pytest.skip(f"needs the real volumes: no folder {data_root / 'volumes'}")
    files = find_volumes(data_root / "volumes" / "sts_pet") + find_volumes(data_root / "volumes" / "ms_lesions")
    assert len(files) == 26 * 2 + 3 * 3
    assert isinstance(read_volume(files[0]), Volume)
    assert load_volumes(str(data_root / "volumes" / "sts_pet" / "*_suv.nii.gz"))["train"].num_rows == 26
