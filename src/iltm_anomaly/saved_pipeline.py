"""`SavedPipeline`: trained parts that move, save and load together, as one folder or one repository of the Hub."""

import json
from collections.abc import Iterator
from numbers import Integral
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from transformers import PreTrainedModel

from iltm_anomaly import __version__
from iltm_anomaly.hub.checks import check_finite, check_folder, read_json
from iltm_anomaly.hub.folders import CALIBRATION_FILE, SETTINGS_FILE, local_folder
from iltm_anomaly.processing.image_processing import ILTMImageProcessor
from iltm_anomaly.progress import progress
from iltm_anomaly.settings import chosen_and_measured


class SavedPipeline:
    """Parts with `save_pretrained` and `from_pretrained` (models and an image processor), the settings that calibration has
    found, and the report of their training.

    A folder has one sub-folder per part, model_index.json with the parts' classes, inference_config.json with the settings that
    somebody chose, if there are any, calibration.json with those that were measured, and training_report.json. A subclass lists
    its parts in `part_names`. Its constructor takes them under these names, and `settings` and `training_report` besides, and
    sets each as an attribute of the same name.

    Attributes:
        part_names: names of the parts, which are attributes, sub-folders and arguments of the constructor at once.
        older_names: sub-folders that earlier versions have written, with the name of the part that each holds.
        image_processor: one of the parts.
        settings: a dataclass of plain values.
        training_report: plain values.
    """

    part_names: ClassVar[tuple[str, ...]]
    older_names: ClassVar[dict[str, str]] = {}
    image_processor: ILTMImageProcessor
    settings: Any
    training_report: dict[str, Any]

    # What a subclass says

    @classmethod
    def part_classes(cls, folder: Path) -> dict[str, Any]:
        """Class of each part by the name of its sub-folder, for a folder that is to be loaded. The folder may come from a
        stranger: its model_index.json may choose among classes that the subclass lists, no name that it gives is imported.

        Raises:
            ValueError: if it is not a folder of such a pipeline.
        """
        raise NotImplementedError

    @classmethod
    def read_settings(cls, folder: Path) -> Any:
        """The settings in a folder of such a pipeline.

        Raises:
            ValueError: if its files hold anything else.
        """
        raise NotImplementedError

    def save_extra_files(self, folder: Path) -> None:
        """Writes what the pipeline has beside its parts, such as tensors of the calibration. By default there is nothing."""

    def load_extra_files(self, folder: Path) -> None:
        """Reads what `save_extra_files` has written; raises ValueError if it is damaged."""

    # What all pipelines do

    @property
    def components(self) -> dict[str, Any]:
        """The parts by name."""
        return {name: getattr(self, name) for name in self.part_names}

    @property
    def models(self) -> list[Any]:
        """The parts that have weights."""
        return [part for part in self.components.values() if isinstance(part, PreTrainedModel)]

    @property
    def device(self) -> torch.device:
        return self.models[0].device

    def to(
        self, device: str | torch.device | torch.dtype | None = None, dtype: torch.dtype | str | None = None
    ) -> Self:
        """Moves all models to a device, a type or both: `pipe.to("cuda")`, `pipe.to(torch.float16)` or `pipe.to("float16")`,
        `pipe.to("cuda", "float16")`.

        Raises:
            ValueError: if `dtype` is neither float32 nor float16, or two types are given.
        """
        named = getattr(torch, device.removeprefix("torch."), None) if isinstance(device, str) else device
        if isinstance(named, torch.dtype):
            if dtype is not None:
                raise ValueError(f"two types, {device} and {dtype}: give one, or a device before it")
            device, dtype = None, named
        dtype = _as_dtype(dtype)
        for model in self.models:
            model.to(device=device, dtype=dtype)
        return self

    def batches(self, images: Any, batch_size: int, show_progress: bool) -> Iterator[Any]:
        """Prepares images, some at a time, as `image_processor.preprocess` does.

        Args:
            images: a path, PIL image, array or tensor, a list of these, or a column of a `datasets.Dataset`.
            batch_size: images of a batch; volumes come one by one.
            show_progress: a progress bar over batches.

        Raises:
            ImageReadError: if an image cannot be read.
            ValueError: if `images` is empty, `batch_size` is no whole number above 0, or values or a shape are none of an image.
            TypeError: if something is no image.
        """
        images = self.image_processor.as_list(images)
        if not images:
            raise ValueError("no images given")
        check_batch_size(batch_size)
        step = 1 if self.image_processor.is_volumetric else batch_size
        for start in progress(range(0, len(images), step), desc="scoring", unit="batch", hidden=not show_progress):
            yield self.image_processor.preprocess(images[start : start + step])

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes model_index.json, one sub-folder per part, the settings and training_report.json."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        index: dict[str, Any] = {"_class_name": type(self).__name__, "_version": __version__}
        for name, part in self.components.items():
            part.save_pretrained(folder / name)
            index[name] = ["iltm_anomaly", type(part).__name__]
        self.save_extra_files(folder)
        chosen, measured = chosen_and_measured(self.settings)
        documents = {
            "model_index.json": index,
            SETTINGS_FILE: chosen,
            CALIBRATION_FILE: measured,
            "training_report.json": self.training_report,
        }
        for name, value in documents.items():
            if value or name != SETTINGS_FILE:  # of some methods nothing is chosen
                (folder / name).write_text(json.dumps(value, indent=2) + "\n")

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path,
        *,
        subfolder: str = "",
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        force_download: bool = False,
        variant: str | None = None,
        dtype: torch.dtype | str | None = None,
        device: str | torch.device | None = None,
        device_map: str | torch.device | dict[str, Any] | None = None,
        **ready: Any,
    ) -> Self:
        """Loads a pipeline from a local folder or a Hub repository (one snapshot, of one revision).

        Args:
            subfolder: of the folder or the repository, that the pipeline is in.
            revision, token, cache_dir, local_files_only, force_download: as of any model.
            variant: there is none: weights are stored in float32 alone.
            dtype: float32 or float16, as a type or its name; "auto" is what is stored.
            device, device_map: where the models go; in a map "auto" is a GPU if there is one, {"": device} that device.
            ready: parts by name that take the places of those in the folder, which is checked all the same. The threshold is that
                of the folder's own.

        Raises:
            ValueError: if the folder is not such a pipeline of this package, or names classes that are not its own, `dtype` is
                neither float32 nor float16, a part is none or of another class than the folder's, or `device_map` splits models.
        """
        dtype, device = _as_dtype(dtype), _as_device(device, device_map)
        if variant is not None:
            raise ValueError(f'variant={variant!r}: weights are stored in float32 alone; dtype="float16" casts them')
        folder = local_folder(
            name_or_path,
            subfolder=subfolder,
            revision=revision,
            token=token,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
            force_download=force_download,
        )
        classes = cls.part_classes(folder)
        check_folder(folder, classes)
        settings = cls.read_settings(folder)
        report = read_json(folder / "training_report.json")
        named = {cls.older_names.get(name, name): (folder / name, part) for name, part in classes.items()}
        for name, part in ready.items():
            if name not in named or not isinstance(part, named[name][1]):
                known = ", ".join(f"{key} ({part_class.__name__})" for key, (_, part_class) in named.items())
                raise ValueError(f"{name}={type(part).__name__} is no part of {folder}; its parts are {known}")
        parts = {name: ready[name] if name in ready else _load_part(*which) for name, which in named.items()}
        try:
            pipeline = cls(**parts, settings=settings, training_report=report)  # type: ignore[call-arg]
        except ValueError as error:
            raise ValueError(f"{folder}: {error}") from None
        pipeline.load_extra_files(folder)
        return pipeline.to(device, dtype)


