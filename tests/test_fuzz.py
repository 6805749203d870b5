"""The fuzzers run, and what they have found stays mended: odd files and words have an answer, or an error that names the file."""

import json
import random
import subprocess
import sys
import warnings

import nibabel as nib
import numpy as np
import pytest
from datasets import Dataset, DatasetDict, Features, Value
from datasets import Image as ImageFeature
from fuzz_doors import DOORS, Refused
from hostile import edit
from PIL import Image
from tiny_models import tiny_feature_pipeline, tiny_pipeline

from iltm_anomaly import ILTMAnomalyPipeline
from iltm_anomaly.cli import main
from iltm_anomaly.comparison.benchmark.cells import CellDamagedError, load_cell
from iltm_anomaly.data.folder import load_images
from iltm_anomaly.data.images import ImageReadError, read_image
from iltm_anomaly.data.volume_files import read_volume
from iltm_anomaly.evaluation.gallery import grey
from iltm_anomaly.hub.cards import load_results
from iltm_anomaly.hub.upload import plan_upload
from iltm_anomaly.recipes.recipe import load_recipe
from iltm_anomaly.training.checkpoint import load_json


@pytest.mark.parametrize("name", sorted(set(DOORS) - {"results"}))  # which trains first
def test_a_door_takes_what_comes(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "valid").mkdir()
    door, outcomes = DOORS[name](tmp_path / "valid"), {"refused": 0, "answered": 0}
    for number in range(20):
        (tmp_path / str(number)).mkdir()
        outcome = "answered"
        try:
            door.case(random.Random(f"0:{name}:{number}"), tmp_path / str(number))
        except Refused:
            outcome = "refused"
        outcomes[outcome] += 1
    assert outcomes["refused"] > 2 and (outcomes["answered"] or name in ("recipes", "arguments"))


def test_a_recipe_is_named_with_its_mistake(tmp_path):
    path = tmp_path / "mine.yaml"
    for content, said in [
        (b"name: x\nstage1: {lr: 1}", "mine.yaml: recipe.*has no field 'lr'"),
        (b"name: \xff", "mine.yaml is not in UTF-8, from byte 6 on"),
        (b"a: [1\nb: 2", r"mine.yaml is no valid YAML \(line 2, column 2\): [^\n]*$"),
        (b"[" * 3000, "mine.yaml is no valid YAML"),
    ]:
        path.write_bytes(content)
        with pytest.raises(ValueError, match=said):
            load_recipe(path)


def test_a_value_that_no_memory_holds_written_out_is_shortened(tmp_path):
    levels = ["&a0 [1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    levels += [f"&a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 6)]  # twice as many would be 10^12 numbers
    (tmp_path / "mine.yaml").write_text(f"stage1: [{', '.join(levels)}]")
    with pytest.raises(ValueError) as caught:
        load_recipe(tmp_path / "mine.yaml")
    assert len(str(caught.value)) < 2000


@pytest.mark.parametrize("change", ["gone", "odd", "damaged"])
def test_a_damaged_data_set_is_named(tmp_path, change):
    features = Features({"image": ImageFeature(), "defect": Value("string")})
    split = Dataset.from_dict({"image": [Image.new("RGB", (8, 8))], "defect": ["good"]}, features=features)
    DatasetDict(train=split).save_to_disk(tmp_path / "data")
    path = tmp_path / "data" / "train" / ("state.json" if change != "damaged" else "data-00000-of-00001.arrow")
    path.unlink() if change == "gone" else path.write_text('{"_data_files": 1.5}')
    with pytest.raises(ValueError, match=f"`datasets` cannot read {tmp_path / 'data'}: .*Mend or replace"):
        load_images(tmp_path / "data")


@pytest.mark.parametrize(
    "fields", [{"image_size": "x"}, {"hidden_sizes": ["x"]}, {"_out_features": ["stage1", {"a": 1}]}]
)
def test_a_backbone_that_cannot_be_is_named(tmp_path, fields):
    tiny_feature_pipeline().save_pretrained(tmp_path)
    path = tmp_path / "tokenizer" / "config.json"
    edit(path, backbone_config=json.loads(path.read_text())["backbone_config"] | fields)
    with pytest.raises(ValueError, match=r"config\.json [^\n]*$"):
        ILTMAnomalyPipeline.from_pretrained(tmp_path)


