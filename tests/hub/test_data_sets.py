"""Data sets as they lie on the Hub, through the real libraries, against a Hub on loopback."""

import json
import sys
from pathlib import Path

import pytest
from hub_server import File, Repository

sys.path.append(str(Path(__file__).parents[1] / "data"))
from trees import make_category

from iltm_anomaly.synthetic.dataset import generate_dataset, write_mvtec_tree


@pytest.fixture
def tree(hub, tmp_path) -> Path:
    """Two categories here, and the same in the repository org/parts, file by file."""
    root = tmp_path / "parts"
    make_category(root / "cup", good=3, test_good=1, defects={"crack": 2})
    make_category(root / "lid", good=2, test_good=1, defects={"stain": 1})
    repository = Repository("dataset")
    files = {path.relative_to(root).as_posix(): File(path.read_bytes(), False) for path in root.rglob("*.png")}
    repository.commit(files | {"README.md": File(b"# Parts\n", False)}, "main")
    hub.repositories["org/parts"] = repository
    return root


READ = """
import json, sys
from iltm_anomaly.data.images import readable_images
from iltm_anomaly.data.mvtec import load_mvtec
from iltm_anomaly.data.streaming import stream_images
def shown(name):
    return [[row["image"].tobytes().hex(), row["mask"] and row["mask"].tobytes().hex(), row["label"], row["defect"]]
        for split in load_mvtec(name, "cup").values() for row in split]
def streamed(name):
    return [image.tobytes().hex() for _, image in readable_images(stream_images(name, "cup"))]
here = sys.argv[1]
print(json.dumps({"equal": shown("org/parts") == shown(here), "masks": sum(row[1] is not None for row in shown("org/parts")),
    "streamed": sorted(streamed("org/parts")) == sorted(row[0] for row in shown(here)[:3])}))
"""


def test_a_tree_of_mvtec_in_a_repository_has_its_masks_and_is_streamed_by_category(hub, tree, run_fresh, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "0")
    found = json.loads(run_fresh(READ, tree).splitlines()[-1])
    assert found == {"equal": True, "masks": 2, "streamed": True}
    asked = [path for method, path in hub.requests if method == "GET" and "/resolve/" in path]
    assert not any("/lid/" in path for path in asked), "of the other category nothing is read"


TRAIN = """
import json, sys
from hashlib import sha256
from pathlib import Path
from iltm_anomaly.data.mvtec import load_mvtec
from iltm_anomaly.training.train import TrainArguments, train
tree, runs = sys.argv[1], Path(sys.argv[2])
load_mvtec(tree).push_to_hub("org/table")
ways = {"folder": (tree, {}), "tree": ("org/tree", {}), "table": ("org/table", {}),
    "streamed tree": ("org/tree", {"streaming": True}), "streamed table": ("org/table", {"streaming": True})}
for way, (data, options) in ways.items():
    model = train(TrainArguments(data, runs / way, preset="tiny-features", rounds=1, cpu=True, show_progress=False, **options))
    weights = [sha256(path.read_bytes()).hexdigest() for path in sorted(model.rglob("*.safetensors"))]
    print(json.dumps([way, weights, json.loads((model / "calibration.json").read_text())]))
"""


def test_however_images_lie_on_the_hub_they_train_to_the_same_bits(hub, run_fresh, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "0")
    images = {"num_train": 6, "num_test_good": 1, "num_test_defective": 2, "contamination": 0}
    folder = write_mvtec_tree(generate_dataset(kind="part", size=64, seed=0, **images), tmp_path, "part")
    repository = Repository("dataset")
    files = {path.relative_to(folder).as_posix(): File(path.read_bytes(), False) for path in folder.rglob("*.png")}
    repository.commit(files, "main")
    hub.repositories["org/tree"] = repository
    said = run_fresh(TRAIN, folder, tmp_path / "runs")
    found = {way: bits for way, *bits in map(json.loads, said.splitlines()[-5:])}
    assert len(found) == 5 and len(found["folder"][0]) == 3
    assert {way: bits == found["folder"] for way, bits in found.items()} == dict.fromkeys(found, True)
