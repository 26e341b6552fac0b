"""Optional packages: imported where they are used, without their telemetry, one sentence where they are missing."""

import importlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sqzoo.errors import MissingExtraError, printable

_EXTRAS = {  # by the name that is imported
    **dict.fromkeys(("pyarrow", "scipy"), "train"),
    **dict.fromkeys(("onnx", "onnxscript", "onnxruntime"), "export"),
    **dict.fromkeys(("optuna", "yaml"), "sweep"),
    **{"matplotlib": "plot", "openvino": "openvino", "datasets": "datasets", "pillow_heif": "heic"},
}


def require(module: str, extra: str, purpose: str) -> Any:
    """Import and return an optional module, with the telemetry of ONNX Runtime and OpenVINO switched off.

    Everything in sqzoo that uses an optional package gets it here.

    Args:
        module: name of the module.
        extra: the extra of sqzoo that installs it.
        purpose: what needs it, the beginning of the error's sentence, such as "The format onnx".

    Raises:
        MissingExtraError: the module does not import; names the pip command.
    """
    try:
        with _telemetry_off():
            return importlib.import_module(module)
    except ImportError as e:
        package = module.partition(".")[0]
        raise MissingExtraError(
            f"{purpose} needs {package}, which does not import here ({type(e).__name__}); install it with: "
            f"pip install 'sqzoo[{extra}]'."
        ) from e


@contextmanager
def _telemetry_off() -> Iterator[None]:
    """Import runtimes in here: both would write a device identifier into the home folder and report to their makers.

    A runtime that the caller imported before, or a variable that the caller set, is left as it is.
    """
    # ONNX Runtime reads the variable as it is loaded; its disable_telemetry_events() comes too late.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    # OpenVINO asks a file in the home folder and CI=true, which other programs read too. But its reporting is a package
    # of its own, without which it takes a stub, for the rest of the process.
    reporting = sys.modules.get("openvino_telemetry")
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]  # imports of it raise ImportError
    try:
        yield
    finally:
        if reporting:
            sys.modules["openvino_telemetry"] = reporting
        else:
            sys.modules.pop("openvino_telemetry", None)


def missing_extra(error: ImportError) -> MissingExtraError | None:
    """Return the error of an optional package that an import asked for; None where it is not one of ours."""
    package = (error.name or "").partition(".")[0]
    if package not in _EXTRAS:
        return None
    return MissingExtraError(
        f"This needs {printable(package)}, which does not import here ({type(error).__name__}); install it with: "
        f"pip install 'sqzoo[{_EXTRAS[package]}]'."
    )
