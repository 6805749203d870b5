"""The training loop: what a step sees, resuming, and losses that are not finite."""

import json
import math
import time
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from objectives import Hooks, fit
from tiny_models import some_codes, tiny_prior, tiny_vqvae
from torch.utils._python_dispatch import TorchDispatchMode

from iltm_anomaly.recipes.pixel_recipe import StageRecipe
from iltm_anomaly.training import fit as loop
from iltm_anomaly.training import stage_checkpoint
from iltm_anomaly.training.batches import batch_indices, split_step, steps_per_epoch
from iltm_anomaly.training.checkpoint import load_checkpoint
from iltm_anomaly.training.fit import NonFiniteLossError
from iltm_anomaly.training.loop_settings import LoopSettings
from iltm_anomaly.training.tracking import RunLog, panel


@pytest.fixture
def accelerator():
    yield Accelerator(cpu=True)
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture
def settings(tmp_path):
    log = RunLog(tmp_path, is_main_process=True)
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
    model, drawn, hooked, rates = Line(), [], [], []
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
            lambda indices, step: (drawn.append((step, indices.tolist())), {"x": data[indices]})[1],
            settings,
            Hooks(before_step=lambda step, epoch: hooked.append((step, epoch))),
        )
    assert hooked == [(step, step // 2) for step in range(6)]
    assert drawn == [(step, batch_indices(10, 4, step, settings.seed).tolist()) for step in range(6)]
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


def stage_of(kind, dropout=0.4, dead_code_threshold=0.5):
    """Model and its data by index: dropout, moving codebook and revival."""
    if kind == "vqvae":
        model = tiny_vqvae(dropout=dropout, dead_code_threshold=dead_code_threshold)
        pixels = torch.rand(8, 3, 16, 16, generator=torch.Generator().manual_seed(0))
        return model, lambda indices: {"pixel_values": pixels[indices]}
    model = tiny_prior(dropout=dropout, gain=1.0)
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

    def interrupt(step, _epoch):
        if step == saved:
            settings.checkpoint_seconds = math.inf
        if step == stopped:
            raise InterruptedRun

    model, _ = stage_of(kind)
    with pytest.raises(InterruptedRun):
        fit(accelerator, model, stage, 8, lambda i, _: data(i), settings, Hooks(before_step=interrupt))
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
    summary = fit(accelerator, model, stage, 4, lambda indices, _: {"x": data[indices]}, settings)
    again = Line()
    assert fit(accelerator, again, stage, 4, lambda *_: pytest.fail("no step was left"), settings) == summary
    assert torch.equal(again.weight, model.weight)


def test_checkpoint_of_another_stage_is_left_alone(accelerator, settings):
    stage, data = StageRecipe(2, batch_size=2), torch.rand(4, 2)
    fit(accelerator, Line(), stage, 4, lambda indices, _: {"x": data[indices]}, settings)
    settings.name, steps = "prior round 0", []
    fit(accelerator, Line(), stage, 4, lambda indices, step: (steps.append(step), {"x": data[indices]})[1], settings)
    assert steps == [0, 1, 2, 3]


def test_checkpoint_of_another_teacher_is_not_continued(accelerator, settings, caplog):
    stage, data = StageRecipe(2, batch_size=2), torch.rand(4, 2)
    settings.follows = "one teacher"
    fit(accelerator, Line(), stage, 4, lambda indices, _: {"x": data[indices]}, settings)
    settings.follows, steps = "another teacher", []
    fit(accelerator, Line(), stage, 4, lambda indices, step: (steps.append(step), {"x": data[indices]})[1], settings)
    assert steps == [0, 1, 2, 3] and "rests on another run of the stage before it" in caplog.text


def test_damaged_checkpoint_is_reported(accelerator, settings, caplog):
    stage, data = StageRecipe(2, batch_size=2), torch.rand(4, 2)
    model = Line()
    fit(accelerator, model, stage, 4, lambda indices, _: {"x": data[indices]}, settings)
    content = settings.checkpoint_path.read_bytes()
    settings.checkpoint_path.write_bytes(content[:-1])
    steps, again = [], Line()
    fit(accelerator, again, stage, 4, lambda i, step: (steps.append(step), {"x": data[i]})[1], settings)
    assert "is damaged" in caplog.text and "skipped" in caplog.text
    assert steps == [3] and torch.equal(again.weight, model.weight)


def test_without_a_whole_checkpoint_the_stage_starts_again(accelerator, settings, caplog):
    stage, data = StageRecipe(2, batch_size=2), torch.rand(4, 2)
    model = Line()
    fit(accelerator, model, stage, 4, lambda indices, _: {"x": data[indices]}, settings)
    for file in settings.checkpoint_path.parent.glob("checkpoint*"):
        file.write_bytes(b"nothing")
    steps, again = [], Line()
    fit(accelerator, again, stage, 4, lambda i, step: (steps.append(step), {"x": data[i]})[1], settings)
    assert "no checkpoint of it is left" in caplog.text
    assert steps == [0, 1, 2, 3] and torch.equal(again.weight, model.weight)


def test_another_environment_is_told(accelerator, settings, caplog):
    data = torch.rand(4, 2)

    def train(micro_batch_size):
        stage = StageRecipe(2, batch_size=2, micro_batch_size=micro_batch_size)
        fit(accelerator, Line(), stage, 4, lambda i, _: {"x": data[i]}, settings)

    train(None)
    train(None)
    assert "bit for bit" not in caplog.text
    train(1)
    assert "micro-batch size None then, 1 now. The run goes on, but no longer bit for bit" in caplog.text


def test_checkpoints_wait_for_their_interval(accelerator, settings, monkeypatch):
    saved, clock = [], [0.0]
    monkeypatch.setattr(loop.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(stage_checkpoint, "save_checkpoint", lambda _path, state: saved.append(state["step"]))
    settings.checkpoint_seconds = 25.0

    def tick(_step, _epoch):
        clock[0] += 10

    ones = {"x": torch.ones(1, 2)}
    fit(accelerator, Line(), StageRecipe(10, batch_size=1), 1, lambda *_: ones, settings, Hooks(before_step=tick))
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


# shares, micro-batches and weights


@pytest.mark.parametrize("processes, micro", [(1, None), (2, None), (3, None), (1, 2), (3, 1), (4, 2), (7, None)])
def test_weighted_parts_add_up_to_the_mean_over_all_terms(processes, micro):
    indices, terms = torch.tensor([9, 4, 7, 1, 8]), torch.tensor([3, 0, 5, 2, 6])
    losses = torch.arange(1.0, 11)  # mean loss of the terms of each sample
    total, seen = 0.0, []
    for process in range(processes):
        parts = split_step(indices, terms, processes, process, micro)
        for part, weight in parts:
            assert len(part) <= (micro or 5) and len(part)
            if weight or len(part) > 1:
                seen += part.tolist()
            own = torch.tensor([int(terms[indices.tolist().index(i)]) for i in part])
            total += weight * float((losses[part] * own).sum() / own.sum().clamp(min=1))
    assert total / processes == pytest.approx(float((losses[indices] * terms).sum() / terms.sum()))
    assert set(seen) >= {9, 7, 1, 8} and len(seen) == len(set(seen))


def test_one_process_alone_has_weight_one():
    ((part, weight),) = split_step(torch.arange(5), torch.full((5,), 7), 1, 0, None)
    assert torch.equal(part, torch.arange(5)) and weight == 1.0


@pytest.mark.parametrize("kind", ["vqvae", "prior"])
def test_micro_batches_train_as_the_whole_batch_does(accelerator, settings, kind):
    settings.checkpoint_path = None
    states = []
    for micro in (None, 1, 3):
        model, data = stage_of(kind, dropout=0.0)
        masks = data(torch.arange(8)).get("token_mask")
        hooks = Hooks(loss_terms=None if masks is None else lambda i, _, masks=masks: masks[i].sum(1))
        if kind == "vqvae":
            model.quantizer.dead_code_threshold = 0.0  # what is revived is drawn from the last micro-batch
            hooks.before_forward = lambda last, model=model: setattr(model.quantizer, "defer", not last)
        stage = StageRecipe(3, batch_size=4, micro_batch_size=micro)
        summary = fit(accelerator, model, stage, 8, lambda i, _, data=data: data(i), settings, hooks)
        states.append((summary["loss"], model.state_dict()))
    for loss, state in states[1:]:
        assert loss == pytest.approx(states[0][0], abs=1e-5)
        for name, tensor in state.items():
            torch.testing.assert_close(tensor, states[0][1][name], atol=2e-5, rtol=1e-4)


def test_a_batch_with_nothing_to_learn_moves_nothing(accelerator, settings):
    """Momentum and weight decay would move the weights without a gradient."""
    settings.checkpoint_path = None
    model, data = stage_of("prior")
    states = {}

    def before_step(step, _epoch):
        states[step] = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    def masked(indices, step):
        inputs = data(indices)
        return inputs | {"token_mask": inputs["token_mask"] & (step != 2)}

    hooks = Hooks(before_step=before_step, loss_terms=lambda i, step: masked(i, step)["token_mask"].sum(1))
    fit(accelerator, model, StageRecipe(2, batch_size=4, weight_decay=0.1), 8, masked, settings, hooks)
    assert states_equal(states[2], states[3]), "the third batch is masked as a whole"
    assert not states_equal(states[1], states[2]) and not states_equal(states[3], model.state_dict())


# loading ahead


@pytest.mark.parametrize("threads", [0, 1, 3])
def test_loading_ahead_changes_nothing(accelerator, settings, threads):
    settings.checkpoint_path, settings.loading_threads = None, threads
    model, data = stage_of("vqvae")
    summary = fit(accelerator, model, StageRecipe(3, batch_size=4), 8, lambda i, _: data(i), settings)
    expected, _ = stage_of("vqvae")
    settings.loading_threads = 1
    fit(accelerator, expected, StageRecipe(3, batch_size=4), 8, lambda i, _: data(i), settings)
    assert states_equal(model.state_dict(), expected.state_dict())
    assert 0 <= summary["waiting_for_data"] <= 1 and summary["images_per_second"] > 0


def test_waiting_for_data_is_measured(accelerator, settings):
    settings.checkpoint_path = None

    def slow(indices, _step):
        time.sleep(0.05)
        return {"x": torch.ones(len(indices), 2)}

    assert fit(accelerator, Line(), StageRecipe(8, batch_size=1), 1, slow, settings)["waiting_for_data"] > 0.5


def test_a_stage_of_steps_ends_within_an_epoch(accelerator, settings):
    settings.checkpoint_path = None
    seen = []

    def inputs(indices, step):
        seen.append(step)
        return {"x": torch.ones(len(indices), 2)}

    summary = fit(
        accelerator,
        Line(),
        StageRecipe(steps=7, batch_size=2),
        4,
        inputs,
        settings,
    )
    assert (seen, summary["steps"]) == (list(range(7)), 7)


def test_a_trained_model_computes_what_a_loaded_one_does(settings, tmp_path):
    """Masks are judged by either: by the first in the process that trained it, by the second in one that resumed."""
    AcceleratorState._reset_state(reset_partial_state=True)
    accelerator = Accelerator(cpu=True, mixed_precision="bf16")
    model = tiny_prior()
    codes = some_codes(model, 4)
    settings.checkpoint_path = None
    fit(accelerator, model, StageRecipe(2, batch_size=2), 4, lambda i, step: {"input_ids": codes[i]}, settings)
    model.save_pretrained(tmp_path / "prior")
    loaded = type(model).from_pretrained(tmp_path / "prior").eval()
    assert torch.equal(model.log_likelihood(codes), loaded.log_likelihood(codes))
    AcceleratorState._reset_state(reset_partial_state=True)


def test_a_last_step_that_breaks_the_weights_is_seen(accelerator, settings):
    settings.checkpoint_path = None
    model = Line()

    def before_step(step, epoch):
        if step == 3:
            model.weight.register_hook(lambda gradient: gradient * math.nan)

    with pytest.raises(NonFiniteLossError, match="weights are not finite at step 4"):
        fit(
            accelerator,
            model,
            StageRecipe(2, batch_size=2, max_grad_norm=0),
            4,
            lambda indices, step: {"x": torch.ones(len(indices), 2)},
            settings,
            Hooks(before_step=before_step),
        )


def test_an_error_while_loading_ends_the_run(accelerator, settings):
    def broken(indices, step):
        if step == 3:
            raise OSError("the disk is gone")
        return {"x": torch.ones(len(indices), 2)}

    with pytest.raises(OSError, match="the disk is gone"):
        fit(accelerator, Line(), StageRecipe(9, batch_size=1), 1, broken, settings)
    assert load_checkpoint(settings.checkpoint_path)[0]["step"] == 3


class Reads(TorchDispatchMode):
    """Counts what makes the host wait for a device: values read out of tensors, and shapes that depend on values."""

    WAITS = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "is_nonzero", "equal")

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        if function.overloadpacket.__name__.removeprefix("_").rstrip("2") in [w.removeprefix("_") for w in self.WAITS]:
            self.seen.append(function.overloadpacket.__name__)
        return function(*arguments, **keywords or {})


@pytest.mark.parametrize("kind", ["vqvae", "prior"])
def test_a_step_never_waits_for_the_device(accelerator, settings, kind):
    settings.checkpoint_path, settings.loading_threads = None, 1  # the loading thread may wait, it is ahead
    model, data = stage_of(kind)
    seen = {}
    with Reads() as reads:
        hooks = Hooks(before_step=lambda step, _: seen.update({step: len(reads.seen)}))
        fit(accelerator, model, StageRecipe(3, batch_size=4), 8, lambda i, _: data(i), settings, hooks)
    assert len(reads.seen) > seen[5], "the line of the log at the end does read the loss"
    assert seen[5] == seen[0], reads.seen


# log


def test_log_is_written_by_the_main_process_only(tmp_path):
    RunLog(tmp_path, is_main_process=False).write(loss=1.0)
    assert not list(tmp_path.iterdir())
    log = RunLog(tmp_path, is_main_process=True)
    log.write(loss=1.0)
    log.write(loss=2.0)
    assert [json.loads(line)["loss"] for line in log.path.read_text().splitlines()] == [1.0, 2.0]


def test_half_a_line_of_a_killed_process_is_dropped(tmp_path):
    RunLog(tmp_path, is_main_process=True).write(loss=1.0)
    path = tmp_path / "training_log.jsonl"
    with open(path, "a") as file:
        file.write('{"time": 1, "lo')
    RunLog(tmp_path, is_main_process=True).write(loss=2.0)
    assert [json.loads(line)["loss"] for line in path.read_text().splitlines()] == [1.0, 2.0]


def test_pictures(tmp_path):
    import numpy as np
    from PIL import Image

    colour, grey = np.full((4, 5, 3), 0.5), np.ones((4, 5, 1))
    RunLog(tmp_path, is_main_process=True).picture("name", panel([[colour, grey], [grey, 3 * colour]]), 1)
    values = np.asarray(Image.open(tmp_path / "pictures" / "name.png"))
    assert values.shape == (8, 10, 3) and values[0, 0].tolist() == [128] * 3 and values[7, 9].tolist() == [255] * 3


# a time budget, and plain gradient descent


def test_a_budget_moves_the_schedule_and_ends_the_stage(accelerator, settings, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(loop.time, "monotonic", lambda: now[0])
    settings.budget_seconds, settings.log_every = 10.0, 1

    def before_step(step, epoch):
        now[0] += 1.0

    stage = StageRecipe(steps=1000, batch_size=2, learning_rate=0.1, warmup=0.0)
    data = torch.rand(4, 2)
    summary = fit(
        accelerator,
        Line(),
        stage,
        4,
        lambda indices, step: {"x": data[indices]},
        settings,
        Hooks(before_step=before_step),
    )
    assert summary["steps"] == 10 and summary["seconds"] == 10.0
    rates = [line["lr"] for line in log_of(settings)]
    assert rates == pytest.approx([stage.learning_rate_at(100 * second, 2) for second in range(10)])


def test_steps_end_a_stage_within_its_budget(accelerator, settings):
    settings.budget_seconds = 1e6
    stage = StageRecipe(steps=7, batch_size=2, learning_rate=0.1)
    summary = fit(accelerator, Line(), stage, 4, lambda indices, step: {"x": torch.ones(2, 2)}, settings)
    assert summary["steps"] == 7
    assert [line["lr"] for line in log_of(settings)] == [pytest.approx(stage.learning_rate_at(6, 2), abs=1e-6)]


def test_a_budget_is_for_one_process(settings):
    settings.budget_seconds = 1.0
    with pytest.raises(ValueError, match="needs one process, got 2"):
        fit(SimpleNamespace(num_processes=2), Line(), StageRecipe(steps=1), 4, lambda *_: {}, settings)


def test_sgd_is_momentum_with_an_l2_penalty(accelerator, settings):
    stage = StageRecipe(
        steps=3,
        batch_size=1,
        learning_rate=0.1,
        schedule="constant",
        max_grad_norm=0,
        weight_decay=0.5,
        optimizer="sgd",
    )
    model = Line()
    with torch.no_grad():
        model.weight.copy_(torch.tensor([1.0, -2.0]))
    weight, velocity = model.weight.detach().clone(), torch.zeros(2)
    x = torch.tensor([0.5, 2.0])
    fit(accelerator, model, stage, 1, lambda indices, step: {"x": x[None]}, settings)
    for _ in range(3):
        velocity = 0.9 * velocity + 2 * (x @ weight - 1) * x + 0.5 * weight
        weight = weight - 0.1 * velocity
    torch.testing.assert_close(model.weight.detach(), weight)
