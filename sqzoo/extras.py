"""Optional packages: imported where they are used, one sentence where they are missing."""

import importlib
from typing import Any

from sqzoo.errors import MissingExtraError, printable

_EXTRAS = {  # by the name that is imported
    **dict.fromkeys(("pyarrow", "scipy"), "train"),
    **dict.fromkeys(("onnx", "onnxscript", "onnxruntime"), "export"),
    **dict.fromkeys(("optuna", "yaml"), "sweep"),
    **{"matplotlib": "plot", "openvino": "openvino", "datasets": "datasets", "pillow_heif": "heic"},
}


def require(module: str, extra: str, purpose: str) -> Any:
    """Import and return an optional module; raise `MissingExtraError`, which names the pip command, where it is absent.

    purpose: what needs it, the beginning of the sentence, such as "The format onnx".
    """
    try:
        return importlib.import_module(module)
    except ImportError as e:
        package = module.partition(".")[0]
        raise MissingExtraError(
            f"{purpose} needs {package}, which does not import here ({type(e).__name__}); install it with: "
            f"pip install 'sqzoo[{extra}]'."
        ) from e


def missing_extra(error: ImportError) -> MissingExtraError | None:
    """Return the error of an optional package that an import asked for; None where it is not one of ours."""
    package = (error.name or "").partition(".")[0]
    if package not in _EXTRAS:
        return None
    return MissingExtraError(
        f"This needs {printable(package)}, which does not import here ({type(error).__name__}); install it with: "
        f"pip install 'sqzoo[{_EXTRAS[package]}]'."
    )
