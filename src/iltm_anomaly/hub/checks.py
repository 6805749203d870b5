"""Checks a pipeline folder before any of it is loaded, because it may come from a stranger.

What is refused: pickles, classes and code that are not this package's, files outside the folder, weights that are not those
the configuration describes. Only headers are read, so a configuration that claims ten gigabytes costs nothing.
"""

import json
import math
from dataclasses import fields
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.initialization import no_init_weights

from iltm_anomaly.hub.folders import PIPELINE_FILES
from iltm_anomaly.processing.image_processing import ILTMImageProcessor

PICKLES = frozenset({".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".npy", ".npz", ".h5", ".msgpack"})
CODE = frozenset({".py", ".pyc", ".so", ".sh"})
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
# What transformers writes into the configuration file of a model. It would read more there, but we have no use for it.
SERVICE_KEYS = frozenset({"architectures", "dtype", "model_type", "transformers_version"})
DTYPES = (None, "float32", "float16", "bfloat16")
# Types in a safetensors file: those that weights may have, and by the type of a model's tensor those of whole numbers.
FLOATS = ("F32", "F16", "BF16")
WHOLE_NUMBERS = {torch.uint8: "U8", torch.int64: "I64"}
MAX_JSON_BYTES = 64 * 2**20


NUMBER = (int, float)
# What a training report holds, where we read it; the rest may be anything.
HARDWARE = {"device": str, "threads": int}
DRAWN = {"fraction": NUMBER, "protocol": str, "train_size": int}
RULE = {"token_threshold": NUMBER, "neighbourhood": NUMBER, "outlier_scale": NUMBER}
REPORT = {
    "data": {"source": str, "category": str, "contamination": DRAWN},
    "recipe": {"name": str, "rounds": RULE, "vqvae": {"channels": list}},
    "rounds": [{"round": int, "masked_fraction": NUMBER, "surprise_limit": NUMBER, "commit": str}],
    "seed": int,
    "training_seconds": NUMBER,
    "commit": str,
    "hardware": HARDWARE,
    "versions": {},
}


class Stored(NamedTuple):
    """Shape and type of a tensor in a safetensors file, such as (3,) and "F32"."""

    shape: tuple[int, ...]
    type: str


def read_json(path: Path) -> dict[str, Any]:
    """An object from a JSON file.

    Raises:
        ValueError: if the file is missing, huge, not JSON, or holds something else.
    """
    if not path.is_file():  # a device or a pipe never ends
        raise ValueError(f"{path.parent} is not a pipeline folder: it has no {path.name}")
    if path.stat().st_size > MAX_JSON_BYTES:
        raise ValueError(f"{path} is larger than {MAX_JSON_BYTES >> 20} MiB")
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path} must hold an object, got {type(value).__name__}")
    return value


def check_shape(value: Any, shape: Any, where: str) -> None:
    """Raises ValueError, with the name of the item, if a document from JSON has an item of another kind than `shape`, or a number
    that is not finite. None, or nothing, is fine everywhere but in lists.

    Args:
        value: the document.
        shape: a type or several, a dictionary of shapes by key, or a list of one shape for all items.
        where: the document stands, for the message.
    """
    if value is None:
        return
    kind: Any = type(shape) if isinstance(shape, dict | list) else shape
    strange = isinstance(value, float) and not math.isfinite(value)
    if strange or not isinstance(value, kind) or (isinstance(shape, list) and None in value):
        raise ValueError(f"{where} is damaged: {str(value)[:80]!r} cannot stand there. Make the document anew")
    if isinstance(shape, dict):
        for key, inner in shape.items():
            check_shape(value.get(key), inner, f"{where}: {key}")
    elif isinstance(shape, list):
        for number, item in enumerate(value):
            check_shape(item, shape[0], f"{where}: item {number}")


def check_folder(folder: Path, classes: dict[str, type]) -> None:
    """Raises ValueError if `folder` is not a pipeline folder, or holds what no such folder has. `classes` by part."""
    index = read_json(folder / "model_index.json")
    for name, part in classes.items():
        if index.get(name) != ["iltm_anomaly", part.__name__]:
            raise ValueError(
                f"{folder / 'model_index.json'} names {index.get(name)!r} for {name}, "
                f"expected ['iltm_anomaly', '{part.__name__}']: not a pipeline of this package"
            )
    if unknown := sorted(key for key in index if key not in classes and not key.startswith("_")):
        raise ValueError(f"{folder / 'model_index.json'} has unknown parts: {', '.join(unknown)}")
    for name in ("", *classes):
        _check_files(folder, name)
    if (folder / "config.json").exists():
        _check_keys(folder / "config.json", "model_type", "iltm")
    _check_processor(folder / "image_processor" / "preprocessor_config.json")
    for name, part in classes.items():
        if issubclass(part, PreTrainedModel):
            check_model(folder / name, part)


def belongs(name: str, patterns: tuple[str, ...]) -> bool:
    """Whether a path in a repository matches one of `patterns`, whose * does not cross folders."""
    return any(name.count("/") == pattern.count("/") and fnmatchcase(name, pattern) for pattern in patterns)


def _check_files(folder: Path, part: str) -> None:
    """Raises ValueError if there is a file in the folder of a part that we do not know: transformers would read some, such as
    adapters and other kinds of configuration. At the root, part "", it reads none, and only pickles and code are refused."""
    if not (folder / part).is_dir():
        raise ValueError(f"{folder} is not a complete pipeline folder: it has no {part}/")
    for path in sorted((folder / part).iterdir()):
        if path.suffix in PICKLES:
            raise ValueError(f"{path} may run code when it is read: only safetensors are loaded. Remove it")
        known = not part or path.name.startswith(".") or belongs(f"{part}/{path.name}", PIPELINE_FILES)
        if path.suffix in CODE or not known:
            raise ValueError(f"{path} does not belong into a pipeline folder. Remove it")


def _check_keys(path: Path, key: str, expected: str) -> dict[str, Any]:
    values = read_json(path)
    for forbidden in ("auto_map", "custom_pipelines"):
        if values.get(forbidden):
            raise ValueError(f"{path} has {forbidden!r}: it asks for code of its repository to be run, which never is")
    if values.get(key) != expected:
        raise ValueError(f"{path} names {values.get(key)!r} as its {key}, expected {expected!r}")
    return values


def _check_processor(path: Path) -> None:
    values = _check_keys(path, "image_processor_type", ILTMImageProcessor.__name__)
    try:
        ILTMImageProcessor(**values)
    except (ValueError, TypeError, OverflowError) as error:
        raise ValueError(f"{path} is no valid configuration: {error}") from None


def check_model(folder: Path, model_class: type[PreTrainedModel]) -> None:
    """Raises ValueError unless the weights in `folder` are safetensors of exactly the names and shapes that its config.json
    describes, and of the types that the model has, or other floating-point ones in place of its own."""
    config = _read_config(folder, model_class)
    stored: dict[str, Stored] = {}
    for file in _weight_files(folder):
        for name, tensor in stored_tensors(file).items():
            if name in stored:
                raise ValueError(f"{file} holds {name} a second time")
            stored[name] = tensor
    shapes = {name: tensor.shape for name, tensor in stored.items()}
    _check_claims(folder, config, shapes)
    try:
        with torch.device("meta"), no_init_weights():
            model = model_class(config)
    except (
        Exception
    ) as error:  # configurations of backbones are checked by transformers alone, and make it raise nearly anything
        said = " ".join(str(error).split())[:300]
        raise ValueError(f"{folder / 'config.json'} describes no possible model: {said}") from None
    described = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    if shapes != described:
        name = sorted(set(shapes.items()) ^ set(described.items()))[0][0]
        raise ValueError(
            f"the weights in {folder} are not those of its config.json: {name} is "
            f"{shapes.get(name, 'missing')} in the file, {described.get(name, 'unknown')} in the model"
        )
    for name, tensor in model.state_dict().items():
        legal = FLOATS if tensor.is_floating_point() else (WHOLE_NUMBERS.get(tensor.dtype),)
        if stored[name].type not in legal:
            raise ValueError(
                f"the weights in {folder} are not those of its model: {name} is stored as {stored[name].type}, not as "
                f"{' or '.join(map(str, legal))}. Get the folder again, or save the model anew"
            )


def _read_config(folder: Path, model_class: type[PreTrainedModel]) -> Any:
    path = folder / "config.json"
    config_class: Any = model_class.config_class
    values = _check_keys(path, "model_type", config_class.model_type)
    if values.get("architectures", [model_class.__name__]) != [model_class.__name__]:
        raise ValueError(f"{path} names the classes {values['architectures']!r}, expected {[model_class.__name__]!r}")
    inherited = {f.name for f in fields(PreTrainedConfig)}
    known = {f.name for f in fields(config_class)} - inherited | SERVICE_KEYS
    known |= set(getattr(config_class, "retired_fields", ()))  # the class checks their values
    if unknown := sorted(set(values) - known):
        raise ValueError(f"{path} has unknown fields: {', '.join(unknown)}")
    if values.get("dtype") not in DTYPES:
        raise ValueError(f"{path} names the dtype {values['dtype']!r}, expected one of {DTYPES[1:]}")
    try:
        return config_class(**{key: value for key, value in values.items() if key not in SERVICE_KEYS})
    except (StrictDataclassError, ValueError, TypeError, OverflowError) as error:
        raise ValueError(f"{path} is no valid configuration: {error}") from None


def _weight_files(folder: Path) -> list[Path]:
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    if not (folder / INDEX).is_file():
        raise ValueError(f"{folder} has no {WEIGHTS}; other formats are not read")
    weight_map = read_json(folder / INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise ValueError(f"{folder / INDEX} must map tensors to files")
    names = sorted(set(weight_map.values()))
    for name in names:
        if name != Path(name).name or "\\" in name or not name.endswith(".safetensors"):
            raise ValueError(f"{folder / INDEX} names the file {name!r}, which is not a safetensors file beside it")
        if not (folder / name).is_file():
            raise ValueError(f"{folder} is not complete: it has no {name}")
    return [folder / name for name in names]


def stored_tensors(path: Path) -> dict[str, Stored]:
    """Shape and type of each tensor by name, from the header of a safetensors file.

    Raises:
        ValueError: if the file is damaged.
    """
    try:
        with safe_open(path, framework="pt") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            return {name: Stored(tuple(one.get_shape()), one.get_dtype()) for name, one in slices.items()}
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is no readable safetensors file: {error}") from None


def _check_claims(folder: Path, config: Any, stored: dict[str, tuple[int, ...]]) -> None:
    """Raises ValueError if a configuration claims more layers than its weights have tensors, or a width above the count of their
    numbers. Such a model is not even built without memory, because that alone would take long."""
    numbers = sum(math.prod(shape) for shape in stored.values())
    depths, widths = config.claimed_sizes()
    for claimed, limit, what in ((depths, len(stored), "tensors"), (widths, numbers, "numbers")):
        for name, value in claimed.items():
            if value > limit:
                raise ValueError(
                    f"{folder / 'config.json'} claims {name} {value}, but its weights have {limit} {what} in all"
                )


def check_finite(tensors: dict[str, Tensor], where: Path) -> None:
    """Raises ValueError if a tensor holds NaN or infinity."""
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise ValueError(f"{where}: {name} holds NaN or infinite values")
