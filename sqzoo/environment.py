"""Record what a figure depends on besides seed and data; pick devices; import optional packages."""

import ctypes
import importlib
import os
import platform
import re
import subprocess  # git alone  # nosec B404
import sys
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from sqzoo.errors import ArgumentError, MissingExtraError

_PACKAGES = ("torch", "torchvision", "timm", "safetensors", "huggingface_hub", "numpy", "pillow", "sqzoo")
_EXTRAS = {  # by the name that is imported
    **dict.fromkeys(("matplotlib", "pyarrow", "scipy"), "train"),
    **dict.fromkeys(("onnx", "onnxscript", "onnxruntime"), "export"),
    **{"yaml": "sweep", "openvino": "openvino", "datasets": "datasets", "pillow_heif": "heic"},
}
# What a figure depends on. Not the records and the manifest, which are written between commits; a record has the
# SHA-256 of the weights that it measured.
_CODE = (
    *("sqzoo", "benchmarks", "tools", ":!benchmarks/results", ":!tools/sbom.cdx.json"),
    *(":!sqzoo/weights/manifest.json", ":!sqzoo/weights/*.safetensors"),
)


def environment() -> dict[str, Any]:
    """Return the environment of this process, JSON-ready; `commit` is None outside a git checkout."""
    import torch

    return {
        "command": " ".join(["python", *map(_short, sys.orig_argv[1:])]),
        "commit": _commit(),
        "python": platform.python_version(),
        "versions": {name: package_version(name) for name in _PACKAGES},
        "cpu": cpu(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "system": f"{platform.system()} {platform.machine()}",
    }


def _short(word: str) -> str:
    """Cut an absolute path in a word of the command to its last part, for privacy."""
    return re.sub(r"(?<![\w.:/])~?(?:/[^/\s=,:]+)+/(?=[^/\s])", "", word)


def package_version(name: str) -> str | None:
    """Return the version of an installed package, or None."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _commit() -> str | None:
    """Return the commit of sqzoo's own checkout, marked if there are changes.

    Git runs only there, where the code runs anyway: a repository's configuration can name programs for git to start.
    """
    root = Path(__file__).resolve().parents[1]
    try:
        project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]["name"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if project != "sqzoo" or not (root / ".git").exists():
        return None
    # In a git hook, GIT_ variables name the hook's repository.
    variables = {k: v for k, v in os.environ.items() if not k.startswith("GIT_")} | {"GIT_OPTIONAL_LOCKS": "0"}
    git = ["git", "-c", "core.fsmonitor=false", "-c", "core.hooksPath=/dev/null"]
    command = [*git, "status", "--porcelain=v2", "--branch", "--", *_CODE]
    options: Any = {"capture_output": True, "text": True, "check": True, "timeout": 30}
    try:
        done = subprocess.run(command, cwd=root, env=variables, **options)  # no shell, fixed words  # nosec B603
    except (OSError, subprocess.SubprocessError, ValueError):
        return None
    head, *lines = done.stdout.splitlines()  # "# branch.oid COMMIT", other facts, then a line per changed file
    changes = "+changes" if any(not line.startswith("#") for line in lines) else ""
    return head.removeprefix("# branch.oid ") + changes


def cpu() -> str:
    """Return the processor's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()


def check_device(device: str) -> None:
    """Raise `ArgumentError` unless this machine has the device: cpu, cuda, cuda:N or mps."""
    import torch

    try:
        asked = torch.device(device)
    except (RuntimeError, TypeError):
        asked = torch.device("meta")
    if asked.type not in ("cpu", "cuda", "mps"):
        raise ArgumentError(f"device must be cpu, cuda, cuda:N or mps, not {device!r}.")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if asked.type == "cuda" and (asked.index or 0) >= count:
        raise ArgumentError(f"device={device!r}, and PyTorch finds {count} CUDA GPUs here; give device='cpu'.")
    if asked.type == "mps" and not torch.backends.mps.is_available():
        raise ArgumentError(f"device={device!r}, and PyTorch finds no Metal GPU here; give device='cpu'.")


def bfloat16_is_fast(device: str) -> bool:
    """Whether bfloat16 is faster than float32 on a device; of CPUs on those with AMX or AVX-512 BF16."""
    import torch

    if device.startswith("cuda"):
        return torch.cuda.is_bf16_supported(including_emulation=False)
    names = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return device == "cpu" and any(getattr(torch.cpu, name, bool)() for name in names)


def pick_precision(precision: str, device: str, dense: bool) -> str:
    """Return "float32" or "bfloat16"; for "auto" the faster one.

    Args:
        precision: "auto", "float32" or "bfloat16".
        device: where the model runs.
        dense: whether the work is dense matrix products; sparse maps are faster in float32.

    Raises:
        ArgumentError: `precision` is none of these.
    """
    if precision not in ("auto", "float32", "bfloat16"):
        raise ArgumentError(f"precision must be 'auto', 'float32' or 'bfloat16', not {precision!r}.")
    return precision if precision != "auto" else "bfloat16" if dense and bfloat16_is_fast(device) else "float32"


def keep_freed_memory() -> None:
    """Let glibc keep large freed blocks instead of returning them to the kernel; a no-op without glibc.

    Activations take megabytes: on two cores, training all layers at 128 pixels rose from 205 to 265 images per second.
    """
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return
    trim_threshold, top_pad, mmap_max = -1, -2, -4  # from malloc.h
    mallopt(mmap_max, 0)
    mallopt(trim_threshold, 2**31 - 1)
    mallopt(top_pad, 512 << 20)


def require(module: str, extra: str, purpose: str) -> Any:
    """Import an optional module, with the telemetry of ONNX Runtime and OpenVINO disabled.

    Args:
        module: name of the module.
        extra: the extra of sqzoo that installs it.
        purpose: what needs it, to begin the error's sentence, such as "The format onnx".

    Raises:
        MissingExtraError: the module cannot be imported; the message has the pip command.
    """
    try:
        with _telemetry_off():
            return importlib.import_module(module)
    except ImportError as e:
        raise _missing(purpose, module, e, extra) from e


@contextmanager
def _telemetry_off() -> Iterator[None]:
    """Import runtimes in this context: they would write a device identifier into the home folder and report usage.

    A runtime that the caller has imported, or a variable that the caller has set, is left unchanged.
    """
    # ONNX Runtime reads the variable on import; its disable_telemetry_events() comes too late.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    # OpenVINO reports by a package of its own; where that cannot be imported, it uses a stub from then on.
    package = sys.modules.get("openvino_telemetry")
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]  # imports of it raise ImportError
    try:
        yield
    finally:
        sys.modules.pop("openvino_telemetry", None)
        if package:
            sys.modules["openvino_telemetry"] = package


def missing_extra(error: ImportError) -> MissingExtraError | None:
    """Return the error for an import of an optional package; None where the package is not one of ours."""
    package = (error.name or "").partition(".")[0]
    return _missing("This", package, error, _EXTRAS[package]) if package in _EXTRAS else None


def _missing(purpose: str, module: str, error: ImportError, extra: str) -> MissingExtraError:
    return MissingExtraError(
        f"{purpose} needs {module.partition('.')[0]}, which does not import here ({type(error).__name__}); install it "
        f"with: pip install 'sqzoo[{extra}]'."
    )
