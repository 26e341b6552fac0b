"""Optional packages: imported where they are used, one sentence where they are missing."""

import importlib
from typing import Any

from sqzoo.errors import MissingExtraError


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
