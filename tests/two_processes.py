"""Two processes of one test."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch.distributed as dist


@contextmanager
def joined(rank: int, store: Path) -> Iterator[None]:
    """Process `rank` of two, for what `torch.multiprocessing.spawn` calls. They find each other by a file: no port that something
    else may hold."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": "0", "ACCELERATE_USE_CPU": "true"}
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    yield
    dist.barrier()  # a process that ends while the other still listens makes gloo abort it
    dist.destroy_process_group()
