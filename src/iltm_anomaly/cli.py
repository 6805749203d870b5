"""Command line: `iltm-anomaly demo | train | evaluate | detect | export | report | benchmark | push`. Heavy imports wait."""

import argparse
import logging
import math
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from iltm_anomaly import __version__

IS_MAIN_PROCESS = os.environ.get("RANK", "0") == "0"  # of those that a launcher started, if one did
PROTOCOLS = ("disjoint", "overlap")
PROTOCOL_HELP = (
    "where contamination comes from: test images that are left out of the test set (disjoint, default), or copies of images of "
    "the test set, turned by up to 3 degrees and shifted by up to 3 %% (overlap)"
)


def add_train_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--data", required=True, metavar="ROOT_OR_HUB_ID", help="MVTec AD folder, Hub data set, or folder of images")
    add("--category", help="category of an MVTec AD folder; without it ROOT itself is one, or a plain folder")
    add("--output", required=True, type=Path, metavar="DIR", help="run folder; the pipeline goes to DIR/model")
    share = "for experiments: share of the training images to be defective test images, from 0 to less than 1"
    add("--contamination", type=float, metavar="F", help=share)
    add("--protocol", choices=PROTOCOLS, default=PROTOCOLS[0], help=PROTOCOL_HELP)
    add("--train-size", type=int, metavar="N", help="draw N training images in all; with --streaming the first N")
    presets = (
        "recipe: features; with a VQ-VAE paper, cpu, tiny; for volumes pet, phantom, pet-crop, mri-crop, tiny-volumes; for tests "
        "tiny-features; or a YAML file (default: features; phantom with --volumes)"
    )
    add("--preset", metavar="NAME_OR_FILE", help=presets)
    tile = "side in pixels of tiles that images are cut into, here and in detect, for large images with small defects"
    add("--tile", type=int, metavar="SIZE", help=tile)
    values = "values in place of the recipe's, such as image_size=384 rounds.abnormal_share=0.4"
    add("--set", dest="overrides", nargs="+", action="extend", default=[], metavar="FIELD=VALUE", help=values)
    add("--rounds", type=int, metavar="N", help="masked rounds, in place of the recipe's")
    volumes = "the data are NIfTI volumes; ROOT may be a pattern like 'scans/*_suv.nii.gz'"
    add("--volumes", action="store_true", help=volumes)
    add("--seed", type=int, default=0, help="seed of everything random (default: 0)")
    add("--resume", action="store_true", help="continue the run in DIR")
    seconds = "time between checkpoints (default: 120)"
    add("--checkpoint-seconds", type=_seconds, default=120.0, metavar="S", help=seconds)
    add("--streaming", action="store_true", help="read the images one by one from a Hub data set without storing it")
    trackers = "tensorboard, trackio, wandb; DIR/training_log.jsonl is always written"
    add("--report-to", nargs="+", default=[], metavar="TRACKER", help=trackers)
    add("--cpu", action="store_true", help="do not use a GPU")


def _seconds(text: str) -> float:
    """A time that comes: with NaN or infinity, no checkpoint would ever be due."""
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds: give one from 0 on, such as 120")
    return seconds


def run_train(arguments: argparse.Namespace) -> None:
    from iltm_anomaly.training.train import TrainArguments, train

    values = {k: v for k, v in vars(arguments).items() if k in TrainArguments.__dataclass_fields__}
    folder = train(TrainArguments(**values))
    if IS_MAIN_PROCESS:
        print(f"pipeline saved in {folder}")


def add_evaluate_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("model", metavar="MODEL", help="run folder (every round), pipeline folder or Hub id (last round)")
    add("--data", required=True, metavar="ROOT", help="the data that the model was trained on")
    add("--category", help="as in training")
    add("--output", required=True, type=Path, metavar="DIR", help="for results.json and gallery.png")
    add("--last-round", action="store_true", help="leave out the rounds before the last")
    add("--device", help="cpu, cuda, ... (default: a GPU if there is one)")


def run_evaluate(arguments: argparse.Namespace) -> None:
    from iltm_anomaly.evaluation.evaluate import evaluate_run, format_results

    document = evaluate_run(
        arguments.model,
        arguments.data,
        arguments.category,
        arguments.output,
        all_rounds=not arguments.last_round,
        device=usable_device(arguments.device),
    )
    print(format_results(document))
    print(f"written: {arguments.output / 'results.json'}, {arguments.output / 'gallery.png'}")


