"""`detect` on many images: memory, images per second, and whether interrupted and shared runs give the same rows.

    python scripts/benchmarks/bench_detect.py MODEL DATA/mvtec DATA/deeppcb --output runs/bench_detect.json

Runs the command line four times over: on an eighth of the images and on all of them, each with its largest resident set; on all
of them, killed (SIGKILL) after a quarter, a half and three quarters of the rows and continued; on an eighth, in two processes.
Speed is that between the first two, in images a second of processor time; of another effort with `--effort`.
"""

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pyarrow.parquet as pq

from iltm_anomaly.data.images import find_images

SCRIPT = Path(__file__).parents[1] / "detect.py"
ALONE = [sys.executable, str(SCRIPT)]
TWO = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(SCRIPT)]


def command(start: list[str], model: str, names: Path, output: Path, device: str, effort: str) -> list[str]:
    options = ["--output", str(output), "--device", device, "--effort", effort]
    return ["sh", "-c", f'exec "$@" < {names}', "sh", *start, model, "-", *options]


def run(words: list[str]) -> tuple[float, float, float]:
    """Seconds, seconds of processor time and megabytes of the largest resident set of a command that must succeed."""
    started = time.monotonic()
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if os.waitstatus_to_exitcode(status) not in (0, 1):
        raise SystemExit(f"failed: {' '.join(words)}")
    return time.monotonic() - started, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


def kill_after(words: list[str], output: Path, rows: int) -> int:
    """Kills a run once its journal has so many rows; returns how many there are then."""
    journal = output / ".rows.0.jsonl"
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL)

    def written() -> int:
        return journal.read_bytes().count(b"\n") - 1 if journal.exists() else 0

    while process.poll() is None and written() < rows:
        time.sleep(0.05)
    process.kill()
    process.wait()
    return written()


def rows_of(output: Path) -> list[dict]:
    return pq.read_table(output / "results.parquet").drop_columns(["seconds"]).to_pylist()


def files_of(output: Path) -> dict[str, bytes]:
    folders = ("overlays", "maps", "masks", "healed")
    return {str(p.relative_to(output)): p.read_bytes() for name in folders for p in sorted(output.glob(f"{name}/*"))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--output", type=Path, required=True, help="JSON")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--effort", choices=("full", "fast", "score"), default="full")
    options = parser.parse_args()
    images = [str(path) for folder in options.folders for path in find_images(folder, recursive=True)]
    images = sorted(random.Random(0).sample(images, min(options.images, len(images))))  # noqa: S311 - no secret
    work = Path(tempfile.mkdtemp(prefix="bench_detect_"))
    some = images[: len(images) // 8]
    for name, part in (("some", some), ("every", images)):
        (work / f"{name}.txt").write_text("\n".join(part))

    def words(start: list[str], names: str, name: str) -> list[str]:
        return command(start, options.model, work / f"{names}.txt", work / name, options.device, options.effort)

    found: dict = {"images": len(images), "effort": options.effort, "device": options.device}
    found["threads"] = os.environ.get("OMP_NUM_THREADS")
    _, processor_of_few, found["megabytes_of_an_eighth"] = run(words(ALONE, "some", "few"))
    _, processor, found["megabytes"] = run(words(ALONE, "every", "whole"))
    more = len(images) - len(some)  # so that the start does not count
    found["images_per_second_of_processor_time"] = more / (processor - processor_of_few)
    rows, files = rows_of(work / "whole"), files_of(work / "whole")
    found["failed"] = sum(row["error"] is not None for row in rows)
    killed = words(ALONE, "every", "killed")
    found["killed_after_rows"] = [kill_after(killed, work / "killed", len(images) * part // 4) for part in (1, 2, 3)]
    run(killed)
    same = rows_of(work / "killed") == rows and files_of(work / "killed") == files
    found["the_same_after_being_killed"] = same
    run(words(TWO, "some", "two"))
    same = rows_of(work / "two") == rows_of(work / "few") and files_of(work / "two") == files_of(work / "few")
    found["an_eighth_the_same_of_two_processes"] = same
    found = {key: round(value, 2) if isinstance(value, float) else value for key, value in found.items()}
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(found, indent=2) + "\n")
    print(json.dumps(found, indent=2))
    shutil.rmtree(work)


if __name__ == "__main__":
    main()
