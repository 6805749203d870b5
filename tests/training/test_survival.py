"""Whole runs that are killed, damaged or given something else to continue with."""

import contextlib
import errno
import json
import multiprocessing
import os
import random
import shutil
import signal
import stat
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.tracking import GeneralTracker
from accelerate.utils import LoggerType
from safetensors.torch import load_file

from iltm_anomaly.locks import InUseError, locked
from iltm_anomaly.recipes.pixel_recipe import Recipe
from iltm_anomaly.recipes.recipe import load_recipe
from iltm_anomaly.training import checkpoint, pixels, rounds, stage_checkpoint
from iltm_anomaly.training import fit as loop
from iltm_anomaly.training.accelerator import make_accelerator
from iltm_anomaly.training.arguments import TrainArguments
from iltm_anomaly.training.checkpoint import CheckpointError, load_checkpoint
from iltm_anomaly.training.fit import NonFiniteLossError
from iltm_anomaly.training.images import TrainingImages
from iltm_anomaly.training.run import TrainingRun
from iltm_anomaly.training.run_folder import RunFolderError

STAGE = {"epochs": 4, "batch_size": 4, "learning_rate": 2e-3}
RECIPE = {
    "name": "survival",
    "image_size": 16,
    "stage1": STAGE | {"learning_rate": 1e-2},
    "stage2": STAGE,
    "rounds": {"rounds": 2, "code_copies": 2, "outlier_scale": 1.0, "convergence_iou": 1.0, "convergence_change": 0.0},
    "vqvae": {
        "channels": [16],
        "num_res_blocks": 1,
        "vocab_size": 16,
        "embedding_dim": 4,
        "dead_code_threshold": 0.1,
    },
    "prior": {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "head_dim": 8},
    "inference": {"num_samples": 1, "num_dropout_passes": 1, "num_contexts": 0},
}


def images(count=9, seed=0):
    generator = np.random.default_rng(seed)
    blocks = [generator.integers(0, 256, (5, 4, 3), dtype=np.uint8) for _ in range(count)]
    return [np.kron(block, np.ones((8, 9, 1), np.uint8)) for block in blocks]


def train(folder, resume=False, data=None, changes=None, source=None, seconds=0.0, seed=1, precision="no"):
    AcceleratorState._reset_state(reset_partial_state=True)
    recipe = Recipe.from_dict(RECIPE | (changes or {}))
    accelerator = Accelerator(cpu=True, mixed_precision=precision)
    run = TrainingRun(recipe, folder, seed, accelerator, show_progress=False, checkpoint_seconds=seconds)
    return run.train(
        images() if data is None else data,
        lambda: {"source": "test"},
        resume=resume,
        source=source and (lambda: source),
    )


def weights(folder):
    return {
        f"{file.relative_to(folder)}:{name}": tensor
        for file in sorted(folder.rglob("*.safetensors"))
        for name, tensor in load_file(file).items()
    }


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nothing happened to."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    train(folder)
    return folder


@pytest.fixture
def finished(whole, tmp_path):
    return Path(shutil.copytree(whole, tmp_path / "run"))


# SIGKILL


def sitting(folder, last_event, counter, precision):
    """Trains until event number `last_event`, then kills itself. Events are steps, and every call that makes a file durable;
    a file that is cut off while it is flushed keeps half of its bytes."""
    events = 0

    def event(file=None):
        nonlocal events
        events += 1
        counter.value = events
        if events == last_event:
            if isinstance(file, int) and stat.S_ISREG(os.fstat(file).st_mode):
                with contextlib.suppress(OSError):  # opened for reading only: a file of a folder, written before
                    os.ftruncate(file, os.fstat(file).st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)

    def watched(function):
        def call(*arguments, **keywords):
            event(*arguments[:1])
            return function(*arguments, **keywords)

        return call

    for name in ("fsync", "replace", "link"):
        setattr(os, name, watched(getattr(os, name)))
    loop._accumulate_gradients = watched(loop._accumulate_gradients)
    train(folder, resume=(folder / "run.json").exists(), precision=precision)


