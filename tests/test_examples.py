"""The examples of docs/examples/: they run, and open as notebooks."""

import ast
import csv
import io
import os
import re
import runpy
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import nibabel as nib
import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image
from tiny_models import tiny_feature_pipeline

from iltm_anomaly import ILTMAnomalyPipeline

REPOSITORY = Path(__file__).resolve().parents[1]
FOLDER = REPOSITORY / "docs" / "examples"
FILES = sorted(FOLDER.glob("*.py"))


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Runs an example in small, in an empty folder; returns what it printed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ILTM_EXAMPLE_TINY", "1")

    def run_example(name: str) -> str:
        runpy.run_path(str(FOLDER / name))
        return capsys.readouterr().out

    return run_example


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_an_example_opens_as_a_notebook(path):
    """jupytext's header, a title first, no line outside a cell, and no cell that shows something else than what runs: only plain
    markers, text cells of comments alone, and code cells that compile one by one."""
    _, header, body = path.read_text(encoding="utf-8").split("# ---\n")
    known = yaml.safe_load(re.sub(r"^# ?", "", header, flags=re.MULTILINE))["jupyter"]
    assert known["jupytext"]["text_representation"]["format_name"] == "percent" and "kernelspec" in known
    before, *cells = re.split(r"^# %%", body, flags=re.MULTILINE)
    assert not before.strip() and cells[0].startswith(" [markdown]\n# # ")
    for cell in cells:
        marker, _, content = cell.partition("\n")
        assert marker in ("", " [markdown]"), marker
        if marker:
            assert all(line.startswith("#") for line in content.split("\n") if line), content
        else:
            assert ast.parse(content).body, "an empty cell"


def test_every_example_is_listed():
    page = (REPOSITORY / "docs" / "examples.md").read_text(encoding="utf-8")
    assert set(re.findall(r"\]\(examples/([\w.]+)\)", page)) == {
        path.name for path in FOLDER.iterdir() if path.is_file()
    }


def test_cleaning_finds_faulty_images_and_trains_without_them(run, tmp_path):
    said = run("clean_my_data.py")
    moved, faulty = map(int, re.search(r"moved: (\d+), of them faulty: (\d+)", said).groups())
    assert moved >= faulty >= 4  # of 7
    with open(tmp_path / "review.csv", newline="") as file:
        assert sum(row["decision"] == "move" for row in csv.DictReader(file)) == moved
    assert len(list((tmp_path / "parts").iterdir())) == 24
    with open(tmp_path / "after" / "training_images.csv", newline="") as file:
        assert {Path(row["path"]).parent.name for row in csv.DictReader(file)} == {"keep"}


def test_own_data(run, tmp_path):
    assert re.search(r"AnomalyResult\(score .*: abnormal, 64 x 64\)", run("own_data.py"))
    assert (tmp_path / "result.png").stat().st_size > 10_000 and len(list((tmp_path / "result").iterdir())) == 4
    assert (tmp_path / "found" / "results.csv").is_file()


def test_hub(run):
    said = run("hub.py")
    assert "model org/iltm-mine: " in said and "tokenizer/model.safetensors" in said
    assert said.endswith("FeatureTokenizerModel PositionPriorModel\n")


def test_custom_backbone(run):
    said = run("custom_backbone.py")
    assert said.startswith("backbone convnext\n") and said.count("AnomalyResult") == 4


def test_volumes(run, tmp_path):
    assert "AnomalyResult" in run("volumes.py")
    scan = nib.load(tmp_path / "phantoms" / "test" / "lesion" / "000.nii.gz")
    (found,) = (tmp_path / "found" / "maps").iterdir()
    np.testing.assert_array_equal(nib.load(found).affine, scan.affine)


# A service


@pytest.fixture
def model(tmp_path, monkeypatch) -> Path:
    """A model without sense, at whose threshold every image is abnormal."""
    folder = tmp_path / "model"
    tiny_feature_pipeline(score_threshold=0.0).save_pretrained(folder)
    monkeypatch.setenv("ILTM_MODEL", str(folder))
    return folder


