"""What a pipeline folder consists of, which of our classes each part is, and whether the parts fit each other."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from iltm_anomaly.hub.checks import Stored, check_finite, read_json, stored_tensors
from iltm_anomaly.hub.folders import CALIBRATION_FILE, NOISE_FILE, SECOND_VIEW, SETTINGS_FILE
from iltm_anomaly.prior import PerformerPriorModel, PlacePriorModel, PositionPriorModel, TissuePriorModel
from iltm_anomaly.processing.image_processing import ILTMImageProcessor
from iltm_anomaly.settings import (
    MEASURED,
    FeatureSettings,
    InferenceSettings,
    PlaceSettings,
    Settings,
    UptakeSettings,
    read_settings,
)
from iltm_anomaly.tokenizers.features import FeatureTokenizerModel
from iltm_anomaly.tokenizers.place import PlaceTokenizerModel
from iltm_anomaly.tokenizers.tissue import TissueTokenizerModel
from iltm_anomaly.tokenizers.vqvae import VQVAEModel

# Classes are looked up here, never imported by the name that a JSON file gives.
TOKENIZERS: dict[str, Any] = {
    "VQVAEModel": VQVAEModel,
    "FeatureTokenizerModel": FeatureTokenizerModel,
    "TissueTokenizerModel": TissueTokenizerModel,
    "PlaceTokenizerModel": PlaceTokenizerModel,
}
PRIORS: dict[str, Any] = {
    "VQVAEModel": PerformerPriorModel,
    "FeatureTokenizerModel": PositionPriorModel,
    "TissueTokenizerModel": TissuePriorModel,
    "PlaceTokenizerModel": PlacePriorModel,
}  # by tokenizer
TOKENIZER_OF = {
    PositionPriorModel: FeatureTokenizerModel,
    TissuePriorModel: TissueTokenizerModel,
    PlacePriorModel: PlaceTokenizerModel,
}  # of others a VQ-VAE
SETTINGS_OF: dict[type, Any] = {
    PositionPriorModel: FeatureSettings,
    TissuePriorModel: UptakeSettings,
    PlacePriorModel: PlaceSettings,
}  # of others `InferenceSettings`
FORMER_TOKENIZER = "vqvae"  # the folder that version 0.1 stored its only tokenizer in


def expected_classes(folder: Path) -> dict[str, Any]:
    """The class that each part of a pipeline folder must be of, by the name of the part. An unknown tokenizer is expected to be a
    VQ-VAE, so that `check_folder` refuses it by name."""
    index = read_json(folder / "model_index.json")
    part = FORMER_TOKENIZER if "tokenizer" not in index and FORMER_TOKENIZER in index else "tokenizer"
    entry = index.get(part)
    named = entry[1] if isinstance(entry, list) and len(entry) == 2 and isinstance(entry[1], str) else ""
    return {
        part: TOKENIZERS.get(named, VQVAEModel),
        "prior": PRIORS.get(named, PerformerPriorModel),
        "image_processor": ILTMImageProcessor,
    }


def needs_noise(settings: Settings) -> bool:
    """Whether the threshold is that of maps made with the usual error of training images, so that it means nothing without it."""
    uses_noise = isinstance(settings, FeatureSettings)
    uses_noise |= isinstance(settings, InferenceSettings) and settings.reconstruction_noise
    return uses_noise and settings.score_threshold is not None


def read_folder_settings(folder: Path) -> Settings:
    """The settings of a pipeline folder: those chosen, and those measured; in folders of earlier versions one file has both.

    Raises:
        ValueError: if a file of them is not there or holds anything else, or the usual error of training images that they need is
            not beside it.
    """
    path, chosen_path = folder / CALIBRATION_FILE, folder / SETTINGS_FILE
    values = read_json(path)
    if values.keys() <= MEASURED or chosen_path.exists():
        chosen = read_json(chosen_path)
        for file, misplaced in ((chosen_path, chosen.keys() & MEASURED), (path, values.keys() - MEASURED)):
            if misplaced:
                raise ValueError(
                    f"{file} has no setting {min(misplaced)!r}: what was measured stands in {CALIBRATION_FILE}, what somebody "
                    f"chose in {SETTINGS_FILE}"
                )
        values = asdict(read_settings(chosen, chosen_path)) | values
    settings = read_settings(values, path)
    if needs_noise(settings) and not (folder / NOISE_FILE).is_file():
        raise ValueError(
            f"{folder} is not complete: it has no {NOISE_FILE}, without which the threshold in {path.name} calls good "
            "images abnormal. Copy the whole folder again; if it is the model of a run, remove it and continue the run with "
            "`iltm-anomaly train ... --resume`, which makes it anew"
        )
    if getattr(settings, "pixel_scale", None) is not None and not (folder / SECOND_VIEW).is_dir():
        raise ValueError(
            f"{folder} is not complete: it has no {SECOND_VIEW}/, its second view. Copy the whole folder again"
        )
    return settings


def check_fit(tokenizer: Any, prior: Any, processor: ILTMImageProcessor) -> None:
    """Raises ValueError if the parts do not fit each other."""
    has_features, expected = isinstance(prior, PositionPriorModel), TOKENIZER_OF.get(type(prior))
    fits = (
        not isinstance(tokenizer, tuple(TOKENIZER_OF.values()))
        if expected is None
        else isinstance(tokenizer, expected)
    )
    if not fits:
        raise ValueError(f"a {type(tokenizer).__name__} and a {type(prior).__name__} do not belong together")
    if has_features and len(tokenizer.metric) != prior.config.hidden_size:
        raise ValueError(f"the tokenizer has {len(tokenizer.metric)} features, the prior {prior.config.hidden_size}")
    if not has_features and tokenizer.vocab_size != prior.config.vocab_size:
        raise ValueError(
            f"the tokenizer has {tokenizer.vocab_size} codes, the prior {prior.config.vocab_size}: "
            "they were not trained together"
        )
    if (tokenizer.config.spatial_dims == 3) != processor.is_volumetric:
        raise ValueError(
            f"the tokenizer has spatial_dims {tokenizer.config.spatial_dims}, but the image processor makes "
            f"{'volumes' if processor.is_volumetric else 'images'}: give its size a depth for volumes"
        )
    grid = tokenizer.grid_shape(processor.padded_size)
    if grid != tuple(prior.config.grid_shape) or processor.num_channels != tokenizer.config.in_channels:
        raise ValueError(
            f"the image processor makes {processor.num_channels} x {processor.padded_size} pixels and a grid of {grid} codes, "
            f"the models take {tokenizer.config.in_channels} channels and a grid of {prior.config.grid_shape}"
        )


def check_views(processor: ILTMImageProcessor, prior: Any, theirs: ILTMImageProcessor, their_prior: Any) -> None:
    """Raises ValueError unless a pipeline with these parts, of features, can have a second view by one with those, of pixels."""
    if not isinstance(prior, PositionPriorModel) or not isinstance(their_prior, PerformerPriorModel):
        raise ValueError("a second view is a pipeline on pixels within one on features")
    own, other = processor.padded_size, theirs.padded_size
    fits = len(own) == len(other) and not any(side % small for side, small in zip(own, other, strict=True))
    if not fits or processor.num_channels != theirs.num_channels:
        raise ValueError(
            f"the second view has images of {theirs.num_channels} x {other}: these do not divide the {processor.num_channels} x "
            f"{own} of the first"
        )


def read_noise(path: Path, size: tuple[int, ...]) -> Tensor | None:
    """The usual error of training images (*size) in a file of a pipeline folder, None if there is no such file.

    Raises:
        ValueError: if it holds anything else.
    """
    if not path.is_file():
        return None
    stored = stored_tensors(path)
    if stored != {"noise": Stored(size, "F32")}:
        raise ValueError(f"{path} must hold one tensor named noise, of shape {size} and type F32; it holds {stored}")
    noise = load_file(path)["noise"]
    check_finite({"noise": noise}, path)
    if bool((noise < 0).any()):
        raise ValueError(f"{path}: noise, a reconstruction error, is negative")
    return noise
