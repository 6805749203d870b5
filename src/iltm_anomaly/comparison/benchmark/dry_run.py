"""What a benchmark would do and cost, and whether every configuration builds and takes one optimisation step."""

import math
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from iltm_anomaly.comparison.baselines.methods import BASELINES, METHODS
from iltm_anomaly.comparison.baselines.training import train_baseline
from iltm_anomaly.comparison.benchmark.cells import is_finished
from iltm_anomaly.comparison.benchmark.plan import OWN_SCHEDULE, Group, Plan, digest_of
from iltm_anomaly.prior import PerformerPriorConfig, PerformerPriorModel
from iltm_anomaly.processing.image_processing import ILTMImageProcessor
from iltm_anomaly.recipes.pixel_recipe import Recipe, StageRecipe
from iltm_anomaly.recipes.recipe import load_recipe
from iltm_anomaly.tokenizers.features import FeatureTokenizerModel
from iltm_anomaly.tokenizers.vqvae import VQVAEConfig, VQVAEModel
from iltm_anomaly.training.batches import total_steps

# The estimate of GPU hours assumes about half of the speed of an A100 in float32, and a time to launch the kernels of one step.
GPU_FLOPS, GPU_SECONDS_PER_STEP = 1e13, 0.03
CHECK_IMAGES = 2  # that a baseline takes its step with


@dataclass(frozen=True)
class StepCost:
    """One optimisation step with one image.

    Args:
        parameters: of the model.
        flops: of forward and backward pass. A multiply-add counts as two; Fourier transforms are not counted.
        seconds: CPU seconds of the second step here, on one core.
    """

    parameters: int
    flops: float
    seconds: float


def describe_plan(plan: Plan) -> str:
    """Cells, images and steps as text."""
    cells = [(group, method) for group in plan.groups for method in group.methods]
    folder = plan.arguments.output / "cells"
    finished = sum(
        group.error is None and is_finished(folder, group.cell(method), plan.settings(group, method))
        for group, method in cells
    )
    methods = plan.groups[0].methods
    lines = [
        f"{len(cells)} cells: {len(methods)} methods x {len(plan.groups)} sets of images; {finished} finished",
        f"methods: {', '.join(METHODS[method].title for method in methods)}",
    ]
    seeds: dict[str, list[int]] = {}  # that a line stands for
    for group in plan.groups:
        seeds.setdefault(f"{group.category.name} at {group.contamination:g}: {_images(group)}", []).append(group.seed)
    return "\n".join([*lines, *(f"  {line}; seeds {', '.join(map(str, values))}" for line, values in seeds.items())])


def _images(group: Group) -> str:
    if group.error is not None:
        return f"NOT POSSIBLE: {group.error}"
    return (
        "{training} training images, {contaminated} of them defective; {test} test images, {defective} of them defective"
    ).format(**group.counts())


def check_iltm(recipe: Recipe) -> dict[str, StepCost]:
    """Builds both models of a recipe and takes a step of each with one random image; the prior also with masked tokens."""
    torch.manual_seed(0)
    assert recipe.image_size is not None  # a recipe for images
    vqvae = VQVAEModel(VQVAEConfig(in_channels=recipe.num_channels, **recipe.vqvae))
    grid = vqvae.grid_shape((recipe.image_size, recipe.image_size))
    image = torch.rand(1, recipe.num_channels, recipe.image_size, recipe.image_size)
    costs = {"VQ-VAE": _step(vqvae, recipe.stage1, lambda: {"pixel_values": image})}
    prior = PerformerPriorModel(PerformerPriorConfig(vocab_size=vqvae.vocab_size, grid_shape=grid, **recipe.prior))
    codes = torch.randint(vqvae.vocab_size, (1, math.prod(grid)))
    keep = torch.rand(codes.shape) > 0.05
    costs["prior"] = _step(prior, recipe.stage2, lambda: {"input_ids": codes, "token_mask": keep})
    return costs


def _step(model: Any, stage: StageRecipe, inputs: Callable[[], dict[str, Any]]) -> StepCost:
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=stage.learning_rate, weight_decay=stage.weight_decay)

    def step() -> None:
        loss = model(**inputs()).loss
        if not bool(loss.isfinite()):
            raise RuntimeError(f"the loss of {type(model).__name__} is {loss.item()} in its first steps")
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    with FlopCounterMode(display=False) as counter:
        step()
    started = time.process_time()
    step()
    seconds = time.process_time() - started
    return StepCost(sum(p.numel() for p in model.parameters()), float(counter.get_total_flops()), seconds)


def check_baseline(method: str, plan: Plan, category: str) -> None:
    """Trains a baseline for one step with the settings that it would have, and scores an image."""
    recipe = plan.recipe
    assert recipe.image_size is not None  # a recipe for images
    generator = torch.Generator().manual_seed(0)
    shape = (CHECK_IMAGES, recipe.num_channels, recipe.image_size, recipe.image_size)
    images = torch.randint(256, shape, generator=generator, dtype=torch.uint8)
    with tempfile.TemporaryDirectory() as folder:
        pipeline = train_baseline(
            method,
            images,
            ILTMImageProcessor(size=recipe.image_size, num_channels=recipe.num_channels),
            Path(folder) / method,
            steps=1,
            device="cuda" if torch.cuda.is_available() and not plan.arguments.cpu else "cpu",
            preset=plan.baseline_preset,
            category=category,
            config=plan.arguments.baseline_config.get(method),
            show_progress=False,
        )
        pipeline(images[:1])