def png(side: int = 40) -> bytes:
    buffer = io.BytesIO()
    values = np.random.default_rng(0).integers(256, size=(side, side + 8, 3), dtype=np.uint8)
    Image.fromarray(values).save(buffer, "png")
    return buffer.getvalue()


def claiming(content: bytes, width: int, height: int) -> bytes:
    """The PNG with another size in its header."""
    head = content[12:16] + struct.pack(">II", width, height) + content[24:29]
    return content[:12] + head + struct.pack(">I", zlib.crc32(head)) + content[33:]


def test_the_service_scores_images_and_refuses_what_is_none(model):
    pytest.importorskip("fastapi", reason="needs the extra service: pip install -c constraints.txt -e '.[service]'")
    pytest.importorskip("python_multipart", reason="needs the extra service")
    from fastapi.testclient import TestClient

    loaded = runpy.run_path(str(FOLDER / "service.py"))
    client = TestClient(loaded["app"])
    answer = client.post("/score", files={"file": ("part.png", png())})
    result = ILTMAnomalyPipeline.from_pretrained(model)(Image.open(io.BytesIO(png())))[0]
    told = answer.json()
    assert answer.status_code == 200 and told["score"] == pytest.approx(result.score) and told["verdict"] == "abnormal"
    assert told["size"] == [48, 40] and sum(told["areas"]) == result.mask.sum() and told["boxes"]

    picture = client.post("/overlay", files={"file": ("part.png", png())})
    assert picture.headers["content-type"] == "image/png"
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(picture.content))), np.asarray(result.overlay()))

    script = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n"
    for name, content, reason in [
        ("../../secret/script.png", script, "cannot read image script.png: not in an image format"),
        ("empty.png", b"", "empty"),
        ("huge.png", claiming(png(), 40_000, 40_000), "pixels"),
    ]:
        refused = client.post("/score", files={"file": (name, content)})
        assert refused.status_code == 422 and reason in refused.json()["detail"], name
        assert "secret" not in refused.text
    large = client.post("/score", files={"file": ("large.png", bytes(loaded["MOST_BYTES"]))})
    assert large.status_code == 413


def test_the_image_of_the_service_is_made_of_files_that_are_there():
    text = (FOLDER / "Dockerfile").read_text(encoding="utf-8")
    copied = [name for line in re.findall(r"^COPY (.*)", text, re.MULTILINE) for name in line.split()[:-1]]
    assert "docs/examples/service.py" in copied and all((REPOSITORY / name).exists() for name in copied)


# Beyond one machine: started in processes of their own, since both leave threads and servers behind


@pytest.mark.parametrize(
    ("name", "needs", "written"),
    [("ray_map_batches.py", "ray", "scored_by_ray"), ("spark_map_in_pandas.py", "pyspark", "scored_by_spark")],
)
def test_a_folder_is_scored_by(name, needs, written, model, tmp_path):
    pytest.importorskip(needs, reason=f"needs {needs}: pip install {needs}")
    images = tmp_path / "images"
    images.mkdir()
    for number in range(2):
        (images / f"{number}.png").write_bytes(png(40 + number))
    (images / "broken.png").write_bytes(b"not an image")
    environment = os.environ | {"ILTM_IMAGES": str(images), "PYTHONPATH": str(REPOSITORY / "src")}
    subprocess.run([sys.executable, FOLDER / name], cwd=tmp_path, env=environment, check=True, timeout=300)
    rows = {Path(row["path"]).name: row for row in pq.read_table(tmp_path / written).to_pylist()}
    pipe = ILTMAnomalyPipeline.from_pretrained(model)
    for image in ("0.png", "1.png"):
        assert rows[image]["score"] == pytest.approx(pipe(images / image)[0].score)
        assert rows[image]["verdict"] == "abnormal" and not rows[image]["error"]
    assert "broken.png" in rows["broken.png"]["error"] and len(rows) == 3