def sit(folder, last_event=0, precision="no"):
    """One sitting in a process of its own; returns whether it came to the end, and how many events there were."""
    context = multiprocessing.get_context("fork")  # everything is imported already
    counter = context.Value("i", 0)
    process = context.Process(target=sitting, args=(folder, last_event, counter, precision))
    process.start()
    process.join(300)
    assert process.exitcode in (0, -signal.SIGKILL)
    return process.exitcode == 0, counter.value


@pytest.mark.parametrize("kills, precision", [(3, "no"), (3, "bf16"), pytest.param(20, "no", marks=pytest.mark.slow)])
def test_killed_again_and_again_it_ends_with_the_same_bits(whole, tmp_path, kills, precision):
    draw = random.Random(kills)
    if precision != "no":
        whole = tmp_path / "whole"
        train(whole, precision=precision)
    folder, ended = tmp_path / "run", False
    for _ in range(kills):
        ended, events = sit(folder, draw.randint(5, 400 // kills), precision)
        assert not ended, f"came to its end after {events} events: kill it earlier"
    ended, _ = sit(folder, precision=precision)
    assert ended and same(weights(folder), weights(whole))
    for line in (folder / "training_log.jsonl").read_text().splitlines():
        assert np.isfinite(json.loads(line)["loss"])
    assert not list(folder.rglob("*.partial")) and not list(folder.rglob("*.set_aside"))
    assert len(json.loads((folder / "run.json").read_text())["sittings"]) >= 2


# what a folder holds, and what is made of it


def test_the_folder_says_how_the_run_came_about(whole, tmp_path):
    record = json.loads((whole / "run.json").read_text())
    assert record["recipe"]["stage1"]["epochs"] == 4 and record["seed"] == 1 and record["images"] == 9
    assert record["data"] == {"source": "test"}
    (sitting,) = record["sittings"]
    assert sitting["versions"]["torch"] and sitting["processes"] == 1 and "commit" in sitting
    assert {p.name for p in (whole / "pictures").iterdir()} == {"reconstructions.png"} | {
        f"surprise_round_{number}.png" for number in range(3)
    }
    log = [json.loads(line) for line in (whole / "training_log.jsonl").read_text().splitlines()]
    assert all(0 <= entry["waiting_for_data"] <= 1 and entry["tokens_per_second"] > 0 for entry in log)
    assert 0 < log[0]["codebook_use"] <= 1 and log[0]["perplexity"] >= 1
    assert log[-1]["round"] == 2 and log[-1]["masked_fraction"] > 0
    codes = load_checkpoint(whole / "codes.bin")[0]["value"]
    assert codes.shape == (9, 2, 64) and not torch.equal(codes[0], codes[1])
    assert not (whole / "checkpoint.bin").exists(), "nothing is left to resume"


def test_a_complete_run_is_left_alone(finished, monkeypatch, caplog):
    caplog.set_level("INFO")
    monkeypatch.setattr(pixels, "build_cache", lambda *_: pytest.fail("no image is needed"))
    monkeypatch.setattr(pixels, "difference", lambda *_: pytest.fail("no image is needed"))
    assert train(finished, resume=True) == finished / "model" and "complete" in caplog.text
    with pytest.raises(RunFolderError, match="already holds a run: pass --resume"):
        train(finished)


def test_finished_rounds_need_no_codes(whole, finished, monkeypatch):
    shutil.rmtree(finished / "model")
    (finished / "codes.bin").unlink()
    monkeypatch.setattr(rounds, "encode_copies", lambda *_: pytest.fail("no codes are needed"))
    train(finished, resume=True)
    assert same(weights(finished), weights(whole))


def test_a_run_of_version_0_1_is_continued(whole, finished, caplog):
    """Its first stage was named after the only tokenizer that there was."""
    caplog.set_level("INFO")
    shutil.rmtree(finished / "model")
    (finished / "tokenizer").rename(finished / "vqvae")
    train(finished, resume=True)
    assert "tokenizer is finished" in caplog.text
    assert same(weights(finished), weights(whole))


@pytest.mark.parametrize(
    "name", ["tokenizer", "rounds/round_1", "rounds/round_1/keep.bin", "codes.bin", "images.arrow"]
)
def test_what_is_damaged_is_skipped_and_made_again(whole, finished, caplog, name):
    shutil.rmtree(finished / "model")
    shutil.rmtree(finished / "rounds" / "round_2")
    path = finished / name / "model.safetensors" if (finished / name).is_dir() else finished / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))
    train(finished, resume=True)
    assert f"{name.removesuffix('/keep.bin')} is damaged" in caplog.text
    for aside in finished.rglob("*.set_aside"):
        shutil.rmtree(aside)
    assert same(weights(finished), weights(whole))


