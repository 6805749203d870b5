# ruff: noqa: E402
"""`make chaos`: train, detect, benchmark and push are killed at random moments, and meet other faults. Continued, each must end
with what it makes undisturbed, bit for bit.

    python tests/chaos.py --kills 200 --seed 5

Every sitting is a child that is forked with all imports done; its own error, if it has one, must be one that `main` tells.
"""

import argparse
import collections
import contextlib
import csv
import hashlib
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path += [str(HERE / "hub"), str(HERE / "training")]
os.environ.setdefault("OMP_NUM_THREADS", "1")

from hub_server import start_hub

HUB, SERVER = start_hub()
SERVER.handle_error = lambda request, address: None  # type: ignore[method-assign] # clients that are killed hang up
# before the first import of huggingface_hub, which reads them once
os.environ |= {"HF_ENDPOINT": HUB.url, "HF_TOKEN": "hf_owner", "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
os.environ |= {"NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}

import numpy as np
import test_survival
from PIL import Image
from tiny_models import part_tree, tiny_pipeline

from iltm_anomaly.cli import main, quiet_libraries
from iltm_anomaly.evaluation.detect import detect
from iltm_anomaly.evaluation.rows import COLUMNS
from iltm_anomaly.hub.upload import plan_upload, upload
from iltm_anomaly.locks import InUseError
from iltm_anomaly.synthetic.dataset import generate_dataset, write_mvtec_tree
from iltm_anomaly.training.train import TrainArguments, train

TOLD = (ValueError, RuntimeError, OSError, MemoryError)
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
REPO = "org/chaos"


def digest(folder: Path, pattern: str) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob(pattern))
        if path.is_file() and not path.name.startswith(".")
    }


class Codes:
    """Training on codes; a checkpoint after every step."""

    def __init__(self, root: Path):
        pass

    def run(self, folder: Path) -> None:
        test_survival.train(folder, resume=(folder / "run.json").exists())

    def check(self, folder: Path) -> None:
        """What must hold at any moment."""
        for path in (*folder.glob("run.json"), *folder.glob("model/*.json")):
            json.loads(path.read_text())

    def made(self, folder: Path) -> Any:
        assert not list(folder.rglob("*.partial"))
        return digest(folder, "*.safetensors")


class OnFeatures(Codes):
    """Training on features."""

    def __init__(self, root: Path):
        self.data = str(part_tree(root / "data"))

    def run(self, folder: Path) -> None:
        resume = (folder / "run.json").exists()
        train(TrainArguments(self.data, folder, preset="tiny-features", rounds=1, resume=resume, cpu=True))


class Detecting:
    """Detection on a folder."""

    def __init__(self, root: Path):
        self.images, self.pipeline = root / "images", tiny_pipeline(score_threshold=3.0)
        self.images.mkdir(parents=True)
        for number, image in enumerate(test_survival.images(24)):
            Image.fromarray(image).save(self.images / f"{number:02d}.png")

    def run(self, folder: Path) -> None:
        detect(self.pipeline, [self.images], folder, batch_size=4, show_progress=False)

    def check(self, folder: Path) -> None:
        if (folder / "results.csv").is_file():
            with open(folder / "results.csv", newline="", encoding="utf-8") as file:
                rows = list(csv.reader(file))
            assert all(len(row) == len(COLUMNS) for row in rows), f"a broken row: {rows[-1]}"

    def made(self, folder: Path) -> Any:
        with open(folder / "results.csv", newline="", encoding="utf-8") as file:
            rows = [row | {"seconds": None} for row in csv.DictReader(file)]
        return digest(folder, "*.npy") | digest(folder, "*.png") | {"rows": rows}