def add_detect_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("model", metavar="MODEL", help="pipeline folder, run folder or Hub id")
    inputs = (
        "files or folders of images (of volumes, NIfTI files and DICOM folders); if some cannot be read, results.csv says why, "
        "and the exit code is 1, or 2 if none can"
    )
    add("inputs", nargs="+", metavar="INPUT", help=inputs)
    add("--output", required=True, type=Path, metavar="DIR", help="for results.csv, overlays and maps")
    add("--no-maps", action="store_true", help="write results.csv only")
    threshold = "score from which on a pixel is called abnormal (default: the model's, set by training)"
    add("--threshold", type=float, metavar="SCORE", help=threshold)
    effort = (
        "full: all samples; fast: a few; score: none, nothing is healed (default: full); of features all find the same"
    )
    add("--effort", choices=("full", "fast", "score"), default="full", help=effort)
    tile = "side in pixels of overlapping tiles that images are cut into (default: as in training; 0: none)"
    add("--tile", type=int, metavar="SIZE", help=tile)
    add("--batch-size", type=int, default=8, metavar="N", help="images, or tiles of one, at once (default: 8)")
    add("--device", help="cpu, cuda, ... (default: a GPU if there is one)")


def run_detect(arguments: argparse.Namespace) -> int:
    from iltm_anomaly.evaluation.detect import detect
    from iltm_anomaly.hub.folders import resolve_model_folder
    from iltm_anomaly.pipeline import ILTMAnomalyPipeline
    from iltm_anomaly.tiles import check_tile

    folder, _ = resolve_model_folder(arguments.model)
    pipeline = ILTMAnomalyPipeline.from_pretrained(folder, device=usable_device(arguments.device))
    pipeline.settings = pipeline.settings.at(arguments.effort)
    if arguments.tile is not None:
        check_tile(arguments.tile or None)
        pipeline.settings = replace(pipeline.settings, tile=arguments.tile or None)
    if arguments.threshold is not None:
        pipeline.settings = replace(pipeline.settings, score_threshold=arguments.threshold)
    rows = detect(pipeline, arguments.inputs, arguments.output, arguments.batch_size, save_maps=not arguments.no_maps)
    failed = sum(bool(row["error"]) for row in rows)
    abnormal = sum(row["abnormal"] == 1 for row in rows)
    print(f"{len(rows) - failed} scored, {abnormal} abnormal, {failed} failed: {arguments.output / 'results.csv'}")
    return 0 if not failed else 2 if failed == len(rows) else 1


def add_export_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("model", metavar="MODEL", help="pipeline folder, run folder or Hub id of a model on features")
    add("--format", choices=("onnx",), default="onnx", help="of the file (default: onnx)")
    add("--output", required=True, type=Path, metavar="FILE.onnx", help="the file; one that is there is replaced")


def run_export(arguments: argparse.Namespace) -> None:
    from iltm_anomaly.export.graph import export_onnx
    from iltm_anomaly.hub.folders import resolve_model_folder
    from iltm_anomaly.pipeline import ILTMAnomalyPipeline

    folder, _ = resolve_model_folder(arguments.model)
    path = export_onnx(ILTMAnomalyPipeline.from_pretrained(folder), arguments.output)
    print(
        f"written: {path} ({path.stat().st_size / 2**20:.1f} MB); iltm_anomaly.export.scorer.OnnxScorer scores with it"
    )


def add_report_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("folder", type=Path, metavar="DIR", help="what detect has written, or a run folder of train on features")
    add("--output", type=Path, metavar="FILE.html", help="the page (default: report.html in DIR)")


def run_report(arguments: argparse.Namespace) -> None:
    from iltm_anomaly.evaluation.report import write_report

    path, report = write_report(arguments.folder, arguments.output)
    abnormal = sum(row.abnormal for row in report.rows)
    counts = f"{report.words[1]}: {abnormal} of {len(report.rows)} images, failed: {len(report.unreadable)}"
    print(f"{counts}; written: {path}")


def usable_device(name: str | None) -> str:
    """`name`, or without one a GPU if there is one; raises ValueError if this machine does not have it."""
    import torch

    if name is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=name, dtype=torch.float64)  # healing draws with these; Metal has none
    except (RuntimeError, AssertionError, TypeError) as error:  # a build without CUDA asserts
        raise ValueError(f"--device {name} cannot be used: {str(error).splitlines()[0]}") from error
    return name


