"""`iltm-anomaly demo`: the whole way on a generated contaminated set of images or volumes, offline."""

import shutil
from pathlib import Path

from iltm_anomaly.evaluation.detect import detect
from iltm_anomaly.evaluation.evaluate import evaluate_run, format_results
from iltm_anomaly.evaluation.report import leave_report
from iltm_anomaly.hub.data_sources import CONTAMINATION
from iltm_anomaly.pipeline import ILTMAnomalyPipeline
from iltm_anomaly.synthetic.dataset import generate_dataset, write_mvtec_tree
from iltm_anomaly.synthetic.phantoms import write_phantoms
from iltm_anomaly.training.arguments import TrainArguments
from iltm_anomaly.training.train import train

MARKER = ".iltm-anomaly-demo"  # holds what is under way in the folder, nothing once it is finished


def demo(output: Path, seed: int = 0, show_progress: bool = True) -> dict:
    """Generates images of a machined part, 30 % of the training ones with one of four faults that its machine repeats; trains,
    refits with suspicious tokens masked, scores held-out images after every round, and reloads the pipeline to score one image.

    Files, below `output`: `data` (MVTec AD layout), `run` (`run/model` is the pipeline), `results.json`, `gallery.png`,
    `report.html`.

    Returns:
        The document in `results.json`.
    """
    print(
        f"1. generating images of a part, {CONTAMINATION:.0%} for training with a fault that comes back: {output / 'data'}"
    )
    resume = _begin(output, f"images {seed}")
    # the generator mixes defects into training itself: nothing in `train` says which images they are
    dataset = generate_dataset(
        kind="part",
        size=96,
        num_train=160,
        num_test_good=30,
        num_test_defective=40,
        contamination=CONTAMINATION,
        seed=seed,
        recurring=True,
    )
    folder = write_mvtec_tree(dataset, output / "data", "part")

    arguments = TrainArguments(str(folder), output / "run", preset="demo", seed=seed, show_progress=show_progress)
    arguments.resume = resume
    document = _train_and_evaluate(arguments, output)
    image = next(row["image"] for row in dataset["test"] if row["defect"] == "label_askew")
    path = output / "defective.png"
    image.save(path)
    pipe = _load(output, "image", path)
    out = pipe(path)
    _print_verdict(pipe, float(out.scores[0]), bool(out.masks[0].any()))
    (output / MARKER).write_text("")
    print(f"look at {output / 'report.html'}; of the training images at {output / 'run' / 'report.html'}")
    return document


def demo_volumes(
    output: Path,
    seed: int = 0,
    preset: str = "phantom",
    num_train: int = 100,
    spacing: float = 8.0,
    show_progress: bool = True,
) -> dict:
    """The same with phantoms of whole-body PET, 30 % of the training ones with lesions that one disease has at the same sites.

    Files, below `output`: `data` (NIfTI in MVTec AD layout, with `lesions.json`), `run` (`run/model` is the pipeline),
    `results.json`, `gallery.png`, and in `detected` map and mask of one volume as NIfTI and its projections.

    Args:
        output, seed, show_progress: as in `demo`.
        preset: recipe.
        num_train: training volumes; a tenth as many good ones are tested on, and a fifth as many with lesions.
        spacing: size of a voxel in mm.
    """
    print(
        f"1. generating whole-body FDG-PET phantoms, {CONTAMINATION:.0%} with lesions of one disease: {output / 'data'}"
    )
    resume = _begin(output, f"volumes {preset} {num_train} {spacing} {seed}")
    data = write_phantoms(
        output / "data",
        num_train,
        num_test_good=max(1, num_train // 10),
        num_test_lesion=max(1, num_train // 5),
        contamination=CONTAMINATION,
        spacing=spacing,
        seed=seed,
        recurring=True,
    )

    arguments = TrainArguments(
        str(data), output / "run", volumes=True, preset=preset, seed=seed, show_progress=show_progress, resume=resume
    )
    document = _train_and_evaluate(arguments, output)
    path = data / "test" / "lesion" / "000.nii.gz"
    pipe = _load(output, "volume", path)
    row = detect(pipe, [path], output / "detected", show_progress=False)[0]
    _print_verdict(pipe, float(row["score"]), bool(row["abnormal"]))
    (output / MARKER).write_text("")
    print(f"look at {output / 'report.html'}; {output / 'detected' / row['map']} opens in any NIfTI viewer")
    return document


def _train_and_evaluate(arguments: TrainArguments, output: Path) -> dict:
    if arguments.volumes:
        kind, how = (
            "volumes",
            "how hot each place of a body may be; rounds give up what other bodies do not have there",
        )
    else:
        kind, how = "images", "features of a frozen network; rounds reject tokens that other images do not have"
    print(f"2. training: {how}")
    train(arguments)
    leave_report(arguments.output)
    print(f"3. scoring held-out {kind} after every round")
    document = evaluate_run(arguments.output, arguments.data, None, output, show_progress=arguments.show_progress)
    print(format_results(document))
    return document


def _load(output: Path, kind: str, path: Path) -> ILTMAnomalyPipeline:
    model = output / "run" / "model"
    print(f"4. one line to load it again, one to score {'an' if kind == 'image' else 'a'} {kind}:")
    print(f'   pipe = ILTMAnomalyPipeline.from_pretrained("{model}")')
    print(f'   out = pipe("{path}")')
    return ILTMAnomalyPipeline.from_pretrained(model)


def _print_verdict(pipe: ILTMAnomalyPipeline, score: float, abnormal: bool) -> None:
    """Prints the verdict on a defective example; if it is missed, also why and what to do."""
    print(
        f"   score {score:.3g}, threshold {pipe.settings.score_threshold:.3g}: {'abnormal' if abnormal else 'normal'}"
    )
    if not abnormal:
        print(
            "   (it is missed: the threshold comes from training data that nobody sorted; `detect --threshold` moves it)"
        )


def _begin(output: Path, what: str) -> bool:
    """Whether the folder holds the same demo, which was interrupted and is to be continued; one of any other demo is emptied.

    Raises:
        ValueError: if the folder holds something else.
    """
    if output.is_dir() and any(output.iterdir()):
        if not (output / MARKER).exists():
            raise ValueError(f"{output} is not empty and not from an earlier demo: choose another --output")
        if (output / MARKER).read_text() == what:
            print("   an earlier call was interrupted: this one goes on where it stopped")
            shutil.rmtree(output / "data", ignore_errors=True)  # perhaps a part of it; the same is generated again
            return True
        shutil.rmtree(output)
    output.mkdir(parents=True, exist_ok=True)
    (output / MARKER).write_text(what)
    return False
