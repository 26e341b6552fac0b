"""Everything a recorded figure depends on besides seed and data; this machine's devices; optional packages."""

import ctypes
import importlib
import os
import platform
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from sqzoo.errors import ArgumentError, MissingExtraError, printable

_PACKAGES = ("torch", "torchvision", "timm", "safetensors", "huggingface_hub", "numpy", "pillow", "sqzoo")
_EXTRAS = {  # by the name that is imported
    **dict.fromkeys(("matplotlib", "pyarrow", "scipy"), "train"),
    **dict.fromkeys(("onnx", "onnxscript", "onnxruntime"), "export"),
    **{"yaml": "sweep", "openvino": "openvino", "datasets": "datasets", "pillow_heif": "heic"},
}
# What a figure depends on. Records and the weights' own accuracies are written between two commits; a record holds the
# SHA-256 of the weights that it measured.
_CODE = (
    *("sqzoo", "benchmarks", "tools", ":!benchmarks/results", ":!tools/sbom.cdx.json"),
    *(":!sqzoo/weights/manifest.json", ":!sqzoo/weights/*.safetensors"),
)


def environment() -> dict[str, Any]:
    """Return the facts of this process as JSON-ready values; `commit` is None outside a git checkout."""
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
    """Cut an absolute path in a word of the command to its last part: where it lies is this machine's own affair."""
    return re.sub(r"(?<![\w.:/])~?(?:/[^/\s=,:]+)+/(?=[^/\s])", "", word)


def package_version(name: str) -> str | None:
    """Return the version of an installed package, or None."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _commit() -> str | None:
    """Return the commit of sqzoo's own checkout, if this package lies in one.

    Not that of a project in whose folders the package is installed. Git is run in sqzoo's own checkout alone, where
    its code runs anyway: a repository's configuration can name programs for git to start.
    """
    root = Path(__file__).resolve().parents[1]
    try:
        project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]["name"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if project != "sqzoo" or not (root / ".git").exists():
        return None
    # Within a git hook, variables name the repository that the hook is of.
    variables = {k: v for k, v in os.environ.items() if not k.startswith("GIT_")} | {"GIT_OPTIONAL_LOCKS": "0"}
    git = ["git", "-c", "core.fsmonitor=false", "-c", "core.hooksPath=/dev/null"]
    head, dirty = ["rev-parse", "HEAD"], ["status", "--porcelain", "--", *_CODE]
    try:
        found, changed = (
            subprocess.run(
                [*git, *words], cwd=root, env=variables, capture_output=True, text=True, check=True, timeout=30
            ).stdout.strip()
            for words in (head, dirty)
        )
    except (OSError, subprocess.SubprocessError, ValueError):
        return None
    return found + ("+changes" if changed else "")


def cpu() -> str:
    """Return the processor's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()


def check_device(device: str) -> None:
    """Raise `ArgumentError` unless `device` names one that this machine has: cpu, cuda, cuda:N or mps."""
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
    """Whether layers run faster in bfloat16 than in float32 on a device.

    Of CPUs these are the ones with instructions for it (AMX, AVX-512 BF16); others convert, and are slower.
    """
    import torch

    if device.startswith("cuda"):
        return torch.cuda.is_bf16_supported(including_emulation=False)
    names = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return device == "cpu" and any(getattr(torch.cpu, name, bool)() for name in names)


def pick_precision(precision: str, device: str, dense: bool) -> str:
    """Return "float32" or "bfloat16": the one that was asked for, or for "auto" the faster one of the device.

    dense: whether the work is products of all values; what reads the non-zeros of sparse maps is faster in float32.
    """
    if precision not in ("auto", "float32", "bfloat16"):
        raise ArgumentError(f"precision must be 'auto', 'float32' or 'bfloat16', not {precision!r}.")
    return precision if precision != "auto" else "bfloat16" if dense and bfloat16_is_fast(device) else "float32"


def keep_freed_memory() -> None:
    """Have glibc keep large freed blocks instead of giving each back to the kernel and faulting it in again.

    Activations are megabytes each: measured on two cores, all-layer training at 128 pixels rose from 205 to 265
    images a second. Without glibc nothing happens.
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
