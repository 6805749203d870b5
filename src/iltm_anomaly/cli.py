"""Command line: `iltm-anomaly demo | train | evaluate | detect | export | report | benchmark | push`. Heavy imports wait."""

import argparse
import logging
import math
import os
import shlex
import sys
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from iltm_anomaly import __version__
from iltm_anomaly.cli_benchmark import PROTOCOL_HELP, PROTOCOLS, add_benchmark_arguments, run_benchmark
from iltm_anomaly.colours import PaintedLevels, painted

IS_MAIN_PROCESS = os.environ.get("RANK", "0") == "0"  # of those that a launcher started, if one did
MOST_FAILED = 20  # images that are listed at the end of `detect`


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
        "recipe: features, features+pixels; with a VQ-VAE paper, cpu, tiny; for volumes phantom, pet, pet-crop, mri-crop, "
        "tiny-volumes; for tests tiny-features; or a YAML file (default: features; phantom with --volumes)"
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
    kind = _number(float, 0, "number of seconds: give one from 0 on, such as 120")
    seconds = "time between checkpoints (default: 120)"
    add("--checkpoint-seconds", type=kind, default=120.0, metavar="S", help=seconds)
    add("--streaming", action="store_true", help="read the images one by one from a Hub data set without storing it")
    trackers = (
        "tensorboard, trackio, wandb, mlflow, or all that are installed; DIR/training_log.jsonl is always written"
    )
    add("--report-to", nargs="+", default=[], metavar="TRACKER", help=trackers)
    add("--cpu", action="store_true", help="do not use a GPU")
    add("--push-to-hub", metavar="REPO_ID", help="upload the pipeline when it is trained, as push does")


def _number(kind: type, least: float, what: str) -> Callable[[str], float]:
    """Makes a finite number of a word, `least` at least, or says that it is no `what`."""

    def parse(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not least <= value < math.inf:
            raise argparse.ArgumentTypeError(f"{text!r} is no {what}")
        return value

    return parse


def run_train(arguments: argparse.Namespace) -> None:
    from iltm_anomaly.evaluation.report import leave_report
    from iltm_anomaly.training.train import TrainArguments, train

    values = {k: v for k, v in vars(arguments).items() if k in TrainArguments.__dataclass_fields__}
    folder = train(TrainArguments(**values))
    if IS_MAIN_PROCESS:
        print(f"pipeline saved in {folder}")
        page = leave_report(arguments.output)
        if page is not None and arguments.show_progress:
            print(f"look at {page}: which training images look defective, and how training went")
        if arguments.show_progress:
            print(f"next: iltm-anomaly detect {shlex.quote(str(arguments.output))} NEW_IMAGES --output found")
        if arguments.push_to_hub is not None:
            from iltm_anomaly.hub.upload import plan_upload, upload

            print(upload(plan_upload(folder, arguments.push_to_hub)))


def add_evaluate_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("model", metavar="MODEL", help="run folder (every round), pipeline folder or Hub id (last round)")
    add("--data", required=True, metavar="ROOT", help="the data that the model was trained on")
    add("--category", help="as in training")
    add("--output", required=True, type=Path, metavar="DIR", help="for results.json, gallery.png and report.html")
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
        show_progress=arguments.show_progress,
    )
    print(format_results(document))
    print(
        "written: "
        + ", ".join(str(arguments.output / name) for name in ("results.json", "gallery.png", "report.html"))
    )


