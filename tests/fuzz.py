"""`make fuzz`: spoiled files and odd words through every door (`fuzz_doors.py`), for a given time.

    python tests/fuzz.py --seconds 600            # prints its seed; the exit status is 1 if a case failed
    python tests/fuzz.py --replay 17:images:123   # one case again, with its traceback

A case fails if what comes out is neither an answer nor an error of ours that names the file, if a library writes a line of its
own between ours, if it takes longer than `LIMIT` seconds or more than `MOST_MEMORY` bytes, or if its process dies. Each door has
a process of its own, forked anew after a case that it did not survive.
"""

import argparse
import io
import json
import logging
import multiprocessing
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
os.environ.setdefault("OMP_NUM_THREADS", "1")

from fuzz_doors import DOORS, Complaint, Refused

from iltm_anomaly.cli import quiet_libraries

LIMIT = 60  # seconds a case
MOST_MEMORY = 4 * 2**30  # what one case may add to a process: an image of 100 million pixels takes 3


def one_case(door: Any, key: str, folder: Path) -> str:
    """The case that `key` draws: "answered", "refused", or what was wrong."""
    folder.mkdir()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    sys.stderr = io.StringIO()
    try:
        door.case(random.Random(key), folder)
        outcome = "answered"
    except Refused:
        outcome = "refused"
    except Complaint as error:
        outcome = f"FAILED {error}"
    except BaseException as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        outcome = f"FAILED {type(error).__name__}: {str(error)[:300]} ({place.filename}:{place.lineno})"
    os.chdir("/")
    shutil.rmtree(folder, ignore_errors=True)
    foreign = sys.stderr.getvalue().strip()
    if foreign and not outcome.startswith("FAILED"):
        outcome = f"FAILED a library wrote: {foreign[:300]!r}"
    grown = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    return outcome if grown < MOST_MEMORY else f"FAILED it took {grown / 2**30:.1f} GiB more"


def work(door: Any, name: str, seed: int, start: int, root: Path, pipe: Any) -> None:
    """Cases from number `start` on, each announced before it begins. What libtiff and libjpeg write past Python is let go."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    for number in range(start, 2**40):
        pipe.send(number)
        pipe.send(one_case(door, f"{seed}:{name}:{number}", root / str(number)))


class Foreign(logging.Handler):
    """Writes the lines of libraries to what stderr is now; our own are as they should be."""

    def emit(self, record: logging.LogRecord) -> None:
        if not record.name.startswith("iltm_anomaly"):
            print(record.name, record.getMessage(), file=sys.stderr)


def prepare() -> None:
    handler = Foreign(logging.WARNING)
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    quiet_libraries()


def fuzz_door(name: str, seed: int, seconds: float, root: Path) -> dict[str, Any]:
    """As many cases of a door as there is time for."""
    (root / "valid").mkdir(parents=True)
    door = DOORS[name](root / "valid")
    started, number = time.monotonic(), 0
    found: dict[str, Any] = {"door": name, "cases": 0, "answered": 0, "refused": 0, "failures": []}
    context = multiprocessing.get_context("fork")
    while time.monotonic() - started < seconds:
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(target=work, args=(door, name, seed, number, root, theirs))
        process.start()
        theirs.close()
        while True:
            try:
                outcome = ours.recv() if ours.poll(LIMIT) else f"FAILED no end within {LIMIT} s"
            except EOFError:
                process.join()
                outcome = f"FAILED the process died ({process.exitcode})"
            if isinstance(outcome, int):
                number = outcome
                continue
            found["cases"] += 1
            if outcome.startswith("FAILED"):
                found["failures"].append(f"{seed}:{name}:{number} {outcome}")
                print(found["failures"][-1], flush=True)
            else:
                found[outcome] += 1
            number += 1
            ended = "no end" in outcome or "process died" in outcome or "GiB more" in outcome
            if ended or time.monotonic() - started > seconds:
                break
        if process.is_alive():
            os.kill(process.pid, signal.SIGKILL)
        process.join()
    found["seconds"] = round(time.monotonic() - started, 1)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--doors", nargs="+", choices=DOORS, default=list(DOORS))
    parser.add_argument("--replay", metavar="SEED:DOOR:NUMBER")
    parser.add_argument("--record", type=Path, help="JSON Lines file that the counts are added to")
    arguments = parser.parse_args()
    prepare()
    with tempfile.TemporaryDirectory(prefix="fuzz") as folder:
        os.environ["HF_HOME"] = folder  # caches of `datasets`
        if arguments.replay:
            _, name, number = arguments.replay.split(":")
            (Path(folder) / "valid").mkdir()
            door = DOORS[name](Path(folder) / "valid")
            (Path(folder) / number).mkdir()
            door.case(random.Random(arguments.replay), Path(folder) / number)
            return 0
        print(f"seed {arguments.seed}: a case again with --replay SEED:DOOR:NUMBER", flush=True)
        failed = 0
        for name in arguments.doors:
            share = arguments.seconds / len(arguments.doors)
            found = fuzz_door(name, arguments.seed, share, Path(folder) / name)
            failures = found.pop("failures")
            failed += len(failures)
            shutil.rmtree(Path(folder) / name, ignore_errors=True)
            print(json.dumps(found | {"failed": len(failures)}), flush=True)
            if arguments.record:
                with open(arguments.record, "a", encoding="utf-8") as file:
                    file.write(json.dumps({"seed": arguments.seed} | found | {"failed": len(failures)}) + "\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
