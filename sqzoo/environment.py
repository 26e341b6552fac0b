"""What a recorded figure hangs on besides its seed and data: command, commit, versions, hardware, threads."""

import os
import platform
import subprocess
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

_PACKAGES = ("torch", "torchvision", "timm", "safetensors", "huggingface_hub", "numpy", "pillow", "sqzoo")


def environment() -> dict[str, Any]:
    """Return the facts of this process as JSON-ready values; `commit` is None outside a git checkout."""
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
    return Path(word).name if os.path.isabs(word) else word


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
    head, dirty = (["rev-parse", "HEAD"], ["status", "--porcelain", "--untracked-files=no", "--", "sqzoo"])
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