@pytest.mark.parametrize("values", [{"seconds": "12"}, []])
def test_a_stage_with_another_summary_is_made_again(whole, finished, caplog, values):
    shutil.rmtree(finished / "model")
    path = finished / "rounds" / "round_2" / "stage.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values if values else values))
    train(finished, resume=True)
    assert "round_2 is damaged" in caplog.text
    shutil.rmtree(finished / "rounds" / "round_2.set_aside")
    assert same(weights(finished), weights(whole))


def test_a_round_is_not_used_with_another_teacher(finished, caplog):
    shutil.rmtree(finished / "model")
    stage = finished / "rounds" / "round_1" / "stage.json"
    stage.write_text(json.dumps(json.loads(stage.read_text()) | {"follows": "something else"}))
    train(finished, resume=True)
    assert "round_1 rests on another run of the stage before it: skipped" in caplog.text


# other data, other recipes


@pytest.mark.parametrize(
    "data, complaint",
    [
        (images()[:-1], "9 images then, 8 now"),
        ([*images()[:-1], images(1, seed=5)[0]], "1 differ, the first is number 8"),
        (images()[::-1], "8 differ, the first is number 0"),
    ],
)
def test_other_images_are_refused(finished, data, complaint):
    shutil.rmtree(finished / "model")
    before = weights(finished)
    with pytest.raises(RunFolderError, match=f"the training images are not those .*{complaint}"):
        train(finished, resume=True, data=data)
    (finished / "images.arrow").unlink()
    with pytest.raises(RunFolderError, match="the training images are not those"):
        train(finished, resume=True, data=data)
    assert same(before, weights(finished))
    train(finished, resume=True)  # the right ones still do


def test_images_of_a_known_source_are_not_read_again(whole, tmp_path):
    folder = tmp_path / "run"
    train(folder, source="data set 1", changes={"rounds": RECIPE["rounds"] | {"rounds": 0}})
    (folder / "model").rename(tmp_path / "model")
    unread = iter(())
    changes = {"rounds": RECIPE["rounds"] | {"rounds": 0}}
    train(folder, resume=True, source="data set 1", changes=changes, data=unread)
    (folder / "model").rename(tmp_path / "model2")
    with pytest.raises(RunFolderError, match="9 images then, 0 now"):
        train(folder, resume=True, source="data set 2", changes=changes, data=unread)
    # a cache that was made anew from other images, by an attempt that was killed before it compared them
    (folder / "images.arrow").unlink()
    train(tmp_path / "other", source="data set 2", changes=changes, data=images()[:-1])
    (tmp_path / "other" / "images.arrow").rename(folder / "images.arrow")
    with pytest.raises(RunFolderError, match="other pixels"):
        train(folder, resume=True, source="data set 2", changes=changes, data=unread)
    train(folder, resume=True, source="data set 1", changes=changes)


def test_another_recipe_or_seed_is_named(finished):
    with pytest.raises(RunFolderError, match=r"stage1.epochs \(4 there, 5 now\) differ"):
        train(finished, resume=True, changes={"stage1": RECIPE["stage1"] | {"epochs": 5}})
    with pytest.raises(RunFolderError, match=r"seed \(1 there, 2 now\)"):
        train(finished, resume=True, seed=2)
    train(finished, resume=True, changes={"stage1": RECIPE["stage1"] | {"micro_batch_size": 1}})


