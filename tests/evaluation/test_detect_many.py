"""`detect` on many images: whatever they are named by, however often it is interrupted, over however many processes."""

import io
import json
import signal
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch.multiprocessing
from PIL import Image
from tiny_models import tiny_pipeline
from two_processes import joined

from iltm_anomaly.cli import main
from iltm_anomaly.evaluation import detect as module
from iltm_anomaly.evaluation.detect import detect
from iltm_anomaly.evaluation.inputs import list_inputs
from iltm_anomaly.evaluation.regions import regions_of
from iltm_anomaly.evaluation.rows import COLUMNS, JOURNAL
from iltm_anomaly.pipeline import ILTMAnomalyPipeline

IMAGES = 11
THRESHOLD = 80.0  # between the scores of `folder`


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("model")
    tiny_pipeline(score_threshold=THRESHOLD).save_pretrained(path)
    return path


@pytest.fixture
def pipeline(model) -> ILTMAnomalyPipeline:
    return ILTMAnomalyPipeline.from_pretrained(model)


def some_image(path: Path, seed: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(seed)
    blocks = generator.integers(0, 256, (4, 5, 3), dtype=np.uint8) // (1 + seed % 3 * 4)
    Image.fromarray(np.kron(blocks, np.ones((8, 8, 1), np.uint8))).save(path)
    return path


@pytest.fixture
def folder(tmp_path) -> Path:
    """`IMAGES` images in two folders, of which one has a name twice, and a file that is none."""
    for number in range(IMAGES - 1):
        some_image(tmp_path / "new" / f"shift_{number % 2}" / f"{number // 2}.png", number)
    (tmp_path / "new" / "shift_1" / "broken.png").write_bytes(b"no image")
    return tmp_path / "new"


def untimed(rows: list[dict]) -> list[dict]:
    return [{name: row[name] for name in COLUMNS if name != "seconds"} for row in rows]


def stored(output: Path) -> list[dict]:
    return untimed(pq.read_table(output / "results.parquet").to_pylist())


def drawn(output: Path) -> set[str]:
    return {
        str(path.relative_to(output))
        for name in ("overlays", "maps", "masks", "healed")
        for path in output.glob(f"{name}/*")
    }


KILLED = """
import os, signal, sys
from pathlib import Path
from iltm_anomaly.evaluation import rows
from iltm_anomaly.evaluation.detect import detect
from iltm_anomaly.pipeline import ILTMAnomalyPipeline

model, folder, output, count, part = sys.argv[1:]
add, left = rows.add_row, [int(count)]

def add_or_die(*arguments):
    if not left[0]:
        with open(Path(output, rows.JOURNAL.format(0)), "a") as file:
            file.write('{"path": "half a row"'[: int(part)])
        os.kill(os.getpid(), signal.SIGKILL)
    left[0] -= 1
    add(*arguments)

rows.add_row = add_or_die
detect(ILTMAnomalyPipeline.from_pretrained(model), [folder], Path(output), batch_size=4, show_progress=False)
"""


def test_a_run_that_is_killed_goes_on_without_a_lost_or_doubled_row(
    model, pipeline, folder, tmp_path, monkeypatch, caplog
):
    whole, output = tmp_path / "whole", tmp_path / "out"
    expected = detect(pipeline, [folder], whole, batch_size=4, show_progress=False)
    assert len(expected) == IMAGES and 0 < sum(row["abnormal"] == 1 for row in expected) < IMAGES - 1
    for count, part in ((2, 13), (4, 0)):  # after so many rows, with so many letters of the next
        command = [sys.executable, "-c", KILLED, str(model), str(folder), str(output), str(count), str(part)]
        assert subprocess.run(command, timeout=120).returncode == -signal.SIGKILL
    scored = []
    monkeypatch.setattr(module, "_row", lambda *a, real=module._row: scored.append(a[2]) or real(*a))
    with caplog.at_level("INFO"):
        rows = detect(pipeline, [folder], output, batch_size=4, show_progress=False)
    assert len(scored) == IMAGES - 6 and "6 of 11 rows are there" in caplog.text
    assert untimed(rows) == untimed(expected) == stored(output) == stored(whole)
    for name in drawn(whole) | drawn(output):
        assert (output / name).read_bytes() == (whole / name).read_bytes()
    once = (output / "results.csv").read_text()
    assert (
        detect(pipeline, [folder], output, show_progress=False) == rows and len(scored) == IMAGES - 6 + 1
    )  # that with an error
    assert (output / "results.csv").read_text() == once


def test_an_interruption_leaves_tables_of_what_there_is(pipeline, folder, tmp_path, monkeypatch):
    def interrupted(*arguments, real=module._row):
        if arguments[2].path.name == "2.png":
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(module, "_row", interrupted)
    with pytest.raises(KeyboardInterrupt):
        detect(pipeline, [folder], tmp_path / "out", show_progress=False)
    assert [Path(row["path"]).name for row in stored(tmp_path / "out")] == ["0.png", "1.png"]


def test_images_that_are_new_or_have_changed_are_scored_and_no_others(pipeline, folder, tmp_path, monkeypatch):
    detect(pipeline, [folder], tmp_path / "out", show_progress=False)
    some_image(folder / "shift_0" / "1.png", 99)
    some_image(folder / "a" / "new.png", 98)
    (folder / "shift_0" / "4.png").unlink()
    scored = []
    monkeypatch.setattr(module, "_row", lambda *a, real=module._row: scored.append(a[2].path.name) or real(*a))
    detect(pipeline, [folder], tmp_path / "out", show_progress=False)
    assert scored == ["new.png", "1.png", "broken.png"]
    detect(pipeline, [folder], tmp_path / "whole", show_progress=False)
    assert stored(tmp_path / "out") == stored(tmp_path / "whole")
    assert drawn(tmp_path / "out") == drawn(tmp_path / "whole")


def test_another_threshold_or_model_starts_anew_and_leaves_nothing_of_the_one_before(
    pipeline, folder, tmp_path, caplog
):
    detect(pipeline, [folder], tmp_path / "out", show_progress=False)
    mine = tmp_path / "out" / "overlays" / "mine.png"
    mine.touch()
    pipeline.settings.score_threshold = 1e6
    rows = detect(pipeline, [folder / "shift_1"], tmp_path / "out", show_progress=False)
    assert "score_threshold was 80, is 1e+06): starting anew" in caplog.text
    assert {row["abnormal"] for row in rows if not row["error"]} == {0} and len(rows) == 6
    assert drawn(tmp_path / "out") - {"overlays/mine.png"} == {
        row[name] for row in rows for name in ("overlay", "map", "mask") if row[name]
    }
    assert mine.exists()
    next(iter(pipeline.prior.parameters())).data += 1e-3
    detect(pipeline, [folder / "shift_1"], tmp_path / "out", save_maps=False, show_progress=False)
    assert "(model was " in caplog.text and drawn(tmp_path / "out") == {"overlays/mine.png"}


def in_a_process(rank, model, folder, output, store):
    with joined(rank, store):
        rows = detect(ILTMAnomalyPipeline.from_pretrained(model), [folder], output, batch_size=3, show_progress=False)
    (output / f"rows_{rank}.json").write_text(json.dumps(untimed(rows)))


def test_two_processes_give_the_rows_of_one(model, pipeline, folder, tmp_path):
    expected = untimed(detect(pipeline, [folder], tmp_path / "one", batch_size=3, show_progress=False))
    output = tmp_path / "two"
    output.mkdir()
    torch.multiprocessing.spawn(in_a_process, (model, folder, output, tmp_path / "store"), nprocs=2)
    assert [json.loads((output / f"rows_{rank}.json").read_text()) for rank in (0, 1)] == [expected, expected]
    assert stored(output) == stored(tmp_path / "one") and drawn(output) == drawn(tmp_path / "one")
    lines = [(output / JOURNAL.format(rank)).read_text().count("\n") - 1 for rank in (0, 1)]
    assert sorted(lines) == [5, 6]  # four blocks, two for each
    assert untimed(detect(pipeline, [folder], output, show_progress=False)) == expected
    assert not (output / JOURNAL.format(1)).exists()


def test_inputs_of_all_kinds_are_one_list(folder, tmp_path, monkeypatch):
    def names(*inputs):
        return [str(one.path.relative_to(tmp_path)) for one in list_inputs(inputs)]

    assert names(f"{folder}/*/0.png") == ["new/shift_0/0.png", "new/shift_1/0.png"]
    assert names(f"{tmp_path}/**/shift_1/[34].png") == ["new/shift_1/3.png", "new/shift_1/4.png"]
    with pytest.raises(ValueError, match=r"no file fits the pattern .*\.tif"):
        names(f"{folder}/*.tif")
    given = f"{folder}/shift_1/0.png\n\n{folder}/shift_0\r\n{folder}/shift_1/0.png"
    monkeypatch.setattr(sys, "stdin", io.StringIO(given))
    assert names("-", folder / "shift_0" / "1.png") == [
        "new/shift_1/0.png",
        *(f"new/shift_0/{n}.png" for n in range(5)),
    ]
    with pytest.raises(ValueError, match="no image to score"):
        names("-")  # it has been read
    (folder / "shift_0" / "[1].png").touch()
    assert names(folder / "shift_0" / "[1].png") == ["new/shift_0/[1].png"]


@pytest.mark.parametrize("saved", [True, False], ids=["saved", "parquet"])
def test_a_data_set_is_scored_row_by_row(pipeline, folder, tmp_path, saved):
    paths = [str(folder / "shift_0" / f"{number}.png") for number in range(3)]
    contents = [{"bytes": Path(path).read_bytes(), "path": None} for path in paths]
    rows = datasets.Dataset.from_dict({"picture": [*contents, None]}).cast_column("picture", datasets.Image())
    data = tmp_path / "data"
    if saved:
        rows.save_to_disk(data)
    else:
        data.mkdir()
        rows.to_parquet(data / "train.parquet")
    found = detect(pipeline, [data], tmp_path / "out", show_progress=False)
    assert [row["path"] for row in found] == [f"{data}/train/{number}" for number in range(4)]
    expected = detect(pipeline, paths, tmp_path / "files", show_progress=False)
    assert [row["score"] for row in found[:3]] == [row["score"] for row in expected]
    assert "the row holds none" in found[3]["error"] and (tmp_path / "out" / found[1]["map"]).name.startswith(
        "train_1_"
    )


def test_tables_that_detect_has_written_make_no_data_set_of_a_folder(pipeline, folder, tmp_path):
    for _ in range(2):
        rows = detect(pipeline, [folder], folder / "found", show_progress=False)
        assert len(rows) == IMAGES and rows[0]["path"].endswith("shift_0/0.png")


def test_what_is_neither_here_nor_on_the_hub_is_told(tmp_path, monkeypatch, capsys, model):
    monkeypatch.chdir(tmp_path)
    assert main(["detect", str(model), "nobody/nothing", "--output", "out"]) == 2
    assert "nobody/nothing is neither a folder here" in capsys.readouterr().err
    (tmp_path / "nobody").mkdir()
    assert main(["detect", str(model), "nobody/nothing", "--output", "out"]) == 2
    assert "no such file" in capsys.readouterr().err


def test_a_row_tells_where_what_is_abnormal_lies(pipeline, folder, tmp_path):
    rows = detect(pipeline, [folder], tmp_path / "out", show_progress=False)
    row = next(row for row in rows if row["abnormal"])
    mask = np.array(Image.open(tmp_path / "out" / row["mask"]))
    assert mask.dtype == bool and mask.shape == (32, 40) and mask.sum() == row["abnormal_pixels"] == sum(row["areas"])
    left, top, right, bottom = row["boxes"][0]
    cells = mask[top:bottom, left:right]
    assert cells.any(0).all() or cells.any(1).all()
    assert cells[0].any() and cells[-1].any() and cells[:, 0].any() and cells[:, -1].any()
    assert 0 <= row["unlikely_share"] <= 1 and row["seconds"] > 0


def test_regions_are_boxes_by_falling_area():
    mask = np.zeros((10, 12), bool)
    mask[0, 0] = mask[1, 1] = True  # diagonal: one region
    mask[4:7, 3:8] = True
    assert regions_of(mask) == ([[3, 4, 8, 7], [0, 0, 2, 2]], [15, 2])
    volume = np.zeros((4, 5, 6), bool)
    volume[1:3, 2, 3:6] = True
    assert regions_of(volume) == ([[1, 2, 3, 3, 3, 6]], [6])
    assert regions_of(np.zeros((3, 3), bool)) == ([], [])


def test_a_large_photo_has_a_small_map(pipeline, tmp_path):
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)).resize((400, 300))
    photo.save(tmp_path / "photo.png")
    row = detect(pipeline, [tmp_path / "photo.png"], tmp_path / "out", show_progress=False)[0]
    values = np.load(tmp_path / "out" / row["map"])
    assert values.shape == (32, 32) and Image.open(tmp_path / "out" / row["mask"]).size == (400, 300)
    assert values.max() == pytest.approx(row["score"], rel=0.1)


def test_progress_is_for_terminals(pipeline, folder, tmp_path, capsys):
    detect(pipeline, [folder], tmp_path / "out")
    assert "scoring" not in capsys.readouterr().err
