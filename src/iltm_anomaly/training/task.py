"""`iltm-anomaly train`: from a data set, a preset and a folder to a pipeline folder."""

import importlib.util
import logging
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from iltm_anomaly.training.recipe import Recipe, load_recipe

if TYPE_CHECKING:
    from accelerate import Accelerator

logger = logging.getLogger(__name__)

TRACKERS = ("tensorboard", "trackio", "wandb")


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
        streaming: read the training images one by one through `datasets`, without storing the data set: one of the Hub, or a
            local folder that `datasets` reads. `train_size` takes the first N.
        report_to: trackers beside the run's own log, of `TRACKERS`.
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
    streaming: bool = False
    report_to: list[str] = field(default_factory=list)
    cpu: bool = False


def load_training_images(arguments: TrainArguments) -> tuple[Iterable[Any], dict[str, Any], str | None]:
    """The training images, read when they are iterated over; the record of where they come from that goes into the report; and
    what tells them from other images without reading them."""
    from iltm_anomaly.data.contamination import contaminate, contamination_record
    from iltm_anomaly.data.folder import load_images
    from iltm_anomaly.data.volumes import load_volumes

    record: dict[str, Any] = {"source": arguments.data, "category": arguments.category, "contamination": None}
    if arguments.streaming:
        from iltm_anomaly.data.streaming import stream_images

        if arguments.volumes:
            raise ValueError("--streaming reads images, not volumes: leave out one of the two")
        if arguments.contamination is not None:
            raise ValueError(
                "--contamination draws from the whole data set, which a stream is not: leave out --streaming"
            )
        images = stream_images(arguments.data, arguments.category, arguments.train_size)
        # read once: a resumed run goes on with what it has in its cache
        source = f"stream {arguments.data} {arguments.category} {arguments.train_size}"
        return images, record | {"streamed": True}, source
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
    # a column by itself: neither labels nor masks are even decoded
    # the fingerprint covers size and time of change of image files, not of volumes
    return dataset["train"]["image"], record, None if arguments.volumes else dataset["train"]._fingerprint


def make_accelerator(recipe: Recipe, output: Path, report_to: list[str], cpu: bool = False) -> "Accelerator":
    """Devices, processes, precision and trackers of a run. float32 replaces a precision that the device is not built for.

    Raises:
        ValueError: if a tracker is unknown or not installed.
    """
    from accelerate import Accelerator, DistributedDataParallelKwargs, InitProcessGroupKwargs, PartialState

    for name in report_to:
        if name not in TRACKERS:
            raise ValueError(
                f"--report-to takes {', '.join(TRACKERS)}, got {name!r}; the run's own log is always written"
            )
        if importlib.util.find_spec(name) is None:
            raise ValueError(f"--report-to {name} needs a package that is not installed: pip install {name}")
    waiting = InitProcessGroupKwargs(timeout=timedelta(hours=6))  # while the main process decodes the images
    state = PartialState(cpu=cpu, timeout=waiting.timeout)
    precision = recipe.mixed_precision
    if precision != "no" and not _has_precision(state.device, precision):
        if state.is_main_process:
            logger.warning("%s is not built for %s: training in float32", state.device.type, precision)
        precision = "no"
    return Accelerator(
        mixed_precision=precision,
        cpu=cpu,
        dynamo_backend="inductor" if recipe.compile else None,
        log_with=list(report_to) or None,
        project_dir=str(output),
        # the quantiser reduces its statistics itself, all other buffers are drawn alike: none need be sent around every step
        kwargs_handlers=[
            DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True),
            waiting,
        ],
    )


def _has_precision(device: Any, precision: str) -> bool:
    """Whether a device computes in bfloat16 or float16 itself, rather than through float32, which is slower than float32."""
    import torch

    if precision == "fp16":
        return device.type != "cpu"
    if device.type == "cpu":
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return True


def train(arguments: TrainArguments) -> Path:
    """Runs or resumes a training run; returns the pipeline folder.

    Raises:
        ValueError: for arguments or data that cannot be used.
        RunFolderError: if `output` holds another run.
        CheckpointError: if `output` cannot be written.
        NonFiniteLossError: if training diverges.
    """
    from iltm_anomaly.training.folder import flat
    from iltm_anomaly.training.run import TrainingRun

    recipe = load_recipe(arguments.preset or ("phantom" if arguments.volumes else "cpu"))
    if recipe.is_volumetric != arguments.volumes:
        kind, remedy = ("volumes", "pass --volumes") if recipe.is_volumetric else ("images", "leave out --volumes")
        raise ValueError(f"preset {arguments.preset} is for {kind}: {remedy}, or choose another preset")
    if arguments.rounds is not None:
        recipe.rounds = replace(recipe.rounds, rounds=arguments.rounds)
    images, record, source = load_training_images(arguments)
    accelerator = make_accelerator(recipe, arguments.output, arguments.report_to, arguments.cpu)
    arguments.output.mkdir(parents=True, exist_ok=True)
    if arguments.report_to:
        values = flat(recipe.to_dict()) | {"seed": arguments.seed}
        simple = {key: value for key, value in values.items() if isinstance(value, bool | int | float | str)}
        accelerator.init_trackers("trackers", config=simple)
    run = TrainingRun(
        recipe, arguments.output, arguments.seed, accelerator, checkpoint_seconds=arguments.checkpoint_seconds
    )
    folder = run.train(images, record, resume=arguments.resume, source=source)
    if arguments.report_to or accelerator.num_processes > 1:
        accelerator.end_training()
    return folder
