"""Several processes, started as a user starts them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

SCRIPT = Path(__file__).parents[2] / "scripts" / "train.py"
STAGE = {"epochs": 3, "batch_size": 4, "learning_rate": 2e-3}
RECIPE = {
    "name": "launched",
    "image_size": 16,
    "stage1": STAGE,
    "stage2": STAGE,
    "rounds": {"rounds": 1, "code_copies": 2, "outlier_scale": 1.0},
    "vqvae": {"channels": [8], "num_res_blocks": 1, "vocab_size": 16, "embedding_dim": 4, "dropout": 0.0},
    "prior": {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "head_dim": 8, "dropout": 0.0},
    "inference": {"num_samples": 1, "num_dropout_passes": 1, "num_contexts": 0},
}


def launch(launcher, folder, output, data=None):
    recipe = folder / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(RECIPE))
    options = ["--data", str(data or folder / "data"), "--preset", str(recipe), "--output", str(output), "--cpu"]
    return subprocess.run(
        [sys.executable, "-m", *launcher, str(SCRIPT), *options],
        capture_output=True,
        text=True,
        timeout=240,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


ONE = ["accelerate.commands.launch", "--cpu", "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend"]
ONE = [*ONE, "no", "--num_processes"]
TWO = ["torch.distributed.run", "--standalone", "--nproc_per_node", "2"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("launch")
    (folder / "data").mkdir()
    generator = np.random.default_rng(0)
    for number in range(8):
        blocks = generator.integers(0, 256, (4, 4, 3), dtype=np.uint8)
        Image.fromarray(np.kron(blocks, np.ones((4, 4, 1), np.uint8))).save(folder / "data" / f"{number}.png")
    (folder / "data" / "9.png").write_bytes(b"no image")
    return folder


def rounds(output):
    return json.loads((output / "model" / "training_report.json").read_text())["rounds"]


def test_two_processes_of_torchrun_train_what_one_of_accelerate_does(folder, tmp_path):
    two = launch(TWO, folder, tmp_path / "two")
    assert two.returncode == 0, two.stderr
    assert "training on 2 processes (cpu, 1 threads each), float32" in two.stderr
    for once in ("left out: ", "round 1: masked", "training on"):
        assert two.stderr.count(once) == 1, two.stderr
    assert two.stdout.count("pipeline saved") == two.stdout.count("next: iltm-anomaly detect") == 1
    one = launch([*ONE, "2"], folder, tmp_path / "one")
    assert one.returncode == 0, one.stderr
    assert "training on 1 process (cpu" in one.stderr and "use torchrun --nproc_per_node" in one.stderr
    for first, second in zip(rounds(tmp_path / "one"), rounds(tmp_path / "two"), strict=True):
        assert first["loss"] == pytest.approx(second["loss"], abs=1e-4)
        assert first["masked_fraction"] == pytest.approx(second["masked_fraction"], abs=0.02)
    assert rounds(tmp_path / "one")[1]["masked_fraction"] > 0


def test_an_error_of_the_main_process_ends_all(folder, tmp_path):
    ended = launch(TWO, folder, tmp_path / "run", data=folder / "nowhere")
    assert ended.returncode != 0
    assert "iltm-anomaly train: no such folder: " in ended.stderr
    assert not (tmp_path / "run" / "run.json").exists()
