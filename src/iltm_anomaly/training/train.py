"""`iltm-anomaly train`: from a data set, a preset and a folder to a pipeline folder."""

import logging
import os
from pathlib import Path

from iltm_anomaly.recipes.recipe import load_recipe
from iltm_anomaly.training.accelerator import make_accelerator
from iltm_anomaly.training.arguments import TrainArguments
from iltm_anomaly.training.bounds import check_sizes
from iltm_anomaly.training.images import TrainingImages
from iltm_anomaly.training.processes import describe, own_accelerator
from iltm_anomaly.training.run import TrainingRun

logger = logging.getLogger(__name__)

MORE_ON_CPUS = "use torchrun --nproc_per_node N scripts/train.py --cpu ..."


def train(arguments: TrainArguments) -> Path:
    """Runs or resumes a training run; returns the pipeline folder.

    Raises:
        ValueError: for arguments or data that cannot be used.
        RunFolderError: if `output` holds another run.
        InUseError: if another process trains in `output`.
        CheckpointError: if `output` cannot be written.
        NonFiniteLossError: if training diverges.
        MainProcessError: in the other processes, if the main one failed.
    """
    preset = arguments.preset or ("phantom" if arguments.volumes else "features")
    rounds = [] if arguments.rounds is None else [f"rounds.rounds={arguments.rounds}"]
    tile = [] if arguments.tile is None else [f"tile={arguments.tile}"]
    recipe = load_recipe(preset, [*arguments.overrides, *rounds, *tile])
    check_sizes(recipe)
    if recipe.is_volumetric != arguments.volumes:
        kind, remedy = ("volumes", "pass --volumes") if recipe.is_volumetric else ("images", "leave out --volumes")
        raise ValueError(f"preset {recipe.name} is for {kind}: {remedy}, or choose another preset")
    images = TrainingImages(arguments)
    images.check_resumed()
    with own_accelerator():
        accelerator = make_accelerator(recipe, arguments.output, arguments.report_to, arguments.cpu)
        if accelerator.is_main_process:
            logger.info("training on %s", describe(accelerator))
            alone = accelerator.num_processes == 1 and "WORLD_SIZE" not in os.environ
            if alone and accelerator.device.type == "cpu" and "MASTER_ADDR" in os.environ:
                logger.warning("accelerate starts one process on a CPU, whatever --num_processes: %s", MORE_ON_CPUS)
        chosen = (arguments.show_progress, arguments.checkpoint_seconds)
        run = TrainingRun(recipe, arguments.output, arguments.seed, accelerator, *chosen)
        folder = run.train(images, images.record, resume=arguments.resume, source=images.source)
        if arguments.report_to or accelerator.num_processes > 1:
            accelerator.end_training()
        return folder
