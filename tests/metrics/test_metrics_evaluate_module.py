"""The `evaluate` module: loads offline, needs no Arrow, works with several processes, leaves the function alone."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from metrics_reference import defect_maps

import iltm_anomaly.metrics as metrics

FOLDER = Path(metrics.__file__).parent / "aupro"


WORKER = """
import sys
import numpy as np
import evaluate
folder, cache, data, index = sys.argv[1:]
arrays = np.load(data)
for name in ("default", "streaming"):
    options = {"num_process": 2, "process_id": int(index), "experiment_id": "test"}
    metric = evaluate.load(folder, name, cache_dir=cache, **options)
    metric.add_batch(predictions=arrays["scores"][int(index)::2], references=arrays["masks"][int(index)::2])
    result = metric.compute()
    print(result and result["aupro"])
"""


@pytest.fixture
def load(tmp_path):
    """`evaluate.load` of our folder, with a data folder of its own."""
    import evaluate

    return lambda *args, **kwargs: evaluate.load(str(FOLDER), *args, cache_dir=str(tmp_path), **kwargs)


def test_loading_and_computing_leaves_the_function_alone(load):
    scores, masks = defect_maps()
    expected = metrics.aupro(scores, masks)
    metric = load()
    for start in range(0, 12, 5):
        metric.add_batch(predictions=scores[start : start + 5], references=masks[start : start + 5])
    assert len(metric) == 12
    result = metric.compute()
    assert result == {"aupro": pytest.approx(expected, abs=1e-12), "n_images": 12, "n_regions": result["n_regions"]}
    assert len(metric) == 0
    assert metric.compute(predictions=scores, references=masks) == result
    import iltm_anomaly.metrics

    assert iltm_anomaly.metrics.aupro(scores, masks) == expected
    assert "iltm_anomaly.metrics.aupro" not in sys.modules


def test_folder_is_no_package_and_no_walk_imports_it():
    import pkgutil

    assert not (FOLDER / "__init__.py").exists()
    assert "aupro" not in [module.name for module in pkgutil.iter_modules(metrics.__path__)]
    for path in FOLDER.parents[1].rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert "metrics.aupro." not in text and "metrics.aupro import" not in text, path


def test_any_shape_and_no_view_of_the_callers_memory(load):
    scores, masks = defect_maps()
    expected = metrics.aupro(scores, masks)
    for name in ("default", "streaming"):
        metric = load(name)
        batch = scores[:6].copy()
        metric.add_batch(predictions=batch, references=masks[:6])
        batch[:] = 0  # a data loader reuses its buffer
        metric.add_batch(predictions=torch.tensor(scores[6:9])[:, None], references=torch.tensor(masks[6:9])[:, None])
        metric.add_batch(predictions=[scores[9], scores[10][None]], references=[masks[9], None])
        metric.add(prediction=scores[11], reference=None)
        assert metric.compute()["aupro"] == pytest.approx(expected, abs=1e-9)
    ragged = [scores[0], scores[1][:30, :20]]
    truths = [masks[0], masks[1][:30, :20]]
    assert metric.compute(predictions=ragged, references=truths)["aupro"] == pytest.approx(
        metrics.aupro(ragged, truths)
    )
    volumes, labels = scores.reshape(3, 4, 64, 64), masks.reshape(3, 4, 64, 64)
    assert load().compute(predictions=volumes, references=labels)["aupro"] == metrics.aupro(volumes, labels)
    nested = load().compute(predictions=scores.tolist(), references=masks.tolist())
    assert nested["aupro"] == pytest.approx(expected, abs=1e-6)


def test_limit_streaming_bound_curve_and_plot(load, tmp_path):
    scores, masks = defect_maps()
    for name in ("default", "streaming"):
        metric = load(name)
        metric.add_batch(predictions=scores, references=masks)
        result = metric.compute(limit=0.1, return_curve=True)
        assert result["aupro"] == pytest.approx(metrics.aupro(scores, masks, 0.1), abs=1e-6)
        assert ("error_bound" in result) == (name == "streaming")
        assert result["fpr"][-1] == result["limit"] == 0.1 and len(result["fpr"]) == len(result["pro"]) <= 1000
        json.dumps(result)
        axes = metric.plot(result, label="ours")
        assert axes.get_xlim() == (0, 0.1)
        axes.figure.savefig(tmp_path / "curve.png")


def test_errors(load):
    scores, masks = defect_maps()
    metric = load()
    with pytest.raises(ValueError, match="no images"):
        metric.compute()
    with pytest.raises(ValueError, match="image 1 is not binary"):
        metric.add_batch(predictions=scores[:2], references=[masks[0], masks[1] * 7])
    assert len(metric) == 0
    with pytest.raises(ValueError, match="unexpected inputs"):
        metric.add_batch(predictions=scores, references=masks, weights=1)
    metric.add_batch(predictions=scores, references=masks)
    with pytest.raises(ValueError, match="limit"):
        metric.compute(limit=0)
    assert len(metric) == 12  # a wrong argument does not lose the images
    with pytest.raises(ValueError, match="configuration"):
        load("other")


def test_two_processes(tmp_path):
    scores, masks = defect_maps()
    data = tmp_path / "data.npz"
    np.savez(data, scores=scores, masks=masks)
    commands = [[sys.executable, "-c", WORKER, FOLDER, tmp_path / "cache", data, str(i)] for i in (0, 1)]
    processes = [subprocess.Popen([str(part) for part in command], stdout=subprocess.PIPE) for command in commands]
    outputs = [process.communicate(timeout=80)[0].decode().split() for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    expected = metrics.aupro(scores, masks)
    assert [float(value) for value in outputs[0]] == pytest.approx([expected] * 2, abs=1e-9)
    assert outputs[1] == ["None", "None"]
    assert not list((tmp_path / "cache").rglob("*.npz*"))


def test_processes_in_sequence_timeouts_and_leftovers(load):
    scores, masks = defect_maps()
    options = {"num_process": 2, "experiment_id": "sequence"}
    worker = load(process_id=1, **options)
    worker.add_batch(predictions=scores[:6], references=masks[:6])
    assert worker.compute() is None
    worker = load(process_id=1, **options)  # a new run: what the last one left is no part of it
    worker.add_batch(predictions=scores[6:], references=masks[6:])
    main = load(process_id=0, timeout=0.1, **options)
    main.add_batch(predictions=scores[:6], references=masks[:6])
    assert worker.compute() is None
    worker.add_batch(predictions=scores[6:], references=masks[6:])
    assert worker.compute() is None  # again, before process 0 has read the first
    for _ in range(2):
        result = main.compute()
        assert result["n_images"] == len(scores)
        assert result["aupro"] == pytest.approx(metrics.aupro(scores, masks), abs=1e-12)
        main.add_batch(predictions=scores[:6], references=masks[:6])
    with pytest.raises(ValueError, match="process 1 did not call compute"):
        main.compute()


def test_the_space_app_scores_files(tmp_path):
    from PIL import Image

    spec = importlib.util.spec_from_file_location("aupro_space_app", FOLDER / "app.py")
    app = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(app)
    scores, masks = defect_maps(n=3)
    maps, truths = [], []
    for i in range(3):
        np.save(tmp_path / f"map{i}.npy", scores[i])
        Image.fromarray(masks[i].astype(np.uint8) * 255).save(tmp_path / f"mask{i}.png")
        maps.append(str(tmp_path / f"map{i}.npy"))
        truths.append(str(tmp_path / f"mask{i}.png"))
    text, figure = app.score(maps, truths, 0.3)
    assert text.endswith(f"{metrics.aupro(scores, masks):.6f}") and figure is not None
    assert app.score(maps, truths[:2])[0].startswith("Error: 3 score maps but 2 masks")
    assert app.score(None, None)[0].startswith("Error")


def test_the_space_card_is_complete():
    head, body = (FOLDER / "README.md").read_text(encoding="utf-8").split("---\n", 2)[1:]
    fields = yaml.safe_load(head)
    assert (
        fields["sdk"] == "gradio" and fields["app_file"] == "app.py" and {"evaluate", "metric"} <= set(fields["tags"])
    )
    for heading in ("Description", "How to use", "Inputs", "Output values", "Limitations", "Citation"):
        assert f"# {heading}" in body
    assert "iltm-anomaly" in (FOLDER / "requirements.txt").read_text().split()


def test_import_is_light():
    code = (
        "import sys, iltm_anomaly.metrics as m\n"
        "print([n for n in ('torch', 'evaluate', 'datasets', 'matplotlib', 'scipy') if n in sys.modules])\n"
        "import numpy as np; m.aupro(np.eye(4)[None], np.eye(4)[None]); print('torch' in sys.modules)"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output.split("\n")[:2] == ["[]", "False"]
