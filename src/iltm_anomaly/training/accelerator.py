"""Devices, processes, precision and trackers of a run."""

import importlib.util
import logging
import os
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs, InitProcessGroupKwargs, PartialState
from accelerate.tracking import GeneralTracker, get_available_trackers
from accelerate.utils import broadcast_object_list

from iltm_anomaly.recipes.feature_recipe import FeatureRecipe
from iltm_anomaly.recipes.pixel_recipe import Recipe
from iltm_anomaly.training.precision import faster_precision
from iltm_anomaly.training.run_folder import RunFolderError, read_record

logger = logging.getLogger(__name__)

TRACKERS = ("all", "mlflow", "tensorboard", "trackio", "wandb")  # all: those that accelerate knows and finds installed


def make_accelerator(
    recipe: Recipe, output: Path, report_to: list[str | GeneralTracker], cpu: bool = False
) -> Accelerator:
    """Devices, processes, precision and trackers of a run. float32 replaces a precision that the device is not built for.

    Args:
        output: the run's folder.
        report_to: names of `TRACKERS`, and trackers of one's own.

    Raises:
        ValueError: if a tracker is unknown or not installed, or `accelerate launch` asks for what does not work.
    """
    _refuse_sharding()
    if not cpu and torch.backends.mps.is_available():
        logger.warning("nobody has tried to train on Metal (MPS): training on the CPU")
        cpu = True
    for name in (tracker for tracker in report_to if isinstance(tracker, str)):
        if name not in TRACKERS:
            raise ValueError(
                f"--report-to takes {', '.join(TRACKERS)}, got {name!r}; the run's own log is always written"
            )
        if importlib.util.find_spec(name) is None if name != "all" else not get_available_trackers():
            raise ValueError(f"--report-to {name} needs a package that is not installed: pip install {name}")
    waiting = InitProcessGroupKwargs(timeout=timedelta(hours=6))  # while the main process decodes the images
    state = PartialState(cpu=cpu, timeout=waiting.timeout)
    precision = _launched(recipe) or recipe.mixed_precision
    if precision == "auto":
        precision = _chosen(recipe, output, state)
    if precision != "no" and not _has_precision(state.device, precision):
        if state.is_main_process:
            logger.warning("%s is not built for %s: training in float32", state.device.type, precision)
        precision = "no"
    return Accelerator(
        mixed_precision=precision,
        cpu=cpu,
        log_with=list(report_to) or None,
        project_dir=str(output),
        # the quantiser reduces its statistics itself, all other buffers are drawn alike: none need be sent around every step
        kwargs_handlers=[
            DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True),
            waiting,
        ],
    )


def _refuse_sharding() -> None:
    """Raises ValueError if `accelerate launch` or `accelerate config` ask for a way to split models."""
    for name in ("FSDP", "DEEPSPEED", "MEGATRON_LM"):
        if os.environ.get(f"ACCELERATE_USE_{name}", "false").lower() == "true":
            raise ValueError(
                f"accelerate asks for {name}, which splits models too large for one device: these are some MB, and are trained "
                "by plain data parallelism alone. Launch without it, `accelerate launch --multi_gpu`"
            )


def _launched(recipe: Recipe) -> str | None:
    """What `accelerate launch --mixed_precision` or `accelerate config` ask for; it wins over the recipe. "no" is also what the
    launcher says where nobody has asked for anything: it leaves the choice to the recipe.

    Raises:
        ValueError: for what does not work.
    """
    asked = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if asked == "no":
        return None
    is_fitted = isinstance(recipe, FeatureRecipe) and recipe.pixels is None
    if is_fitted or asked not in ("bf16", "fp16"):
        what = "a run on features optimises no network" if is_fitted else "it does not train"
        raise ValueError(f"accelerate asks for mixed_precision {asked}, but {what}: launch with --mixed_precision no")
    return asked


def _chosen(recipe: Recipe, output: Path, state: PartialState) -> str:
    """The precision that a run in `output` was begun in, so that it goes on bit for bit; of a new run the faster one."""
    found: list[str | None] = [None]
    if state.is_main_process:
        sittings: list[dict[str, Any]] = []
        with suppress(RunFolderError):  # the run itself says what is wrong, in all processes
            sittings = (read_record(output / "run.json") or {}).get("sittings") or []
        if sittings:
            found = [sittings[-1].get("precision")]
        elif _has_precision(state.device, "bf16"):
            found = [faster_precision(getattr(recipe, "pixels", recipe), state.device)]
    return broadcast_object_list(found)[0] or "no"


def _has_precision(device: Any, precision: str) -> bool:
    """Whether a device computes in bfloat16 or float16 itself, rather than through float32, which is slower than float32."""
    if precision == "fp16":
        return device.type != "cpu"
    if device.type == "cpu":
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return True
