"""The training loop: what a step sees, resuming, and losses that are not finite."""

import json
import math
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from tiny_models import some_codes, tiny_prior, tiny_vqvae

from iltm_anomaly.training import loop
from iltm_anomaly.training.checkpoint import load_checkpoint
from iltm_anomaly.training.loop import (
    LoopSettings,
    NonFiniteLossError,
    RunLog,
    batch_indices,
    fit,
    steps_per_epoch,
)
from iltm_anomaly.training.recipe import StageRecipe


@pytest.fixture
def accelerator():
    yield Accelerator(cpu=True)
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture
def settings(tmp_path):
    log = RunLog(tmp_path / "training_log.jsonl", is_main_process=True)
    return LoopSettings("vqvae", 3, log, tmp_path / "checkpoint.pt", checkpoint_seconds=0, show_progress=False)


class Line(torch.nn.Module):
    """w . x with a squared loss: the smallest model there is."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(2))

    def forward(self, x):
        return SimpleNamespace(loss=(x @ self.weight - 1).square().mean())


def log_of(settings):
    return [json.loads(line) for line in settings.log.path.read_text().splitlines()]


def states_equal(first, second):
    return first.keys() == second.keys() and all(torch.equal(tensor, second[name]) for name, tensor in first.items())


# which samples


@pytest.mark.parametrize("samples, batch", [(10, 2), (10, 10), (7, 1)])
def test_every_sample_once_an_epoch(samples, batch):
    per_epoch = steps_per_epoch(samples, batch)
    orders = []
    for epoch in range(3):
        steps = range(epoch * per_epoch, (epoch + 1) * per_epoch)
        orders.append(torch.cat([batch_indices(samples, batch, step, seed=1) for step in steps]).tolist())
        assert sorted(orders[-1]) == list(range(samples))
    assert orders[0] != orders[1] != orders[2] or batch == samples == 1


def test_whole_batches_only():
    assert steps_per_epoch(11, 4) == 2 and steps_per_epoch(3, 4) == 1
    seen = [batch_indices(11, 4, step, seed=0) for step in range(40)]
    assert all(len(indices) == len(set(indices.tolist())) == 4 for indices in seen)
    for epoch in range(20):
        assert len(set(torch.cat(seen[2 * epoch : 2 * epoch + 2]).tolist())) == 8
    assert set(torch.cat(seen).tolist()) == set(range(11)), "what one epoch leaves out others see"
    assert sorted(batch_indices(3, 4, 5, seed=0).tolist()) == [0, 1, 2], "fewer samples than a batch"


def test_indices_are_a_function_of_seed_and_step():
    expected = [batch_indices(10, 3, step, seed=4) for step in range(9)]
    torch.manual_seed(1)
    state = torch.get_rng_state()
    assert all(torch.equal(batch_indices(10, 3, step, seed=4), expected[step]) for step in reversed(range(9)))
    assert torch.equal(torch.get_rng_state(), state)
    assert any(not torch.equal(batch_indices(10, 3, step, seed=5), expected[step]) for step in range(3))


# a plain run


def test_fit_follows_schedule_and_hook(accelerator, settings):
    model, calls, rates = Line(), [], []
    stage = StageRecipe(3, batch_size=4, learning_rate=0.1, max_grad_norm=0)
    adamw = torch.optim.AdamW

    class Recorder(adamw):
        def step(self, *arguments, **keywords):
            rates.append(self.param_groups[0]["lr"])
            return super().step(*arguments, **keywords)

    data = torch.rand(10, 2, generator=torch.Generator().manual_seed(0))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim, "AdamW", Recorder)
        summary = fit(
            accelerator,
            model,
            stage,
            10,
            lambda indices, step: (calls.append((step, indices.tolist())), {"x": data[indices]})[1],
            settings,
            before_step=lambda step, epoch: calls.append((step, epoch)),
        )
    expected = []
    for step in range(6):
        expected += [(step, step // 2), (step, batch_indices(10, 4, step, settings.seed).tolist())]
    assert calls == expected
    assert rates == pytest.approx([stage.learning_rate_at(step, 2) for step in range(6)])
    assert model.weight.abs().min() > 0 and not model.training
    assert summary["steps"] == 6 and summary["loss"] < 1 and summary["seconds"] >= 0
    (entry,) = log_of(settings)
    assert entry["stage"] == "vqvae" and entry["steps"] == 6 and entry["epoch"] == 2
    assert entry["loss"] == pytest.approx(summary["loss"])


def test_gradients_are_clipped(accelerator, settings):
    settings.checkpoint_path = None
    norms = []
    for limit in (0.0, 0.5):
        model = Line()
        model.weight.register_post_accumulate_grad_hook(lambda p: norms.append(p.grad))
        fit(
            accelerator,
            model,
            StageRecipe(1, batch_size=1, max_grad_norm=limit),
            1,
            lambda *_: {"x": torch.full((1, 2), 100.0)},
            settings,
        )
    free, clipped = (grad.norm().item() for grad in norms)  # the hook keeps the tensor, which clipping scales in place
    assert free > 100 and clipped == pytest.approx(0.5, rel=1e-3)


def test_dropout_is_a_function_of_seed_and_step(accelerator, settings):
    settings.checkpoint_path = None
    pixels = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    states = []
    for global_seed in (0, 1):
        model = tiny_vqvae(dropout=0.5)
        torch.manual_seed(global_seed)
        fit(accelerator, model, StageRecipe(2, 2), 4, lambda i, _: {"pixel_values": pixels[i]}, settings)
        states.append(model.state_dict())
    assert states_equal(*states)
    settings.seed += 1
    fit(
        accelerator,
        other := tiny_vqvae(dropout=0.5),
        StageRecipe(2, 2),
        4,
        lambda i, _: {"pixel_values": pixels[i]},
        settings,
    )
    assert not states_equal(states[0], other.state_dict())


# resuming


class InterruptedRun(Exception):
    pass


def stage_of(kind):
    """Model, its data by index and its stage: dropout, moving codebook, revival, and a schedule over the whole run."""
    if kind == "vqvae":
        model = tiny_vqvae(dropout=0.5, dead_code_threshold=0.5)
        pixels = torch.rand(8, 3, 16, 16, generator=torch.Generator().manual_seed(0))
        return model, lambda indices: {"pixel_values": pixels[indices]}
    model = tiny_prior(dropout=0.3, gain=1.0)
    codes = some_codes(model, 8)
    masks = torch.rand(codes.shape, generator=torch.Generator().manual_seed(1)) < 0.8
    return model, lambda indices: {"input_ids": codes[indices], "token_mask": masks[indices]}


@pytest.mark.parametrize("kind", ["vqvae", "prior"])
@pytest.mark.parametrize("saved, stopped", [(3, 3), (3, 5), (1, 2), (None, 2)])
def test_resumed_equals_uninterrupted_bit_for_bit(accelerator, settings, kind, saved, stopped):
    """`saved` steps are in the checkpoint when step `stopped` is cut off; the process of the second part knows nothing else."""
    stage = StageRecipe(4, batch_size=4, learning_rate=3e-3, weight_decay=0.01)
    path, settings.checkpoint_path = settings.checkpoint_path, None
    whole, data = stage_of(kind)
    summary = fit(accelerator, whole, stage, 8, lambda indices, _: data(indices), settings)

    settings.checkpoint_path = path
    if saved is None:
        settings.checkpoint_seconds = math.inf

    def interrupted(indices, step):
        if step == saved:
            settings.checkpoint_seconds = math.inf
        if step == stopped:
            raise InterruptedRun
        return data(indices)

    model, _ = stage_of(kind)
    with pytest.raises(InterruptedRun):
        fit(accelerator, model, stage, 8, interrupted, settings)
    state, _ = load_checkpoint(path)
    assert state is None if saved is None else state["step"] == saved
    accelerator.free_memory()
    torch.manual_seed(99)

    resumed, _ = stage_of(kind)
    with torch.no_grad():
        for parameter in resumed.parameters():
            parameter += (saved is not None) * 1.0  # all must come from the checkpoint
    steps = []
    again = fit(accelerator, resumed, stage, 8, lambda indices, step: (steps.append(step), data(indices))[1], settings)
    assert steps == list(range(saved or 0, 8))
    assert states_equal(whole.state_dict(), resumed.state_dict())
    assert again["loss"] == summary["loss"] and again["steps"] == summary["steps"] == 8


def test_finished_stage_is_not_run_again(accelerator, settings):
    stage, data = StageRecipe(2, batch_size=2), torch.rand(4, 2)
    model = Line()
    fit(accelerator, model, stage, 4, lambda indices, _: {"x": data[indices]}, settings)
    again = Line()
    fit(accelerator, again, stage, 4, lambda *_: pytest.fail("no step was left"), settings)
    assert torch.equal(again.weight, model.weight)


def test_checkpoint_of_another_stage_is_left_alone(accelerator, settings):
    stage, data = StageRecipe(2, batch_size=2), torch.rand(4, 2)
    fit(accelerator, Line(), stage, 4, lambda indices, _: {"x": data[indices]}, settings)
    settings.name, steps = "prior round 0", []
    fit(accelerator, Line(), stage, 4, lambda indices, step: (steps.append(step), {"x": data[indices]})[1], settings)
    assert steps == [0, 1, 2, 3]


def test_damaged_checkpoint_is_reported(accelerator, settings, caplog):
    stage, data = StageRecipe(2, batch_size=2), torch.rand(4, 2)
    model = Line()
    fit(accelerator, model, stage, 4, lambda indices, _: {"x": data[indices]}, settings)
    content = settings.checkpoint_path.read_bytes()
    settings.checkpoint_path.write_bytes(content[:-1])
    steps, again = [], Line()
    fit(accelerator, again, stage, 4, lambda i, step: (steps.append(step), {"x": data[i]})[1], settings)
    assert "is damaged" in caplog.text and "falling back" in caplog.text
    assert steps == [3] and torch.equal(again.weight, model.weight)


def test_checkpoints_wait_for_their_interval(accelerator, settings, monkeypatch):
    saved, clock = [], [0.0]
    monkeypatch.setattr(loop.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(loop, "save_checkpoint", lambda _path, state: saved.append(state["step"]))
    settings.checkpoint_seconds = 25.0

    def tick(indices, _step):
        clock[0] += 10
        return {"x": torch.ones(len(indices), 2)}

    fit(accelerator, Line(), StageRecipe(10, batch_size=1), 1, tick, settings)
    assert saved == [3, 6, 9]


# losses that are not finite


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_loss_that_is_not_finite(accelerator, settings, value):
    settings.checkpoint_seconds = math.inf

    def poisoned(indices, step):
        return {"x": torch.full((len(indices), 2), value if step == 5 else 1.0)}

    with pytest.raises(NonFiniteLossError, match=r"vqvae: the loss is .* Lower the learning rate"):
        fit(accelerator, Line(), StageRecipe(100, batch_size=1, max_grad_norm=0), 1, poisoned, settings)


def test_the_last_checkpoint_stays_good(accelerator, settings):
    """The loss is read now and then, checkpoints are due at any step: weights that are not finite are never saved."""

    def poisoned(indices, step):
        return {"x": torch.full((len(indices), 2), math.nan if step == 5 else 1.0)}

    with pytest.raises(NonFiniteLossError, match="the last good checkpoint is"):
        fit(accelerator, Line(), StageRecipe(100, batch_size=1), 1, poisoned, settings)
    state, problems = load_checkpoint(settings.checkpoint_path)
    assert state["step"] == 5 and not problems
    assert all(tensor.isfinite().all() for tensor in state["model"].values())


def test_finite_loss_with_a_gradient_that_is_not(accelerator, settings):
    class Broken(Line):
        def forward(self, x):
            # sqrt at zero: a value of 0, a gradient of infinity
            return SimpleNamespace(loss=super().forward(x).loss + (self.weight * 0).sum().sqrt())

    with pytest.raises(NonFiniteLossError):
        fit(accelerator, Broken(), StageRecipe(3, batch_size=1), 1, lambda *_: {"x": torch.ones(1, 2)}, settings)
    assert load_checkpoint(settings.checkpoint_path)[0] is None


def test_batch_that_cannot_be_split():
    with pytest.raises(ValueError, match="batch of 5 images cannot be split evenly over 2 processes"):
        loop._share_of_process(torch.arange(5), SimpleNamespace(num_processes=2, process_index=0))
    shares = [
        loop._share_of_process(torch.arange(6), SimpleNamespace(num_processes=2, process_index=i)) for i in (0, 1)
    ]
    assert torch.equal(torch.cat(shares), torch.arange(6))


def test_log_is_written_by_the_main_process_only(tmp_path):
    RunLog(tmp_path / "log.jsonl", is_main_process=False).write(loss=1.0)
    assert not (tmp_path / "log.jsonl").exists()
    log = RunLog(tmp_path / "log.jsonl", is_main_process=True)
    log.write(loss=1.0)
    log.write(loss=2.0)
    assert [json.loads(line)["loss"] for line in log.path.read_text().splitlines()] == [1.0, 2.0]