class Benchmarking:
    """A benchmark of a method that needs no training."""

    def __init__(self, root: Path):
        settings = {"num_train": 8, "num_test_good": 4, "num_test_defective": 4, "contamination": 0}
        write_mvtec_tree(generate_dataset(kind="part", size=64, **settings), root / "data", "part")
        words = "benchmark --categories part --methods mean_image --contamination 0 --preset tiny --cpu --seeds 0 1"
        self.words = [*words.split(), "--data", str(root / "data")]

    def run(self, folder: Path) -> None:
        if main(["--debug", *self.words, "--output", str(folder)]) == 130:
            raise KeyboardInterrupt  # which `main` has made a line of

    def check(self, folder: Path) -> None:
        for path in folder.glob("cells/*.json"):
            json.loads(path.read_text())

    def made(self, folder: Path) -> Any:
        made: dict[str, Any] = {}
        for path in sorted(folder.glob("cells/*.json")):
            results = json.loads(path.read_text())["results"]
            made[path.name] = [result | {"seconds_per_image": None} for result in results]
            with np.load(path.with_suffix(".npz")) as arrays:  # the file itself holds the time
                made[path.stem] = {name: hashlib.sha256(array.tobytes()).hexdigest() for name, array in arrays.items()}
        return made


class Pushing:
    """A push to a server on this machine."""

    def __init__(self, root: Path):
        self.model = root / "model"
        tiny_pipeline(score_threshold=3.0).save_pretrained(self.model)

    def run(self, folder: Path) -> None:
        upload(plan_upload(self.model, f"{REPO}{folder.name}"))

    def tree(self, folder: Path) -> dict[str, str]:
        repository = HUB.repositories.get(f"{REPO}{folder.name}")
        commit = repository.branches.get("main") if repository else None
        files = repository.commits[commit] if commit else {}
        return {
            path: hashlib.sha256(file.content).hexdigest() for path, file in files.items() if path != ".gitattributes"
        }

    def check(self, folder: Path) -> None:
        names, whole = set(self.tree(folder)), set(plan_upload(self.model, REPO).files)
        assert not names or whole <= names, f"half of it is visible: {sorted(names)}"

    def made(self, folder: Path) -> Any:
        return {path: found for path, found in self.tree(folder).items() if path != "README.md"}


JOBS = {"train": Codes, "features": OnFeatures, "detect": Detecting, "benchmark": Benchmarking, "push": Pushing}
SHARES = {"train": 0.4, "features": 0.1, "detect": 0.2, "benchmark": 0.1, "push": 0.2}  # of the kills


def start(job: Any, folder: Path, prepare: Callable[[], None] = lambda: None) -> int:
    """A sitting in a child; it ends with 0, with 1 and a line in `folder`.error, or with 2 where the error is none of ours."""
    said = folder.with_name(f"{folder.name}.error")
    if pid := os.fork():
        return pid
    status = 2
    try:
        null = os.open(os.devnull, os.O_RDWR)
        os.dup2(null, 1)
        os.dup2(null, 2)
        prepare()
        job.run(folder)
        status = 0
    except KeyboardInterrupt:
        status = 130
    except BaseException as error:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
        said.write_text(f"{type(error).__name__}: {error}")
        status = 1 if isinstance(error, TOLD) else 2
    finally:
        os._exit(status)


def end(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def finish(name: str, job: Any, folder: Path, whole: Any) -> None:
    """Continues to the end, and compares."""
    if status := end(start(job, folder)):
        said = folder.with_name(f"{folder.name}.error").read_text() if status in (1, 2) else ""
        raise AssertionError(f"{name} did not continue: {status} {said}")
    job.check(folder)
    assert job.made(folder) == whole, f"{name} ended with something else"


def kill(
    name: str, job: Any, root: Path, whole: Any, seconds: float, kills: int, draw: random.Random
) -> dict[str, int]:
    """Sittings that are killed at random moments, up to four on the same folder before it is finished; counts by signal."""
    counts: collections.Counter[str] = collections.Counter()
    runs = 0
    while sum(counts.values()) < kills:
        folder = root / f"{name}{runs}"
        runs += 1
        for _ in range(4):
            pid, chosen = start(job, folder), draw.choice(SIGNALS)
            time.sleep(draw.uniform(0, seconds))
            os.kill(pid, chosen)  # one that has ended is waited for below
            status = end(pid)
            job.check(folder)
            if status in (0, 1, 2):
                assert status == 0, folder.with_name(f"{folder.name}.error").read_text()
                break
            counts[chosen.name] += 1
        finish(name, job, folder, whole)
        shutil.rmtree(folder, ignore_errors=True)
    return dict(counts) | {"runs": runs}


def small_files(most: int) -> Callable[[], None]:
    """A disk on which a file can have no more than `most` bytes."""

    def prepare() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, resource.RLIM_INFINITY))

    return prepare