@pytest.mark.parametrize("copies", [None, 40])
def test_a_round_sees_every_copy_once(tmp_path, monkeypatch, copies):
    """Without a number of copies there is one for every epoch, the last one begun included; none is extracted beyond these."""
    drawn = []
    make_inputs = rounds.PriorObjective.inputs

    def watched(objective, indices, step):
        values = make_inputs(objective, indices, step)
        drawn.append((step, indices, values["input_ids"]))
        return values

    monkeypatch.setattr(rounds.PriorObjective, "inputs", watched)
    no_masks = RECIPE["rounds"] | {"rounds": 0, "code_copies": copies}
    stage = {key: value for key, value in STAGE.items() if key != "epochs"} | {"steps": 5}
    train(tmp_path / "run", changes={"rounds": no_masks, "stage2": stage})
    codes = load_checkpoint(tmp_path / "run" / "codes.bin")[0]["value"]
    assert codes.shape[:2] == (9, 3), "9 images in batches of 4: two steps an epoch"
    assert [step for step, _, _ in drawn] == list(range(5))
    assert all(torch.equal(ids, codes[indices, step // 2].long()) for step, indices, ids in drawn)


class Mine(GeneralTracker):
    name, requires_logging_directory, tracker = "mine", False, None

    def __init__(self):
        super().__init__()
        self.logged = []

    def log(self, values, step=None, **kwargs):
        self.logged.append((values, step))


def test_trackers(tmp_path, monkeypatch):
    pytest.importorskip("tensorboard", reason="needs tensorboard: pip install -e '.[trackers]'")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    AcceleratorState._reset_state(reset_partial_state=True)
    recipe = Recipe.from_dict(RECIPE)
    mine = Mine()
    accelerator = make_accelerator(recipe, tmp_path / "run", ["tensorboard", mine], cpu=True)
    TrainingRun(recipe, tmp_path / "run", 1, accelerator, show_progress=False).train(images(), dict)
    accelerator.end_training()
    events = EventAccumulator(str(tmp_path / "run" / "trackers"), size_guidance={"scalars": 0}).Reload()
    assert {"tokenizer/loss", "tokenizer/perplexity", "prior_round_2/masked_fraction"} <= set(events.Tags()["scalars"])
    assert {"reconstructions", "surprise_round_0"} <= set(events.Tags()["images"])
    steps = [events.Scalars(f"{stage}/loss")[-1].step for stage in ("tokenizer", "prior_round_0", "prior_round_1")]
    assert steps == [8, 16, 24], "one count over the whole run"
    losses = [(step, values["tokenizer/loss"]) for values, step in mine.logged if "tokenizer/loss" in values]
    assert [step for step, _ in losses][-1] == 8
    assert [value for _, value in losses] == pytest.approx([event.value for event in events.Scalars("tokenizer/loss")])
    AcceleratorState._reset_state(reset_partial_state=True)
    with pytest.raises(ValueError, match="takes all, mlflow, tensorboard, trackio, wandb, got 'aim'"):
        make_accelerator(recipe, tmp_path, ["aim"], cpu=True)
    assert make_accelerator(recipe, tmp_path, ["all"], cpu=True).log_with.count(LoggerType.TENSORBOARD) == 1
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(ValueError, match="--report-to wandb needs a package that is not installed"):
        make_accelerator(recipe, tmp_path, ["wandb"], cpu=True)


def test_precision_that_the_device_is_not_built_for(tmp_path, caplog):
    AcceleratorState._reset_state(reset_partial_state=True)
    recipe = Recipe.from_dict(RECIPE | {"mixed_precision": "fp16"})
    assert make_accelerator(recipe, tmp_path, [], cpu=True).mixed_precision == "no"
    assert "cpu is not built for fp16: training in float32" in caplog.text


def test_what_accelerate_launch_asks_for_wins_over_the_recipe(tmp_path, monkeypatch):
    from iltm_anomaly.training import accelerator

    monkeypatch.setattr(accelerator, "_has_precision", lambda device, name: True)
    features = load_recipe("tiny-features")
    in_float32 = Recipe.from_dict(RECIPE | {"mixed_precision": "no"})
    in_bfloat16 = Recipe.from_dict(RECIPE | {"mixed_precision": "bf16"})
    for asked, recipe, expected in (
        ("bf16", in_float32, "bf16"),
        ("no", in_bfloat16, "bf16"),
        ("no", features, "no"),
        ("fp8", in_float32, "mixed_precision fp8, but it does not train: launch with --mixed_precision no"),
        ("bf16", features, "mixed_precision bf16, but a run on features optimises no network"),
    ):
        monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", asked)  # as the launcher does
        AcceleratorState._reset_state(reset_partial_state=True)
        try:
            assert make_accelerator(recipe, tmp_path, [], cpu=True).mixed_precision == expected
        except ValueError as error:
            assert expected in str(error)


@pytest.mark.parametrize("name", ["FSDP", "DEEPSPEED", "MEGATRON_LM"])
def test_a_launcher_that_splits_models_is_refused(tmp_path, monkeypatch, name):
    monkeypatch.setenv(f"ACCELERATE_USE_{name}", "true")  # as the launcher does
    with pytest.raises(ValueError, match=f"accelerate asks for {name}, which splits models .* Launch without it"):
        make_accelerator(Recipe.from_dict(RECIPE), tmp_path, [], cpu=True)


def test_bfloat16_of_the_launcher_trains_to_the_bits_of_the_recipes_own(whole, tmp_path, monkeypatch):
    from iltm_anomaly.training import accelerator

    monkeypatch.setattr(accelerator, "_has_precision", lambda device, name: True)
    found = {}
    for asked, own in (("no", "bf16"), ("bf16", "no")):
        monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", asked)
        AcceleratorState._reset_state(reset_partial_state=True)
        recipe, folder = Recipe.from_dict(RECIPE | {"mixed_precision": own}), tmp_path / f"{asked}_{own}"
        run = TrainingRun(recipe, folder, 1, make_accelerator(recipe, folder, [], cpu=True), show_progress=False)
        run.train(images(), lambda: {"source": "test"})
        found[asked] = weights(folder)
    assert same(found["no"], found["bf16"]) and not same(found["no"], weights(whole))
    assert found["no"].keys() == weights(whole).keys()


@pytest.mark.parametrize("seconds, expected", [((1.0, 2.0), "no"), ((2.0, 1.0), "bf16")])
def test_precision_is_the_faster_one_and_a_resumed_run_keeps_its_own(tmp_path, monkeypatch, seconds, expected):
    from iltm_anomaly.training import accelerator, precision

    monkeypatch.setattr(precision, "_step_seconds", lambda model, pixels, reduced: seconds[reduced])
    monkeypatch.setattr(accelerator, "_has_precision", lambda device, name: True)
    recipe = Recipe.from_dict(RECIPE | {"mixed_precision": "auto"})
    state = torch.get_rng_state()
    AcceleratorState._reset_state(reset_partial_state=True)
    assert accelerator.make_accelerator(recipe, tmp_path, [], cpu=True).mixed_precision == expected
    assert torch.equal(state, torch.get_rng_state())
    record = {"recipe": {}, "seed": 1, "images_sha256": "", "data": {}}
    record["sittings"] = [{"precision": "no"}, {"precision": expected}]
    (tmp_path / "run.json").write_text(json.dumps(record))
    monkeypatch.setattr(precision, "_step_seconds", lambda *_: pytest.fail("measured again"))
    AcceleratorState._reset_state(reset_partial_state=True)
    assert accelerator.make_accelerator(recipe, tmp_path, [], cpu=True).mixed_precision == expected
    AcceleratorState._reset_state(reset_partial_state=True)


def test_both_precisions_are_really_timed():
    from iltm_anomaly.training.precision import faster_precision

    assert faster_precision(Recipe.from_dict(RECIPE), torch.device("cpu")) in ("no", "bf16")
    assert faster_precision(load_recipe("tiny-volumes"), torch.device("cpu")) in ("no", "bf16")


# disks and losses


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS])
@pytest.mark.parametrize("calls", [2, 20, 40])
def test_a_disk_that_takes_no_more(whole, tmp_path, monkeypatch, code, calls):
    """Full or read-only from some moment on: one clear error, and what was there before goes on when there is space again."""
    folder, fsync, count = tmp_path / "run", os.fsync, 0

    def full(descriptor):
        nonlocal count
        count += 1
        if count >= calls:
            raise OSError(code, os.strerror(code))
        fsync(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(CheckpointError, match=f"cannot write .*: {os.strerror(code)}"):
            train(folder)
    if (folder / "checkpoint.bin").exists():
        state, problems = load_checkpoint(folder / "checkpoint.bin")
        assert not problems and all(tensor.isfinite().all() for tensor in state["model"].values())
    train(folder, resume=True)
    assert same(weights(folder), weights(whole))


def test_a_folder_that_cannot_be(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="cannot write"):
        train(tmp_path / "file" / "run")


def test_a_loss_that_is_not_finite(whole, tmp_path, monkeypatch):
    folder, save = tmp_path / "run", checkpoint.save_checkpoint

    def poisoned(path, state):
        save(path, state)
        if state["step"] == 5:
            broken.append(True)

    broken: list[bool] = []
    backward = loop._accumulate_gradients

    def accumulate(accelerator, trained, objective, batch):
        for inputs in batch.micro_batches if broken else []:
            inputs["pixel_values"].fill_(float("nan"))
        return backward(accelerator, trained, objective, batch)

    with monkeypatch.context() as patch:
        patch.setattr(stage_checkpoint, "save_checkpoint", poisoned)
        patch.setattr(loop, "_accumulate_gradients", accumulate)
        with pytest.raises(NonFiniteLossError, match="the last good checkpoint is"):
            train(folder)
    state, problems = load_checkpoint(folder / "checkpoint.bin")
    assert state["step"] == 5 and not problems
    train(folder, resume=True)
    assert same(weights(folder), weights(whole))


def test_a_batch_too_small_for_its_processes_is_told_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(Accelerator, "num_processes", property(lambda _: 5))
    with pytest.raises(ValueError, match=r"stage1\.batch_size is 4 images over all processes, too few for 5"):
        train(tmp_path / "run")


def test_fewer_images_than_processes_are_told_before_training(tmp_path, monkeypatch):
    monkeypatch.setattr(Accelerator, "num_processes", property(lambda _: 4))
    with pytest.raises(ValueError, match=r"3 training image\(s\) are too few for 4 processes: start 3 at most"):
        train(tmp_path / "run", data=images(3))


def test_masks_of_much_are_warned_of(tmp_path, caplog):
    train(tmp_path / "run", changes={"rounds": RECIPE["rounds"] | {"outlier_scale": 0.0}})
    assert "% of all tokens are masked, beyond a limit of" in caplog.text


@pytest.mark.parametrize("resume", [False, True])
def test_two_runs_do_not_share_a_folder(tmp_path, resume):
    with locked(tmp_path / ".lock"), pytest.raises(InUseError, match=rf"in use by process {os.getpid()} on"):
        train(tmp_path, resume=resume)
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]


RECORDS = ("{}", "[]", "null", "{", '{"seed": 1, "recipe": [], "images_sha256": "", "data": {}}')
ODD_SITTING = '{"seed": 1, "recipe": {}, "images_sha256": "", "data": {}, "sittings": [0]}'


@pytest.mark.parametrize("content", [*RECORDS, ODD_SITTING])
def test_a_record_that_is_none_is_named(tmp_path, content):
    (tmp_path / "run.json").write_text(content)
    make_accelerator(Recipe.from_dict(RECIPE | {"mixed_precision": "auto"}), tmp_path, [], cpu=True)
    with pytest.raises(RunFolderError, match=r"run.json is damaged: it must hold recipe, seed.*give another --output"):
        train(tmp_path, resume=True)
    arguments = TrainArguments("data", tmp_path, resume=True)
    with pytest.raises(RunFolderError, match=r"run.json is damaged"):
        TrainingImages(arguments).check_resumed()
    assert (tmp_path / "run.json").read_text() == content