def describe_cost(plan: Plan, costs: dict[str, StepCost]) -> str:
    """Steps of the ILTM runs and what they take, as text."""
    recipe = plan.recipe
    groups = [group for group in plan.groups if group.error is None]
    sizes = [group.counts()["training"] for group in groups]
    times = {"VQ-VAE": (recipe.stage1, 1), "prior": (recipe.stage2, recipe.rounds.rounds + 1)}
    lines, hours, flops, seconds = [], 0.0, 0.0, 0.0
    for name, (stage, repeats) in times.items():
        cost, steps = costs[name], [repeats * total_steps(stage, size) for size in sizes]
        lines.append(
            f"  {name}: {cost.parameters:,} parameters, {cost.flops / 1e9:.1f} GFLOP an image and step, "
            f"batch {stage.batch_size}, {min(steps, default=0):,} to {max(steps, default=0):,} steps a run; "
            f"here {cost.seconds:.2f} s a step of one image on one core"
        )
        work = cost.flops * stage.batch_size
        flops += sum(steps) * work
        seconds += sum(steps) * stage.batch_size * cost.seconds
        hours += sum(steps) * max(work / GPU_FLOPS, GPU_SECONDS_PER_STEP) / 3600
    return "\n".join(
        [
            f"{len(groups)} ILTM runs of preset {recipe.name}, {recipe.image_size} pixels, "
            f"{recipe.rounds.rounds + 1} rounds of the prior at most:",
            *lines,
            f"  in all {flops:.2e} FLOP: about {hours:,.0f} GPU hours (assumed: {GPU_FLOPS / 1e12:g} TFLOP/s sustained, at least "
            f"{GPU_SECONDS_PER_STEP:g} s a step), or {seconds / 3600:,.0f} hours of one core here; scoring not counted",
        ]
    )


def describe_baselines(plan: Plan) -> str:
    """How long each of the other methods trains, as text."""
    if plan.arguments.baseline_seconds is not None:
        return f"other methods train for {plan.arguments.baseline_seconds:g} s each"
    if plan.recipe.name != OWN_SCHEDULE:
        return "other methods train for the time of one round of the prior each"
    num_images = max((group.counts()["training"] for group in plan.groups if group.error is None), default=0)
    lines = ["other methods train by the schedules of their own papers:"]
    for method in plan.groups[0].methods:
        if method in BASELINES:
            recipes = [METHODS[method].recipe_for(OWN_SCHEDULE, group.category.name) for group in plan.groups]
            steps = max(0 if recipe.stage is None else total_steps(recipe.stage, num_images) for recipe in recipes)
            hours = steps * GPU_SECONDS_PER_STEP / 3600
            lines.append(f"  {METHODS[method].title}: up to {steps:,} steps, at least {hours:.1f} GPU hours a cell")
    return "\n".join(lines)


def dry_run(plan: Plan, show: Callable[[str], None] = print) -> dict[str, str]:
    """Shows plan and cost, and tries a step of everything.

    Returns:
        What would fail, by name, with the reason.
    """
    show(describe_plan(plan))
    failures = {group.name: group.error for group in plan.groups if group.error is not None}

    def attempt(title: str, check: Callable[[], str]) -> None:
        started = time.monotonic()
        try:
            passed = check()
        except Exception as error:  # a check reports, whatever it is
            failures[title] = f"{type(error).__name__}: {error}"
            show(f"check: {title}: FAILED: {failures[title]}")
        else:
            show(f"{passed} ({time.monotonic() - started:.0f} s)")

    def try_iltm() -> str:
        show(describe_cost(plan, check_iltm(plan.recipe)))
        return "check: ILTM builds and takes steps, batch cut to 1"

    def try_features() -> str:
        FeatureTokenizerModel.from_backbone(**load_recipe("features").features)
        return "check: the backbone of ILTM on features loads; it takes minutes a set of images"

    def try_baseline(method: str) -> str:
        # one category for each different recipe
        recipes = {digest_of(plan.baseline(group, method)): group.category.name for group in plan.groups}
        for category in recipes.values():
            check_baseline(method, plan, category)
        named = f"{METHODS[method].title} ({plan.baseline_preset})"
        return f"check: {named} takes a step and scores, {CHECK_IMAGES} images at most"

    methods = plan.groups[0].methods
    others = [method for method in methods if method in BASELINES]
    timed = any(plan.has_time_of_round(plan.groups[0], method) for method in others)
    if timed or any(METHODS[method].of_run for method in methods):
        attempt("ILTM", try_iltm)
    if others:
        show(describe_baselines(plan))
    if any(METHODS[method].preset is not None for method in methods):
        attempt("ILTM on features", try_features)
    for method in others:
        attempt(METHODS[method].title, partial(try_baseline, method))
    return failures
