"""Whoever is imported first, the auto classes of transformers know ours; and importing the package alone is quick."""

import pytest

ORDERS = {
    "ours first": "import iltm_anomaly, sys; assert 'torch' not in sys.modules",
    "transformers first": "from transformers import AutoModel, pipeline; import iltm_anomaly",
    "a module of ours first": "import iltm_anomaly.processing.image_processing",
    "another one, from its inside": "from iltm_anomaly.tokenizers.vqvae.configuration_vqvae import VQVAEConfig",
    "what all models rest on": "import iltm_anomaly.modeling",
    "what all tokenizers rest on": "import iltm_anomaly.tokenizers.base",
    "a public name": "from iltm_anomaly import PerformerPriorModel",
    "the pipeline": "import iltm_anomaly.pipeline",
}
CHECK = """
from transformers import AutoConfig, AutoImageProcessor, AutoModel
from transformers.models.auto.image_processing_auto import get_image_processor_class_from_name
from transformers.pipelines import PIPELINE_REGISTRY
config = AutoConfig.for_model("iltm_vqvae", channels=(4, 4), num_res_blocks=1)
print(type(AutoModel.from_config(config)).__name__, type(AutoConfig.for_model("iltm_performer_prior")).__name__)
print(get_image_processor_class_from_name("ILTMImageProcessor").__module__)
print(PIPELINE_REGISTRY.check_task("anomaly-detection")[1]["impl"].__name__)
import sys
print(sum(type(finder).__module__.startswith("iltm_anomaly") for finder in sys.meta_path))
"""


@pytest.mark.parametrize("order", ORDERS)
def test_auto_classes_know_ours(run_fresh, order):
    assert run_fresh(ORDERS[order] + "\n" + CHECK).split() == [
        "VQVAEModel",
        "PerformerPriorConfig",
        "iltm_anomaly.processing.image_processing",
        "AnomalyDetectionPipeline",
        "0",  # nothing is watched any more
    ]
