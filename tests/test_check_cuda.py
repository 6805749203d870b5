"""`scripts/check_cuda.py` on the CPU, which finds what it finds itself."""

import copy
import importlib.util
import json
from pathlib import Path

import pytest

PATH = Path(__file__).resolve().parents[1] / "scripts" / "check_cuda.py"
SPEC = importlib.util.spec_from_file_location("check_cuda", PATH)
assert SPEC is not None and SPEC.loader is not None
check_cuda = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(check_cuda)


def test_the_cpu_finds_what_the_cpu_finds_and_what_lies_outside_is_named(tmp_path, monkeypatch, capsys):
    words = ["--device", "cpu", "--output", str(tmp_path), "--images", "4", "--presets", "tiny", "tiny-features"]
    allowed = check_cuda.TOLERANCES
    anything = dict.fromkeys(allowed["same model"], 1.0)  # of so few images
    monkeypatch.setattr(check_cuda, "WAYS", [("fp16", 2)])  # one way is enough, and a CPU goes it in float32
    never = {"pixel_auroc": -1.0, "image_auroc": 1.0}
    monkeypatch.setattr(check_cuda, "TOLERANCES", {"same model": anything, "own model": never})
    assert check_cuda.main(words) == 1

    document = json.loads((tmp_path / "check_cuda.json").read_text())
    rows, printed = document["rows"], capsys.readouterr().out
    own = [row for row in rows if row.get("kind") == "own model"]
    assert [row["preset"] for row in rows] == ["tiny"] * 4 + ["tiny-features"] * 4 and own == [rows[3], rows[7]]
    where = "loading threads: {}, scored on cpu in float32: pixel_auroc differ by 0.0000, allowed -1.0"
    in_half = "tiny, trained on cpu in float32 (float16 asked), " + where.format(2)
    assert document["broken"] == [in_half, "tiny-features, trained on cpu in float32, " + where.format(1)]
    assert printed.endswith("\n".join(document["broken"]) + "\n")
    table = (tmp_path / "check_cuda.md").read_text()
    assert table in printed and len(table.splitlines()) == 2 + len(rows)

    again, half = rows[1:3]
    assert set(again["differences"].values()) == {0} and half["scored"]["dtype"] == "float16"
    assert half["differences"]["scores"] > 0
    assert all(set(row["differences"].values()) == {0} for row in own)

    monkeypatch.setattr(check_cuda, "TOLERANCES", allowed)
    cases = copy.deepcopy(rows[:2])
    assert check_cuda.broken(cases) == []
    cases[0]["takes_bfloat16"], cases[1]["differences"]["maps"] = True, float("nan")
    assert [line.rpartition(": ")[2] for line in check_cuda.broken(cases)] == [
        "a pipeline takes bfloat16",
        "maps differ by nan, allowed 0.02",
    ]


def test_a_machine_without_a_gpu_is_told(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(SystemExit):
        check_cuda.main(["--output", str(tmp_path / "new")])
    assert "--device cpu compares the CPU with itself" in capsys.readouterr().err and not (tmp_path / "new").exists()
