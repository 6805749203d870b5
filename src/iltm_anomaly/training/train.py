"""`iltm-anomaly train`: from a data set, a preset and a folder to a pipeline folder."""

import hashlib
import importlib.util
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import timedelta
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from iltm_anomaly.data.images import files_below, readable_images
from iltm_anomaly.hub.data_sources import as_path
from iltm_anomaly.recipes.recipe import Recipe, load_recipe

if TYPE_CHECKING:
    from accelerate import Accelerator
    from datasets import Dataset

logger = logging.getLogger(__name__)

TRACKERS = ("tensorboard", "trackio", "wandb")
MORE_ON_CPUS = "use torchrun --nproc_per_node N scripts/train.py --cpu ..."


@dataclass
class TrainArguments:
    """What a user chooses; the recipe holds the rest.

    Args:
        data: MVTec AD folder (or one category of it), a Hub data set id, or a folder of unlabelled images.
        category: category of an MVTec AD folder or configuration of a Hub data set.
        contamination: share of defective training images (protocol: `contaminate`). None trains on what is
            there, which for a plain folder is all one can do.
        train_size: number of training images drawn; None takes all good ones.
        preset: name of a shipped recipe, a YAML file, or a recipe itself; None takes "cpu", or "phantom" for volumes.
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
    preset: str | Recipe | None = None
    volumes: bool = False
    rounds: int | None = None
    seed: int = 0
    resume: bool = False
    checkpoint_seconds: float = 120.0
    streaming: bool = False
    report_to: list[str] = field(default_factory=list)
    cpu: bool = False


class TrainingImages:
    """The training images that a user asks for, as iterable: loaded when first needed, in the process that needs them.

    An image that cannot be read is named in a warning and left out.

    Args:
        arguments: of the user.

    Raises:
        ValueError: for options that exclude each other.
    """

    def __init__(self, arguments: TrainArguments):
        if arguments.streaming and arguments.volumes:
            raise ValueError("--streaming reads images, not volumes: leave out one of the two")
        if arguments.streaming and arguments.contamination is not None:
            raise ValueError(
                "--contamination draws from the whole data set, which a stream is not: leave out --streaming"
            )
        self.arguments = arguments

    def source(self) -> str | None:
        """What tells these images from others without decoding any; None if nothing does."""
        chosen = self.arguments
        if chosen.volumes:
            return None  # of volumes the header counts too: they are read
        if chosen.streaming:  # read once: a resumed run goes on with what it has in its cache
            return f"stream {chosen.data} {chosen.category} {chosen.train_size}"
        folder, output = Path(chosen.data).expanduser(), chosen.output.absolute()
        if not folder.is_dir():
            return self._split._fingerprint
        if chosen.category is not None and (folder / chosen.category).is_dir():
            folder /= chosen.category
        drawn = (chosen.category, chosen.train_size, chosen.contamination, chosen.seed)
        digest = hashlib.sha256(repr(drawn).encode())
        for path in sorted(files_below(folder)):
            if not path.name.startswith(".") and output not in path.absolute().parents:
                status = path.stat()
                name = os.fsencode(path.relative_to(folder))
                digest.update(repr((name, status.st_size, status.st_mtime_ns)).encode())
        return digest.hexdigest()

    def record(self) -> dict[str, Any]:
        """Where they come from, and which were drawn."""
        from iltm_anomaly.data.contamination import contamination_record

        chosen = self.arguments
        record: dict[str, Any] = {"source": as_path(chosen.data), "category": chosen.category, "contamination": None}
        if chosen.streaming:
            return record | {"streamed": True}
        if self._draws:
            drawn = contamination_record(self._split)
            assert drawn is not None  # `contaminate` has just attached it
            record["contamination"] = drawn.to_dict()
        return record

    def check_resumed(self) -> None:
        """Raises RunFolderError if the run that is to be resumed has another category or draw: the images themselves are compared
        only where something is left to train. Of a stream nothing is known."""
        from iltm_anomaly.training.checkpoint import load_json
        from iltm_anomaly.training.run_folder import changes_between, refuse

        chosen = self.arguments
        path = chosen.output / "run.json"
        if not chosen.resume or chosen.streaming or not path.exists():
            return
        data = load_json(path)["data"]
        drawn = data.get("contamination") or {}
        found: dict[str, Any] = {"contamination": drawn.get("fraction"), "train size": drawn.get("train_size")}
        asked: dict[str, Any] = {
            "contamination": (chosen.contamination or 0.0) if self._draws else None,
            "train size": chosen.train_size,
        }
        if chosen.category and data.get("category"):  # it may also be the end of the path
            found["category"], asked["category"] = data["category"], chosen.category
        refuse(chosen.output, changes_between(found, asked), "Give the same, or another --output")

    def __len__(self) -> int:
        if self.arguments.streaming:
            raise TypeError("a stream has no length")
        return len(self._split)

    def __iter__(self) -> Iterator[Any]:
        chosen = self.arguments
        if chosen.volumes:
            yield from self._split["image"]
        elif chosen.streaming:
            from iltm_anomaly.data.streaming import stream_images

            sources = stream_images(chosen.data, chosen.category, chosen.train_size)
            yield from (image for _, image in readable_images(sources))
        else:
            from datasets import Image

            # a column by itself: neither labels nor masks are even decoded
            column = self._split.select_columns(["image"]).cast_column("image", Image(decode=False))["image"]
            yield from (image for _, image in readable_images(column))

    @property
    def _draws(self) -> bool:
        return self.arguments.contamination is not None or self.arguments.train_size is not None

    @cached_property
    def _split(self) -> "Dataset":
        from iltm_anomaly.data.contamination import contaminate
        from iltm_anomaly.data.folder import load_images
        from iltm_anomaly.data.volumes import load_volumes

        chosen = self.arguments
        if chosen.volumes:
            dataset = load_volumes(chosen.data, chosen.category)
        else:  # a draw counts the rows of the test split, which are those that have a mask
            dataset = load_images(chosen.data, chosen.category, require_masks=self._draws)
        if self._draws:
            if "test" not in dataset:
                raise ValueError(
                    f"{chosen.data} is a folder without test images: it is trained on as it is. --contamination and "
                    "--train-size need an MVTec AD layout (train/good, test/<defect>, ground_truth/<defect>)"
                )
            dataset = contaminate(dataset, chosen.contamination or 0.0, chosen.seed, chosen.train_size)
        return dataset["train"]


def make_accelerator(recipe: Recipe, output: Path, report_to: list[str], cpu: bool = False) -> "Accelerator":
    """Devices, processes, precision and trackers of a run. float32 replaces a precision that the device is not built for.

    Raises:
        ValueError: if a tracker is unknown or not installed.
    """
    import torch
    from accelerate import Accelerator, DistributedDataParallelKwargs, InitProcessGroupKwargs, PartialState

    if not cpu and torch.backends.mps.is_available():
        logger.warning("Metal (MPS) has no float64, which healing draws by: training on the CPU")
        cpu = True
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
        MainProcessError: in the other processes, if the main one failed.
    """
    from iltm_anomaly.training.processes import describe, own_accelerator
    from iltm_anomaly.training.run import TrainingRun

    preset = arguments.preset or ("phantom" if arguments.volumes else "cpu")
    recipe = preset if isinstance(preset, Recipe) else load_recipe(preset)
    if recipe.is_volumetric != arguments.volumes:
        kind, remedy = ("volumes", "pass --volumes") if recipe.is_volumetric else ("images", "leave out --volumes")
        raise ValueError(f"preset {recipe.name} is for {kind}: {remedy}, or choose another preset")
    if arguments.rounds is not None:
        recipe = replace(recipe, rounds=replace(recipe.rounds, rounds=arguments.rounds))
    images = TrainingImages(arguments)
    images.check_resumed()
    with own_accelerator():
        accelerator = make_accelerator(recipe, arguments.output, arguments.report_to, arguments.cpu)
        if accelerator.is_main_process:
            logger.info("training on %s", describe(accelerator))
            alone = accelerator.num_processes == 1 and "WORLD_SIZE" not in os.environ
            if alone and accelerator.device.type == "cpu" and "MASTER_ADDR" in os.environ:
                logger.warning("accelerate starts one process on a CPU, whatever --num_processes: %s", MORE_ON_CPUS)
        run = TrainingRun(
            recipe, arguments.output, arguments.seed, accelerator, checkpoint_seconds=arguments.checkpoint_seconds
        )
        folder = run.train(images, images.record, resume=arguments.resume, source=images.source)
        if arguments.report_to or accelerator.num_processes > 1:
            accelerator.end_training()
        return folder
