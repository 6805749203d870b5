"""What one process does for all of them."""

import os

import pytest
import torch
import torch.multiprocessing
from accelerate import Accelerator

from iltm_anomaly.training.processes import MainProcessError, on_main


def ask(rank, folder):
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": "0", "ACCELERATE_USE_CPU": "true"}
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder / 'store'}", rank=rank, world_size=2)
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
    (folder / f"done_{rank}").touch()
    torch.distributed.barrier()  # a process that ends while the other still listens makes gloo abort it
    torch.distributed.destroy_process_group()


def fail():
    raise FileNotFoundError("no such folder")


def test_all_learn_what_the_main_process_found(tmp_path):
    torch.multiprocessing.spawn(ask, (tmp_path,), nprocs=2)
    assert {path.name for path in tmp_path.glob("done_*")} == {"done_0", "done_1"}


def test_alone_it_is_a_call():
    accelerator = Accelerator(cpu=True)
    assert on_main(accelerator, lambda: 3) == 3
    with pytest.raises(FileNotFoundError):
        on_main(accelerator, fail)