def add_detect_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("model", metavar="MODEL", help="pipeline folder, run folder or Hub id")
    inputs = (
        "images: files, folders, quoted patterns like 'shots/**/*.png', a data set of `datasets` (folder or Hub id), or - for a "
        "list on standard input; of volumes, NIfTI files and DICOM folders. If some cannot be read, the exit code is 1; if all, 2"
    )
    add("inputs", nargs="+", metavar="INPUT", help=inputs)
    output = (
        "for results.csv, results.parquet, overlays, maps and masks; the same command again goes on where it stopped"
    )
    add("--output", required=True, type=Path, metavar="DIR", help=output)
    add("--no-maps", action="store_true", help="write the tables only")
    limit = parser.add_mutually_exclusive_group().add_argument
    threshold = "score from which on an image is called abnormal (default: the model's, set by training)"
    score = _number(float, -1e30, "score: give a number, such as 7.5")
    limit("--threshold", type=score, metavar="SCORE", help=threshold)
    share = "set the threshold so that this share of good images is to be expected above it, such as 0.01"
    limit("--false-alarms", type=float, metavar="SHARE", help=share)
    labelled = (
        "set it by a few images whose state is known: a folder with good/ and other subfolders of defective ones"
    )
    limit("--labelled", type=Path, metavar="FOLDER", help=labelled)
    effort = (
        "full: all samples; fast: a few; score: none, nothing is healed (default: full); of features all find the same"
    )
    add("--effort", choices=("full", "fast", "score"), default="full", help=effort)
    tile = "side in pixels of overlapping tiles that images are cut into (default: as in training; 0: none)"
    add("--tile", type=int, metavar="SIZE", help=tile)
    kind = _number(int, 1, "number of images: give 1 or more")
    add("--batch-size", type=kind, default=8, metavar="N", help="images at once (default: 8)")
    add("--device", help="cpu, cuda, ... (default: a GPU if there is one)")


def run_detect(arguments: argparse.Namespace) -> int:
    import torch

    from iltm_anomaly.evaluation.choose_threshold import choose_threshold
    from iltm_anomaly.evaluation.detect import detect
    from iltm_anomaly.hub.folders import resolve_model_folder
    from iltm_anomaly.pipeline import ILTMAnomalyPipeline
    from iltm_anomaly.tiles import check_tile

    folder, run = resolve_model_folder(arguments.model)
    pipeline = ILTMAnomalyPipeline.from_pretrained(folder, device=usable_device(arguments.device))
    if arguments.tile is not None:
        check_tile(arguments.tile or None)
        if pipeline.image_processor.is_volumetric:
            raise ValueError("--tile is for images: volumes are not cut into tiles, leave it out")
        if pipeline.settings.tile != (arguments.tile or None):
            logging.getLogger(__name__).warning(
                "the model was trained on other images than such tiles: look at its threshold"
            )
        pipeline.settings = replace(pipeline.settings, tile=arguments.tile or None)
    limits = (arguments.threshold, arguments.false_alarms, arguments.labelled)
    said = choose_threshold(pipeline, *limits, effort=arguments.effort)
    if IS_MAIN_PROCESS and arguments.show_progress:
        print(said)
    chosen = {"save_maps": not arguments.no_maps, "show_progress": arguments.show_progress, "run_folder": run}
    rows = detect(pipeline, arguments.inputs, arguments.output, arguments.batch_size, **chosen)
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    failed = [row for row in rows if row["error"]]
    if IS_MAIN_PROCESS:
        for row in failed[:MOST_FAILED]:
            print(f"failed: {row['error']}")
        if len(failed) > MOST_FAILED:
            print(f"failed: {len(failed) - MOST_FAILED} more, see the column error")
        abnormal = sum(row["abnormal"] == 1 for row in rows)
        table = arguments.output / "results.csv"
        print(f"{len(rows) - len(failed)} scored, {abnormal} abnormal, {len(failed)} failed: {table} (and .parquet)")
    return 0 if not failed else 2 if len(failed) == len(rows) else 1


def add_export_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("model", metavar="MODEL", help="pipeline folder, run folder or Hub id of a model of images")
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
    add("folder", type=Path, metavar="DIR", help="what detect has written, or a run folder of train")
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
        return f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if torch.cuda.is_available() else "cpu"
    try:
        torch.zeros(1, device=name).item()
    except (RuntimeError, AssertionError, TypeError) as error:  # a build without CUDA asserts
        raise ValueError(f"--device {name} cannot be used: {str(error).splitlines()[0]}") from error
    return name


def add_demo_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--volumes", action="store_true", help="generated whole-body PET in place of images")
    output = "an earlier demo there is replaced, or continued if it was interrupted (default: demo, or demo_volumes)"
    add("--output", type=Path, metavar="DIR", help=output)
    add("--seed", type=int, default=0, help="seed of everything random (default: 0)")


def run_demo(arguments: argparse.Namespace) -> None:
    from iltm_anomaly.demo import demo, demo_volumes

    run, folder = (demo_volumes, "demo_volumes") if arguments.volumes else (demo, "demo")
    run(arguments.output or Path(folder), arguments.seed, show_progress=arguments.show_progress)