def add_demo_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--volumes", action="store_true", help="generated whole-body PET in place of images")
    output = "an earlier demo there is replaced (default: demo, or demo_volumes)"
    add("--output", type=Path, metavar="DIR", help=output)
    add("--seed", type=int, default=0, help="seed of everything random (default: 0)")


def run_demo(arguments: argparse.Namespace) -> None:
    from iltm_anomaly.demo import demo, demo_volumes

    run, folder = (demo_volumes, "demo_volumes") if arguments.volumes else (demo, "demo")
    run(arguments.output or Path(folder), arguments.seed)


def add_benchmark_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--data", metavar="ROOT", help="folder that the categories are in")
    categories = "category folders below ROOT (bottle, mvtec/bottle), `official` for the 12 of the paper, or `all15` of MVTec AD"
    add("--categories", nargs="+", metavar="NAME", help=categories)
    output = "cells, runs and report; the same DIR again continues"
    add("--output", required=True, type=Path, metavar="DIR", help=output)
    methods = (
        "all (default), paper, or names; patchcore, patchcore_coreset and softpatch are not in all, as they need weights of an "
        "ImageNet network"
    )
    add("--methods", nargs="+", default=["all"], metavar="NAME", help=methods)
    shares = "shares of defective training images (default: 0 0.1 0.2)"
    add("--contamination", nargs="+", type=float, default=[0.0, 0.1, 0.2], metavar="F", help=shares)
    add("--seeds", nargs="+", type=int, default=[0], metavar="N", help="seeds of everything random (default: 0)")
    add("--preset", default="cpu", metavar="NAME_OR_FILE", help="recipe (default: cpu)")
    sizes = (
        "training images of every cell; `common` (default) takes, per category, the most at which all levels are possible, "
        "`all` the good images and as many defective ones as a level needs"
    )
    add("--protocol", choices=PROTOCOLS, default=PROTOCOLS[0], help=PROTOCOL_HELP)
    side = (
        "pixels of the square that every image becomes for all methods, in place of the recipe's; a multiple of the side of a "
        "token, 8 pixels with every preset of images"
    )
    add("--image-size", type=int, metavar="N", help=side)
    add("--train-size", type=_size, default="common", metavar="N", help=sizes)
    seconds = "training time of each other method (default: that of one round of ILTM's prior; with `paper`, its own schedule)"
    add("--baseline-seconds", type=float, metavar="S", help=seconds)
    config: dict[str, Any] = {"nargs": "+", "action": "extend", "type": _baseline_field, "default": []}
    values = "fields of other methods in place of the preset's, such as cutpaste.weights=microsoft/resnet-18"
    add("--baseline-config", **config, metavar="METHOD.FIELD=VALUE", help=values)
    add("--cpu", action="store_true", help="do not use a GPU")
    add = parser.add_mutually_exclusive_group().add_argument
    add("--dry-run", action="store_true", help="print plan and cost, try one step of everything, train nothing")
    add("--report-only", action="store_true", help="write the report of the cells in DIR anew; needs no data")


def _size(text: str) -> int | str:
    return int(text) if text.isdigit() else text


def _baseline_field(text: str) -> tuple[str, str, Any]:
    """ "nsa.max_patches=4" -> ("nsa", "max_patches", 4)."""
    import yaml

    name, equals, value = text.partition("=")
    method, dot, field = name.partition(".")
    if not (equals and dot and method and field):
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form METHOD.FIELD=VALUE")
    found = yaml.safe_load(value)
    if isinstance(found, str):
        with suppress(ValueError):  # YAML takes 1e-3 for text
            found = float(found)
    return method, field, found


def run_benchmark(arguments: argparse.Namespace) -> None:
    if arguments.report_only:
        from iltm_anomaly.comparison.benchmark.report import write_report

        written = write_report(arguments.output)
    else:
        from iltm_anomaly.comparison.benchmark.plan import BenchmarkArguments
        from iltm_anomaly.comparison.benchmark.task import benchmark, check

        if arguments.data is None or arguments.categories is None:
            raise ValueError("--data and --categories are needed, unless --report-only is given")
        values = {k: v for k, v in vars(arguments).items() if k in BenchmarkArguments.__dataclass_fields__}
        values["baseline_config"] = {}
        for method, name, value in arguments.baseline_config:
            values["baseline_config"].setdefault(method, {})[name] = value
        if arguments.dry_run:
            check(BenchmarkArguments(**values))
            return
        written = benchmark(BenchmarkArguments(**values))
    print(f"written: {', '.join(map(str, written))}")


