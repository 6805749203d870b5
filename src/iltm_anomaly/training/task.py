"""`iltm-anomaly train`: from a data set, a preset and a folder to a pipeline folder."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from iltm_anomaly.training.recipe import load_recipe


@dataclass
class TrainArguments:
    """What a user chooses; the recipe holds the rest.

    Args:
        data: MVTec AD folder (or one category of it), a Hub data set id, or a folder of unlabelled images.
        category: category of an MVTec AD folder or configuration of a Hub data set.
        contamination: share of defective training images (design: protocol of contaminated training). None trains on what is
            there, which for a plain folder is all one can do.
        train_size: number of training images drawn; None takes all good ones.
        preset: name of a shipped recipe, or a YAML file; None takes "cpu", or "phantom" for volumes.
        volumes: the data are volumes (NIfTI); the preset must be one for volumes.
        rounds: masked rounds in place of the recipe's.
        seed: of everything random, the contamination split included.
        resume: continue the run in `output`.
        checkpoint_seconds: time between checkpoints; they cost little more than writing the models and their optimiser.
        cpu: do not use an accelerator although there is one.
    """

    data: str
    output: Path
    category: str | None = None
    contamination: float | None = None
    train_size: int | None = None
    preset: str | None = None
    volumes: bool = False
    rounds: int | None = None
    seed: int = 0
    resume: bool = False
    checkpoint_seconds: float = 120.0
    cpu: bool = False


def load_training_images(arguments: TrainArguments) -> tuple[list, dict[str, Any]]:
    """The training images, and the record of where they come from that goes into the report."""
    from iltm_anomaly.data.contamination import contaminate, contamination_record
    from iltm_anomaly.data.folder import load_images
    from iltm_anomaly.data.volumes import load_volumes

    record: dict[str, Any] = {"source": arguments.data, "category": arguments.category, "contamination": None}
    load = load_volumes if arguments.volumes else load_images
    dataset = load(arguments.data, arguments.category)
    if arguments.contamination is not None or arguments.train_size is not None:
        if "test" not in dataset:
            raise ValueError(
                f"{arguments.data} is a folder without test images: it is trained on as it is. --contamination and "
                "--train-size need an MVTec AD layout (train/good, test/<defect>, ground_truth/<defect>)"
            )
        dataset = contaminate(dataset, arguments.contamination or 0.0, arguments.seed, arguments.train_size)
        chosen = contamination_record(dataset)
        assert chosen is not None  # contaminate has just attached it
        record["contamination"] = chosen.to_dict()
    # columns are read one by one: neither labels nor masks are even decoded
    return list(dataset["train"]["image"]), record


def train(arguments: TrainArguments) -> Path:
    """Runs or resumes a training run; returns the pipeline folder.

    Raises:
        ValueError: for arguments or data that cannot be used.
        RunFolderError: if `output` holds another run.
    """
    from accelerate import Accelerator

    from iltm_anomaly.training.run import TrainingRun

    recipe = load_recipe(arguments.preset or ("phantom" if arguments.volumes else "cpu"))
    if recipe.is_volumetric != arguments.volumes:
        kind, remedy = ("volumes", "pass --volumes") if recipe.is_volumetric else ("images", "leave out --volumes")
        raise ValueError(f"preset {arguments.preset} is for {kind}: {remedy}, or choose another preset")
    if arguments.rounds is not None:
        recipe.rounds = replace(recipe.rounds, rounds=arguments.rounds)
    images, record = load_training_images(arguments)
    accelerator = Accelerator(mixed_precision=recipe.mixed_precision, cpu=arguments.cpu)
    arguments.output.mkdir(parents=True, exist_ok=True)
    run = TrainingRun(
        recipe, arguments.output, arguments.seed, accelerator, checkpoint_seconds=arguments.checkpoint_seconds
    )
    return run.train(images, record, resume=arguments.resume)
