"""sqzoo: tiny image classifiers made from SqueezeNet, with weights that can be checked and re-made."""

import sys
from importlib import import_module
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import TYPE_CHECKING, Any

from sqzoo.errors import SqzooError
from sqzoo.images import SAMPLE

if TYPE_CHECKING:
    from sqzoo.deploy.optimize import optimize
    from sqzoo.registry import create_model, list_models
    from sqzoo.weights.manifest import get_weights

__version__ = "0.1.0"

__all__ = ["SAMPLE", "SqzooError", "create_model", "get_weights", "list_models", "optimize"]

_LAZY = {
    "create_model": "sqzoo.registry",
    "get_weights": "sqzoo.weights.manifest",
    "list_models": "sqzoo.registry",
    "optimize": "sqzoo.deploy.optimize",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_LAZY[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})


class _RegisterWithTimm:
    """Register the architectures as soon as timm.models is imported.

    `import sqzoo, timm; timm.create_model("sq1")` must work, but timm imports torch, which takes seconds that `import
    sqzoo` and commands that only read metadata should not cost.
    """

    def find_spec(self, fullname: str, path: Any = None, target: ModuleType | None = None) -> ModuleSpec | None:
        spec = PathFinder.find_spec(fullname, path, target) if fullname == "timm.models" else None
        if spec and spec.loader:
            execute = spec.loader.exec_module

            def execute_and_register(module: ModuleType) -> None:
                execute(module)
                import_module("sqzoo.models")

            spec.loader.exec_module = execute_and_register  # type: ignore[method-assign]
        return spec


if "timm.models" in sys.modules:
    import_module("sqzoo.models")
else:
    sys.meta_path.insert(0, _RegisterWithTimm())
