"""One codebook over two processes."""

import torch
import torch.multiprocessing
from two_processes import joined

from iltm_anomaly.tokenizers.quantizer import EMAQuantizer

STEPS, CODES, DIM, TOKENS = 3, 8, 3, 40


def steps_of_data(folder):
    return torch.load(folder / "vectors.pt")


def train(start, batches, dead_code_threshold, data_driven):
    module = EMAQuantizer(CODES, DIM, 0.5, 1e-5, dead_code_threshold).train()
    module.codebook.copy_(start)
    module.code_sum.copy_(start)
    module.code_count.fill_(1.0)
    if data_driven:
        module.initialize_from(batches[0])
    counts = [module(batch)[2] for batch in batches]
    return {**module.state_dict(), "counts": torch.stack(counts)}


def process(rank, folder):
    data = steps_of_data(folder)
    start = data["start"] if rank == 0 else data["start"] + 0.0
    halves = [batch.chunk(2)[rank] for batch in data["batches"]]
    with joined(rank, folder / "store"):
        states = {"plain": train(start, halves, 0.0, False), "revived": train(start, halves, 0.9, True)}
    torch.save(states, folder / f"{rank}.pt")


def test_two_processes_share_one_codebook(tmp_path):
    generator = torch.Generator().manual_seed(0)
    data = {
        "start": torch.randn(CODES, DIM, generator=generator),
        "batches": [torch.randn(TOKENS, DIM, generator=generator) for _ in range(STEPS)],
    }
    torch.save(data, tmp_path / "vectors.pt")
    torch.multiprocessing.spawn(process, (tmp_path,), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    for kind in ("plain", "revived"):
        for name in first[kind]:
            assert torch.equal(first[kind][name], second[kind][name]), f"{kind}: {name} differs between processes"
    alone = train(data["start"], data["batches"], 0.0, False)
    assert torch.equal(alone["counts"], first["plain"]["counts"])
    for name in ("codebook", "code_count", "code_sum"):
        torch.testing.assert_close(first["plain"][name], alone[name], atol=1e-5, rtol=1e-5)
