"""`transformers.pipeline("anomaly-detection", model="org/iltm-hazelnut")`, for people who live there.

Imported when `transformers.pipelines` is, see `_registration`.
"""

from typing import Any

from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers.image_utils import load_image
from transformers.pipelines import PIPELINE_REGISTRY, Pipeline

TASK = "anomaly-detection"
# `ILTMAnomalyPipeline.from_pretrained` takes these; transformers passes on more.
LOADING_ARGUMENTS = ("revision", "token", "cache_dir", "local_files_only")


class ILTMConfig(PreTrainedConfig):
    """Marks the folder of a whole pipeline; its parts have configurations of their own."""

    model_type = "iltm"


class ILTMModel(PreTrainedModel):
    """The models of an `ILTMAnomalyPipeline` as one, which is what `transformers.pipeline` passes about."""

    config_class = ILTMConfig
    main_input_name = "pixel_values"
    input_modalities = "image"

    def __init__(self, config: ILTMConfig, detector: Any):
        super().__init__(config)
        self.vqvae, self.prior, self.detector = detector.vqvae, detector.prior, detector

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls, name_or_path: Any, *args: Any, dtype: Any = None, **kwargs: Any
    ) -> "ILTMModel":
        """Loads with all the checks of `ILTMAnomalyPipeline.from_pretrained`, of whose arguments it takes the same."""
        from iltm_anomaly.pipeline import ILTMAnomalyPipeline

        known = {key: kwargs[key] for key in LOADING_ARGUMENTS if key in kwargs}
        # "auto" is what transformers asks for when the user has not
        detector = ILTMAnomalyPipeline.from_pretrained(name_or_path, dtype=None if dtype == "auto" else dtype, **known)
        return cls(ILTMConfig(), detector)


class AnomalyDetectionPipeline(Pipeline):
    """Images (paths, addresses, PIL images, arrays) to dictionaries: score, label, anomaly_map, mask, healed_image.

    Call parameters: those of `ILTMAnomalyPipeline`, such as `num_samples`.
    """

    _load_processor: Any = False
    _load_image_processor: Any = False
    _load_feature_extractor: Any = False
    _load_tokenizer: Any = False

    def _sanitize_parameters(self, **kwargs: Any) -> tuple[dict, dict, dict]:
        return {}, kwargs, {}

    def preprocess(self, input_: Any, **parameters: Any) -> dict[str, Any]:
        is_address = isinstance(input_, str) and input_.startswith(("http://", "https://"))
        return {"image": load_image(input_) if is_address else input_}

    def _forward(self, input_tensors: dict[str, Any], **parameters: Any) -> Any:
        detector: Any = self.model.detector
        return {"output": detector(input_tensors["image"], **parameters)}

    def postprocess(self, model_outputs: Any, **parameters: Any) -> dict[str, Any]:
        output = model_outputs["output"]
        return {
            "score": float(output.scores[0]),
            "label": "abnormal" if output.masks[0].any() else "normal",
            "anomaly_map": output.anomaly_maps[0],
            "mask": output.masks[0],
            "healed_image": output.healed_images[0],
        }


AutoConfig.register(ILTMConfig.model_type, ILTMConfig)
PIPELINE_REGISTRY.register_pipeline(TASK, pipeline_class=AnomalyDetectionPipeline, pt_model=ILTMModel, type="image")