def add_push_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("model", metavar="MODEL", help="run folder, pipeline folder, or folder of a Space or metric")
    add("repo_id", metavar="REPO_ID", help="owner/name on the Hub; made if it does not exist")
    add("--dry-run", action="store_true", help="show the card, list exactly what would go up, and send nothing")
    add("--private", action="store_true", help="make the repository private, if it is made")
    results = (
        "what evaluate has written, for the model card, one file a seed (default: evaluation/results.json of the run)"
    )
    add("--results", nargs="+", type=Path, metavar="JSON", help=results)
    picture = "for the model card, yours to publish (default: a plot of the results)"
    add("--picture", type=Path, metavar="PNG", help=picture)
    add("--revision", metavar="BRANCH", help="branch to upload to (default: main)")


def run_push(arguments: argparse.Namespace) -> None:
    from iltm_anomaly.hub.folders import model_folder
    from iltm_anomaly.hub.upload import plan_upload, results_of, upload

    results = arguments.results or results_of(arguments.model)
    plan = plan_upload(model_folder(arguments.model), arguments.repo_id, results, arguments.picture)
    if arguments.dry_run:
        print(plan.card())
    print(plan.describe())
    if arguments.dry_run:
        print("dry run: nothing was sent; above is what README.md, the card, says")
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
        "write a model as an ONNX file that scores without torch",
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


def _general_options() -> argparse.ArgumentParser:
    """Options that may stand before a command or after it."""
    general = argparse.ArgumentParser(add_help=False, argument_default=argparse.SUPPRESS)
    general.add_argument("--debug", action="store_true", help="show the traceback of an error")
    quiet = "show results, warnings and errors alone: no progress bars, no information"
    general.add_argument("--quiet", dest="show_progress", action="store_false", help=quiet)
    return general


def build_parser() -> argparse.ArgumentParser:
    """The whole command line."""
    about = "Anomaly detection that learns from contaminated data."
    parser = argparse.ArgumentParser(prog="iltm-anomaly", description=about, parents=[_general_options()])
    parser.set_defaults(debug=False, show_progress=True)
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    for name, (summary, add_arguments, _) in COMMANDS.items():
        description = summary[0].upper() + summary[1:] + "."
        add_arguments(commands.add_parser(name, help=summary, description=description, parents=[_general_options()]))
    return parser


def main(argv: list[str] | None = None) -> int:
    """Runs one command. Errors that a user can mend are one line on stderr and exit code 2; `detect` has codes of its own."""
    parser = build_parser()
    arguments = parser.parse_args(argv)
    if arguments.command is None:
        parser.print_help()
        return 2
    # after parsing: --help does not wait for them
    from huggingface_hub.errors import StrictDataclassError

    from iltm_anomaly.early_checks import check

    level = logging.INFO if arguments.show_progress else logging.WARNING
    if not IS_MAIN_PROCESS:  # what one of many processes has to say is said once
        level = logging.ERROR
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(PaintedLevels(sys.stderr))
    logging.basicConfig(level=level, handlers=[handler])
    try:
        check(arguments)
        quiet_libraries()
        return COMMANDS[arguments.command][2](arguments) or 0
    except (ValueError, RuntimeError, OSError, ImportError, StrictDataclassError, MemoryError, OverflowError) as error:
        if arguments.debug:
            raise
        said = str(error)
        if isinstance(error, MemoryError | OverflowError):  # which often say nothing, or not of what
            what = "the memory is too small" if isinstance(error, MemoryError) else "a number is too large"
            said = f"{what} for what was asked ({said or type(error).__name__}): give smaller images, sizes or batches"
        name = painted(f"iltm-anomaly {arguments.command}:", logging.ERROR, sys.stderr)
        print(f"{name} {said}", *getattr(error, "__notes__", []), sep="\n", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; train goes on with --resume, all else with the same command", file=sys.stderr)
        return 130


def quiet_libraries() -> None:
    """Leaves the terminal to our own progress bars: libraries log warnings only, and their bars are off."""
    from datasets.utils.logging import disable_progress_bar as disable_datasets_bars
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    disable_datasets_bars()
    for name in ("httpx", "httpx2", "datasets", "accelerate", "matplotlib"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # What these say of damaged files names no file; what matters of it we say ourselves.
    for name in ("PIL", "nibabel.global"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore", module="PIL")


if __name__ == "__main__":
    sys.exit(main())
