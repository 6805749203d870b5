"""After `import iltm_anomaly`, AutoConfig, AutoModel, AutoImageProcessor and `pipeline("anomaly-detection")` know its classes.

Registering needs transformers and torch, which take seconds to import, and `iltm-anomaly --help` needs neither. So importing the
package only makes sure that whoever imports transformers first, before or after, finds the classes registered.
"""

import sys
from importlib import import_module
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from typing import Any

# Of ours, these import transformers, and are what is registered or what that rests on: none may be half imported at that moment.
_NAMES = (
    "modeling",
    "tokenizers.base",
    "tokenizers.features",
    "tokenizers.tissue",
    "tokenizers.vqvae",
    "prior",
    "processing.image_processing",
)
_OURS = tuple(f"{__package__}.{name}" for name in _NAMES)
_TASKS = "transformers.pipelines"
_done = False


class _ImportWatcher(MetaPathFinder):
    """Calls `_imported` after a module of interest has been imported; finds modules as Python does by itself."""

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if fullname not in ("transformers", _TASKS, *_OURS):
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is None or spec.loader is None:
            return None
        execute = spec.loader.exec_module

        def execute_and_tell(module: Any) -> None:
            execute(module)
            _imported(fullname)

        spec.loader.exec_module = execute_and_tell  # type: ignore[method-assign]
        return spec


def watch_imports() -> None:
    """Registers now what can be registered now, and the rest as soon as it can be."""
    sys.meta_path.insert(0, _ImportWatcher())
    for name in ("transformers", _TASKS):
        if name in sys.modules:
            _imported(name)


def _imported(name: str) -> None:
    if name == _TASKS:
        import_module(f"{__package__}.transformers_task")  # registers itself
        return
    unfinished = (m for m in _OURS if m != name and m in sys.modules)
    if not _done and not any(getattr(sys.modules[m].__spec__, "_initializing", False) for m in unfinished):
        _register()


def _register() -> None:
    global _done
    _done = True  # the imports below come through here again
    from transformers import AutoConfig, AutoImageProcessor, AutoModel

    from iltm_anomaly.modeling import ILTMConfig, WholePipeline
    from iltm_anomaly.prior import (
        PerformerPriorConfig,
        PerformerPriorModel,
        PositionPriorConfig,
        PositionPriorModel,
        TissuePriorConfig,
        TissuePriorModel,
    )
    from iltm_anomaly.processing.image_processing import ILTMImageProcessor
    from iltm_anomaly.tokenizers.features import FeatureTokenizerConfig, FeatureTokenizerModel
    from iltm_anomaly.tokenizers.tissue import TissueTokenizerConfig, TissueTokenizerModel
    from iltm_anomaly.tokenizers.vqvae import VQVAEConfig, VQVAEModel

    models: dict[Any, Any] = {
        VQVAEConfig: VQVAEModel,
        FeatureTokenizerConfig: FeatureTokenizerModel,
        PerformerPriorConfig: PerformerPriorModel,
        PositionPriorConfig: PositionPriorModel,
        TissueTokenizerConfig: TissueTokenizerModel,
        TissuePriorConfig: TissuePriorModel,
        ILTMConfig: WholePipeline,
    }
    for config, model in models.items():
        AutoConfig.register(config.model_type, config)
        AutoModel.register(config, model)
    # one class for both: it needs no torchvision
    processors: dict[str, type] = {"pil": ILTMImageProcessor, "torchvision": ILTMImageProcessor}
    for tokenizer in (VQVAEConfig, FeatureTokenizerConfig, TissueTokenizerConfig):
        AutoImageProcessor.register(tokenizer, image_processor_classes=processors)