def check_batch_size(batch_size: int) -> None:
    """Raises ValueError unless it is a whole number of at least 1."""
    if not isinstance(batch_size, Integral) or isinstance(batch_size, bool) or batch_size < 1:
        raise ValueError(f"batch_size must be at least 1 and a whole number, got {batch_size!r}")


def _as_dtype(dtype: torch.dtype | str | None) -> torch.dtype | None:
    """A type or its name as a type. Raises ValueError for one in which scores differ so much from those of float32 that its
    threshold means nothing."""
    if isinstance(dtype, str):
        dtype = None if dtype == "auto" else getattr(torch, dtype.removeprefix("torch."), dtype)
    if dtype not in (None, torch.float32, torch.float16):
        raise ValueError(
            f"a pipeline does not compute in {dtype}: its threshold was set in float32, from which scores would differ too much. "
            "Take torch.float16 or torch.float32"
        )
    return dtype  # type: ignore[return-value]


def _as_device(device: Any, device_map: Any) -> Any:
    """The one device that `device_map` names in place of `device`. Raises ValueError if both are given or it names several."""
    if device_map is None:
        return device
    chosen = device_map.get("") if isinstance(device_map, dict) and len(device_map) == 1 else device_map
    if device is not None or chosen is None or isinstance(chosen, dict) or chosen in ("balanced", "sequential"):
        raise ValueError(
            f"device={device!r} with device_map={device_map!r}: a pipeline is small and lies on one device. Give one of these, "
            'device_map="auto" for a GPU if there is one, or {"": device}'
        )
    if chosen == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return chosen


def _load_part(folder: Path, part_class: Any) -> Any:
    """A part from its sub-folder. Models are loaded in float32 and cast afterwards: sums of the quantiser may be too large for
    float16."""
    if not issubclass(part_class, PreTrainedModel):
        return part_class.from_pretrained(folder, local_files_only=True)
    model: Any = part_class.from_pretrained(folder, local_files_only=True, dtype=torch.float32)
    check_finite(model.state_dict(), folder)
    return model
