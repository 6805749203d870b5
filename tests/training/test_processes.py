"""What one process does for all of them."""

import os

import pytest
import torch.multiprocessing
from accelerate import Accelerator
from two_processes import joined

from iltm_anomaly.locks import InUseError
from iltm_anomaly.training.processes import MainProcessError, on_main, own_accelerator
from iltm_anomaly.training.run_folder import RunFolder


def process(rank, folder):
    with joined(rank, folder / "store"):
        ask(rank, folder / "store")
    (folder / f"done_{rank}").touch()


def ask(rank, store):
    accelerator = Accelerator(cpu=True)
    calls = []
    assert on_main(accelerator, lambda: calls.append(rank) or "answer") == "answer"
    assert calls == ([0] if rank == 0 else [])
    # both are told of the failure, and both can go on
    told = (
        (FileNotFoundError, "^no such folder$")
        if rank == 0
        else (MainProcessError, "FileNotFoundError: no such folder")
    )
    with pytest.raises(told[0], match=told[1]):
        on_main(accelerator, fail)
    assert on_main(accelerator, lambda: rank) == 0
    # the lock of a run is taken by one of them, and kept from the others that run
    folder = RunFolder(store.parent / "run", accelerator)
    with folder.held():
        holder = (folder.path / ".lock.holder").read_text()
        assert (f"process {os.getpid()} on" in holder) == (rank == 0)
        accelerator.wait_for_everyone()
        error, message = (InUseError, "in use by") if rank == 0 else (MainProcessError, "InUseError")
        with pytest.raises(error, match=message), folder.held():
            pass


def fail():
    raise FileNotFoundError("no such folder")


def test_all_learn_what_the_main_process_found(tmp_path):
    torch.multiprocessing.spawn(process, (tmp_path,), nprocs=2)
    assert {path.name for path in tmp_path.glob("done_*")} == {"done_0", "done_1"}


def test_alone_it_is_a_call():
    accelerator = Accelerator(cpu=True)
    assert on_main(accelerator, lambda: 3) == 3
    with pytest.raises(FileNotFoundError):
        on_main(accelerator, fail)


def test_a_precision_is_let_go_of_and_what_was_there_before_stays():
    with own_accelerator():
        assert Accelerator(cpu=True, mixed_precision="bf16").mixed_precision == "bf16"
    before = Accelerator(cpu=True, mixed_precision="no")
    with own_accelerator():
        assert Accelerator(cpu=True).mixed_precision == "no"
    assert before.mixed_precision == "no" and before.num_processes == 1