def add_push_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("model", metavar="MODEL", help="run folder, pipeline folder, or folder of a Space or metric")
    add("repo_id", metavar="REPO_ID", help="owner/name on the Hub; made if it does not exist")
    add("--dry-run", action="store_true", help="list exactly what would go up, and send nothing")
    add("--private", action="store_true", help="make the repository private, if it is made")
    results = (
        "what evaluate has written, for the model card, one file a seed (default: evaluation/results.json of the run)"
    )
    add("--results", nargs="+", type=Path, metavar="JSON", help=results)
    picture = "for the model card, yours to publish (default: a plot of the results)"
    add("--picture", type=Path, metavar="PNG", help=picture)
    add("--revision", metavar="BRANCH", help="branch to upload to (default: main)")


def run_push(arguments: argparse.Namespace) -> None:
    from iltm_anomaly.hub.upload import model_folder, plan_upload, results_of, upload

    results = arguments.results or results_of(arguments.model)
    plan = plan_upload(model_folder(arguments.model), arguments.repo_id, results, arguments.picture)
    print(plan.describe())
    if arguments.dry_run:
        print("dry run: nothing was sent")
    else:
        print(upload(plan, private=arguments.private or None, revision=arguments.revision))


Command = tuple[str, Callable[[argparse.ArgumentParser], None], Callable[[argparse.Namespace], int | None]]
COMMANDS: dict[str, Command] = {
    "demo": ("train and test on a generated contaminated set, offline", add_demo_arguments, run_demo),
    "train": ("train on contaminated images", add_train_arguments, run_train),
    "evaluate": (
        "measure every round of a run on held-out images with ground truth",
        add_evaluate_arguments,
        run_evaluate,
    ),
    "detect": ("score images and draw where they are wrong", add_detect_arguments, run_detect),
    "export": (
        "write a model on features as an ONNX file that scores without torch",
        add_export_arguments,
        run_export,
    ),
    "report": ("show what detect or train has found as one page", add_report_arguments, run_report),
    "benchmark": (
        "measure every method of the paper's table on the same contaminated images",
        add_benchmark_arguments,
        run_benchmark,
    ),
    "push": ("upload a pipeline, a Space or a metric to the Hugging Face Hub", add_push_arguments, run_push),
}


def build_parser() -> argparse.ArgumentParser:
    """The whole command line."""
    parser = argparse.ArgumentParser(
        prog="iltm-anomaly", description="Anomaly detection that learns from contaminated data."
    )
    parser.add_argument("--version", action="version", version=__version__)
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (summary, add_arguments, _) in COMMANDS.items():
        add_arguments(commands.add_parser(name, help=summary, description=summary[0].upper() + summary[1:] + "."))
    return parser


def main(argv: list[str] | None = None) -> int:
    """Runs one command. Errors that a user can mend are one line on stderr and exit code 2; `detect` has codes of its own."""
    arguments = build_parser().parse_args(argv)
    from huggingface_hub.errors import StrictDataclassError  # after parsing: --help does not wait for it

    level = logging.INFO if IS_MAIN_PROCESS else logging.ERROR  # what one of many processes has to say is said once
    logging.basicConfig(level=level, format="%(levelname)s %(message)s", stream=sys.stderr)
    quiet_libraries()
    try:
        return COMMANDS[arguments.command][2](arguments) or 0
    except (ValueError, RuntimeError, OSError, ImportError, StrictDataclassError, MemoryError, OverflowError) as error:
        if arguments.debug:
            raise
        said = str(error)
        if isinstance(error, MemoryError | OverflowError):  # which often say nothing, or not of what
            what = "the memory is too small" if isinstance(error, MemoryError) else "a number is too large"
            said = f"{what} for what was asked ({said or type(error).__name__}): give smaller images, sizes or batches"
        print(f"iltm-anomaly {arguments.command}: {said}", *getattr(error, "__notes__", []), sep="\n", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; --resume continues a training run, the same command a benchmark", file=sys.stderr)
        return 130


def quiet_libraries() -> None:
    """Leaves the terminal to our own progress bars: libraries log warnings only, and their bars are off."""
    from datasets.utils.logging import disable_progress_bar as disable_datasets_bars
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    disable_datasets_bars()
    for name in ("httpx", "httpx2", "datasets", "accelerate", "matplotlib", "PIL"):
        logging.getLogger(name).setLevel(logging.WARNING)


if __name__ == "__main__":
    sys.exit(main())