def test_parts_that_do_not_fit_are_named_with_their_folder(tmp_path):
    tiny_pipeline().save_pretrained(tmp_path)
    edit(tmp_path / "image_processor" / "preprocessor_config.json", size={"height": 64, "width": 32})
    with pytest.raises(ValueError, match=f"^{tmp_path}: the image processor makes"):
        ILTMAnomalyPipeline.from_pretrained(tmp_path)


@pytest.mark.parametrize("content", ["{", '{"a": "\\x"}', "[" * 100_000, b"\xff"])
def test_a_damaged_document_is_named(tmp_path, content):
    path = tmp_path / "results.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    for read in (load_json, lambda path: load_results([path]), load_cell):
        with pytest.raises((ValueError, CellDamagedError), match=r"results\.json is (damaged|not valid JSON)"):
            read(path)


def test_a_result_that_is_not_finite_is_named(tmp_path):
    (tmp_path / "results.json").write_text('{"results": [{"round": 0, "pixel_auroc": NaN}]}')
    with pytest.raises(ValueError, match=r"results\.json.*pixel_auroc is damaged: 'nan'"):
        load_results([tmp_path / "results.json"])


@pytest.mark.parametrize("name", ["/dev/null", "a/b/c", "a b/c", "x"])
def test_a_repository_that_cannot_be_is_named(tmp_path, name):
    with pytest.raises(ValueError, match=f"'{name}' is no name of a repository: give owner/name"):
        plan_upload(tmp_path, name)


def test_a_name_with_a_null_byte_is_no_file():
    with pytest.raises(ImageReadError, match="its name holds a null byte"):
        read_image("a\0.png")


def test_numbers_at_the_end_of_their_range_are_drawn_and_refused_in_silence(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        picture = np.asarray(grey(np.array([[-3e38, 3e38]], np.float32), (-3e38, 3e38)))
        nib.save(nib.Nifti1Image(np.full((4, 4, 4), 1e300), np.eye(4)), tmp_path / "a.nii")
        with pytest.raises(ValueError, match="holds 64 NaN or infinite voxels"):
            read_volume(tmp_path / "a.nii")
    assert picture.tolist() == [[0, 255]]


def test_a_device_without_numbers_is_refused(tmp_path, capsys):
    tiny_pipeline().save_pretrained(tmp_path / "model")
    words = ["detect", str(tmp_path / "model"), str(tmp_path), "--output", str(tmp_path / "out"), "--device", "meta"]
    assert main(words) == 2
    assert "--device meta cannot be used" in capsys.readouterr().err


def test_no_library_has_a_say_of_damaged_files(tmp_path):
    """In a process of its own: nibabel keeps the stderr that it was imported with."""
    tiny_pipeline(score_threshold=3.0).save_pretrained(tmp_path / "model")
    image = nib.Nifti1Image(np.ones((4, 4, 4), np.float32), np.eye(4))
    nib.save(image, tmp_path / "a.nii")
    content = bytearray((tmp_path / "a.nii").read_bytes())
    content[252:254] = b"\x63\x00"  # an unknown qform_code
    (tmp_path / "a.nii").write_bytes(content)
    Image.new("RGB", (24, 24)).save(tmp_path / "a.tif")
    content = (tmp_path / "a.tif").read_bytes()
    number = int.from_bytes(
        content[4:8], "little"
    )  # of the first entry of the list of tags: claim a value beyond the file
    broken = content[: number + 6] + (10**6).to_bytes(4, "little") + content[number + 10 :]
    (tmp_path / "a.tif").write_bytes(broken)
    code = (
        "import sys; from iltm_anomaly.cli import quiet_libraries; quiet_libraries()\n"
        "from iltm_anomaly.data.volume_files import read_volume; read_volume(sys.argv[1])\n"
        "from iltm_anomaly.data.images import read_image\n"
        "try: read_image(sys.argv[2])\n"
        "except ValueError: pass"
    )
    words = [sys.executable, "-c", code, str(tmp_path / "a.nii"), str(tmp_path / "a.tif")]
    done = subprocess.run(words, capture_output=True, text=True, timeout=300, check=True)
    assert done.stdout == done.stderr == ""
