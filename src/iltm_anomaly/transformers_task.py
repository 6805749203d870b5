"""`transformers.pipeline("anomaly-detection", model="org/iltm-hazelnut")`, for users of transformers.

Imported when `transformers.pipelines` is, see `_registration`.
"""

from collections.abc import Sequence
from typing import Any
from urllib.request import Request, urlopen

import numpy as np
from PIL import Image
from torch import Tensor
from transformers import PreTrainedModel
from transformers.pipelines import PIPELINE_REGISTRY, Pipeline

import iltm_anomaly
from iltm_anomaly.data.images import read_image
from iltm_anomaly.modeling import ILTMConfig

TASK = "anomaly-detection"
SECONDS_TO_ANSWER = 30  # of the server of an image's address
# `ILTMAnomalyPipeline.from_pretrained` takes these; transformers passes on more.
LOADING_ARGUMENTS = ("revision", "token", "cache_dir", "local_files_only", "force_download", "subfolder", "device_map")


class _NoDefaultModel:
    """In place of the name and revision of the model that transformers takes where none is given."""

    def __iter__(self) -> Any:
        raise ValueError(
            f'pipeline("{TASK}") has no model of its own, as each knows one kind of image: give yours, '
            f'pipeline("{TASK}", model="runs/mine/model") or model="owner/name" of the Hub'
        )


class ILTMModel(PreTrainedModel):
    """The models of an `ILTMAnomalyPipeline` as one: `transformers.pipeline` handles a single model."""

    config_class = ILTMConfig
    main_input_name = "pixel_values"
    input_modalities = "image"

    def __init__(self, config: ILTMConfig, detector: Any):
        super().__init__(config)
        self.tokenizer, self.prior, self.detector = detector.tokenizer, detector.prior, detector

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls, name_or_path: Any, *args: Any, dtype: Any = None, **kwargs: Any
    ) -> "ILTMModel":
        """Loads with all the checks of `ILTMAnomalyPipeline.from_pretrained`, of whose arguments it takes the same."""
        known = {key: kwargs[key] for key in LOADING_ARGUMENTS if key in kwargs}
        # transformers asks for "auto" where the user has asked for nothing
        detector = iltm_anomaly.ILTMAnomalyPipeline.from_pretrained(
            name_or_path, dtype=None if dtype == "auto" else dtype, **known
        )
        return cls(ILTMConfig(), detector)


class AnomalyDetectionPipeline(Pipeline):
    """Images (paths, addresses, PIL images, arrays) to dictionaries: score, label, anomaly_map, mask, healed_image.

    Takes one image, a list, a column of a data set, or a data set or generator (images, or rows with a column `image`), whose
    results come one by one. Call parameters: `batch_size`, and those of `ILTMAnomalyPipeline`, such as `num_samples`.
    """

    _load_processor: Any = False
    _load_image_processor: Any = False
    _load_feature_extractor: Any = False
    _load_tokenizer: Any = False

    def __init__(self, model: ILTMModel, **kwargs: Any):
        # transformers makes batches only if there is one; the detector does its work
        super().__init__(model, **kwargs | {"image_processor": model.detector.image_processor})

    def save_pretrained(self, save_directory: Any, **kwargs: Any) -> None:
        """Writes what `ILTMAnomalyPipeline.save_pretrained` does."""
        detector: Any = self.model.detector
        detector.save_pretrained(save_directory)

    def __call__(self, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        from datasets import Dataset, IterableDataset  # importing transformers.pipelines need not wait for it

        # transformers would take each of these for a single image
        if isinstance(inputs, Sequence) and not isinstance(inputs, str):
            inputs = list(inputs)
        elif isinstance(inputs, Dataset | IterableDataset):
            inputs = (row for row in inputs)
        elif isinstance(inputs, np.ndarray | Tensor) and inputs.ndim > 3:  # a batch of images or volumes
            detector: Any = self.model.detector
            inputs = detector.image_processor.as_list(inputs)
        return super().__call__(inputs, *args, **kwargs)

    def _sanitize_parameters(self, **kwargs: Any) -> tuple[dict, dict, dict]:
        return {}, kwargs, {}

    def preprocess(self, input_: Any, **parameters: Any) -> dict[str, Any]:
        image = input_["image"] if isinstance(input_, dict) else input_
        is_address = isinstance(image, str) and image.startswith(("http://", "https://"))
        return {"images": [_download(image) if is_address else image]}

    def _forward(self, input_tensors: dict[str, Any], **parameters: Any) -> Any:
        detector: Any = self.model.detector
        images = [image for item in input_tensors["images"] for image in (item if isinstance(item, list) else [item])]
        output = detector(images, batch_size=len(images), **parameters)
        columns = (output.scores.tolist(), output.anomaly_maps, output.masks, output.healed_images)
        return {"found": list(zip(*columns, strict=True))}  # a list, of which transformers gives each image its own

    def postprocess(self, model_outputs: Any, **parameters: Any) -> dict[str, Any]:
        found = model_outputs["found"]
        score, anomaly_map, mask, healed_image = found[0] if isinstance(found, list) else found
        return {
            "score": score,
            "label": "abnormal" if mask.any() else "normal",
            "anomaly_map": anomaly_map,
            "mask": mask,
            "healed_image": healed_image,
        }


def _download(address: str) -> Image.Image:
    """The image at an address, by the rules of files: `load_image` of transformers would open any format that Pillow knows."""
    request = Request(address, headers={"User-Agent": "iltm-anomaly"})  # noqa: S310 - the caller has looked at the scheme
    with urlopen(request, timeout=SECONDS_TO_ANSWER) as answer:  # noqa: S310
        return read_image(address, answer.read())


PIPELINE_REGISTRY.register_pipeline(
    TASK,
    pipeline_class=AnomalyDetectionPipeline,
    pt_model=ILTMModel,
    default={"model": _NoDefaultModel()},
    type="image",
)