def clock_set_back() -> None:
    ticks = iter(range(10**9, 0, -60))
    time.time = lambda: float(next(ticks))  # type: ignore[assignment]


def faults(name: str, job: Any, root: Path, whole: Any, draw: random.Random) -> dict[str, int]:
    """Full disks, two at once, and a clock that runs backwards; counts of each."""
    told = 0
    for number in range(8):
        folder = root / f"{name}_full{number}"
        status = end(start(job, folder, small_files(int(2 ** draw.uniform(0, 17)))))
        assert status in (0, 1), f"full disk: {folder.with_name(f'{folder.name}.error').read_text()}"
        told += status
        with contextlib.suppress(AssertionError) if name == "detect" else contextlib.nullcontext():
            job.check(folder)  # a row of detect may be cut off where the disk was full
        finish(name, job, folder, whole)
    for number in range(3):
        folder = root / f"{name}_two{number}"
        pids = [start(job, folder), start(job, folder)]
        ended = sorted(end(pid) for pid in pids)
        said = folder.with_name(f"{folder.name}.error")
        assert ended in ([0, 0], [0, 1]), f"two at once: {ended} {said.read_text()}"
        assert ended == [0, 0] or InUseError.__name__ in said.read_text() or "already holds" in said.read_text()
        finish(name, job, folder, whole)
    folder = root / f"{name}_clock"
    assert end(start(job, folder, clock_set_back)) == 0
    finish(name, job, folder, whole)
    return {"full disks": 8, "of these told": told, "two at once": 3, "clock set back": 1}


def files_removed(root: Path, draw: random.Random) -> dict[str, int]:
    """Inputs of detect are removed while it reads them: each file has a row, with a score or with the reason why it has none."""
    for number in range(8):
        job = Detecting(root / f"removed{number}")
        folder = root / f"removed{number}_out"
        pid = start(job, folder)
        for path in draw.sample(sorted(job.images.iterdir()), 12):
            time.sleep(draw.uniform(0, 0.1))
            path.unlink()
        assert end(pid) == 0
        job.check(folder)
        with open(folder / "results.csv", newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        assert rows and all(bool(row["score"]) != bool(row["error"]) for row in rows)
    return {"files removed": 8 * 12}


def run() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--jobs", nargs="+", choices=JOBS, default=list(JOBS))
    arguments = parser.parse_args()
    print(f"seed {arguments.seed}", flush=True)
    draw = random.Random(arguments.seed)
    quiet_libraries()
    with tempfile.TemporaryDirectory(prefix="chaos") as temporary:
        root = Path(temporary)
        for name in arguments.jobs:
            started = time.monotonic()
            (root / name).mkdir()
            job = JOBS[name](root / name)
            first = root / f"{name}_whole"
            began = time.monotonic()
            assert end(start(job, first)) == 0, first.with_name(f"{first.name}.error").read_text()
            seconds, whole = time.monotonic() - began, job.made(first)
            assert whole
            found = kill(name, job, root, whole, seconds, round(arguments.kills * SHARES[name]), draw)
            found |= faults(name, job, root, whole, draw) if name != "push" else {}
            found |= files_removed(root, draw) if name == "detect" else {}
            taken = round(time.monotonic() - started, 1)
            print(json.dumps({"job": name, "one run": round(seconds, 2), **found, "seconds": taken}), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(run())
