"""After `import iltm_anomaly`, AutoConfig, AutoModel, AutoImageProcessor and `pipeline("anomaly-detection")` know its classes.

Why not plainly import `auto_classes` with the package: that imports torch and transformers, 5 seconds of CPU against 0.04, and
the command line, `export.scorer` and `metrics.aupro` do without them. And `import iltm_anomaly` often comes before
`from transformers import AutoModel`, with nothing of ours called in between. So imports are watched until all is registered.
"""

import sys
from importlib import import_module
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from typing import Any

# Modules of transformers, and those of ours that register what belongs to them.
WHEN = {"transformers": "auto_classes", "transformers.pipelines": "transformers_task"}


class ImportWatcher(MetaPathFinder):
    """Finds modules as Python does by itself, and registers when none of transformers and of ours is half imported."""

    def __init__(self) -> None:
        self.under_way: set[str] = set()

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if fullname not in WHEN and not fullname.startswith(f"{__package__}."):
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is None or spec.loader is None:
            return None
        execute = spec.loader.exec_module

        def execute_and_register(module: Any) -> None:
            self.under_way.add(fullname)
            try:
                execute(module)
            finally:
                self.under_way.discard(fullname)
            self.register()

        spec.loader.exec_module = execute_and_register  # type: ignore[method-assign]
        return spec

    def register(self) -> None:
        """Registers what can be by now; goes when that is all."""
        for theirs, ours in WHEN.items():
            if theirs in sys.modules and not self.under_way:
                import_module(f"{__package__}.{ours}")
        if all(f"{__package__}.{ours}" in sys.modules for ours in WHEN.values()) and self in sys.meta_path:
            sys.meta_path.remove(self)


def watch_imports() -> None:
    """Registers now what can be registered now, and the rest as soon as it can be."""
    watcher = ImportWatcher()
    sys.meta_path.insert(0, watcher)
    watcher.register()
