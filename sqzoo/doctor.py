"""Diagnose the installation: versions, caches, data, and for what is missing the command that gets it."""

import os
import platform
from importlib.metadata import PackageNotFoundError, metadata, requires, version
from pathlib import Path
from typing import Any

import torch
from packaging.requirements import Requirement

from sqzoo.environment import bfloat16_is_fast, environment
from sqzoo.errors import SqzooError, shown
from sqzoo.files import environment_path

_TIMEOUT = 3  # seconds for the Hub to answer


def examine() -> dict[str, dict[str, Any]]:
    """Return JSON-ready facts by part: essential, versions, machine, caches, data, extras, network."""
    facts = environment()
    broken = _broken()
    return {
        "essential": {"state": "all well" if not broken else "broken", "broken": broken},
        "versions": {"python": facts["python"], **facts["versions"]},
        "machine": _machine(facts),
        "caches": _caches(),
        "data": {"CIFAR-10": _cifar10(), "ImageNet trunks": _trunks()},
        "extras": _extras(),
        "network": {"Hub": _hub()},
    }


def _broken() -> list[str]:
    """Return what keeps sqzoo from working: damaged packaged weights, a torch that does not run."""
    from sqzoo.cache import entries
    from sqzoo.registry import create_model

    broken = [damage for e in entries() if e.kind == "package" and (damage := e.damage())]
    try:
        with torch.inference_mode():
            create_model("sq1").eval()(torch.zeros(1, 3, 32, 32))
    except Exception as e:  # whatever a broken installation of torch raises
        broken.append(f"torch cannot run sq1 ({type(e).__name__}: {e})")
    return broken


def _machine(facts: dict[str, Any]) -> dict[str, Any]:
    devices = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        devices.append("mps")
    return {
        "system": f"{facts['system']}, {platform.release()}",
        "processor": facts["cpu"],
        "vector instructions": facts["cpu_capability"],
        "bfloat16": "fast" if bfloat16_is_fast("cpu") else "slower than float32 on this processor",
        "cores, threads": f"{facts['cores']}, {facts['threads']}",
        "torch build": f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU",
        "devices": ", ".join(["cpu", *devices]),
    }


def _caches() -> dict[str, str]:
    from huggingface_hub import constants

    from sqzoo.cache import folder_size
    from sqzoo.weights.manifest import FOLDER
    from sqzoo.weights.trunks import checkpoints

    folders = {"weights (package)": FOLDER, "trunks (torch.hub)": checkpoints()}
    folders["models (Hub)"] = Path(constants.HF_HUB_CACHE)
    return {name: f"{folder} ({folder_size(folder) / 1e6:.1f} MB)" for name, folder in folders.items()}


def _cifar10() -> str:
    from sqzoo.data import holds_cifar10

    try:
        folder = environment_path("SQZOO_CIFAR10")
        if not folder:
            return "downloaded on demand; SQZOO_CIFAR10 is not set"
        return f"{shown(folder)}: " + ("found" if holds_cifar10(folder) else "NOT THERE; correct SQZOO_CIFAR10")
    except (OSError, SqzooError) as e:
        return str(e)


def _trunks() -> str:
    from sqzoo.weights.trunks import TRUNKS, checkpoints, load_trunk

    states = []
    for trunk in TRUNKS.values():
        cached = checkpoints() / trunk.file
        if "SQZOO_TRUNKS" not in os.environ and not os.path.isfile(cached):
            states.append(f"{trunk.name} is downloaded on demand")
            continue
        try:
            load_trunk(trunk.name)
            states.append(f"{trunk.name} found")
        except SqzooError as e:
            states.append(str(e))
    return "; ".join(states)


def _extras() -> dict[str, str]:
    """Return for each extra: installed, or the pip command that installs what is missing."""
    try:
        requirements = [Requirement(line) for line in requires("sqzoo") or []]
        extras = metadata("sqzoo").get_all("Provides-Extra") or []
    except PackageNotFoundError:
        return {"unknown": "sqzoo is not installed; pip install . where its pyproject.toml is"}
    states = {}
    for extra in extras:
        needed = (r for r in requirements if r.marker and r.marker.evaluate({"extra": extra}))
        missing = sorted({r.name for r in needed if not _is_installed(r)})
        states[extra] = f"missing {', '.join(missing)}: pip install 'sqzoo[{extra}]'" if missing else "installed"
    return states


def _is_installed(requirement: Requirement) -> bool:
    try:
        return requirement.specifier.contains(version(requirement.name), prereleases=True)
    except PackageNotFoundError:
        return False


def _hub() -> str:
    from huggingface_hub import constants, get_session

    if constants.is_offline_mode():
        return "not asked: HF_HUB_OFFLINE is set"
    try:
        get_session().head(constants.ENDPOINT, timeout=_TIMEOUT)
    except Exception as e:  # whatever network and client raise
        return f"{constants.ENDPOINT} cannot be reached ({type(e).__name__}); what is cached works without it"
    return f"{constants.ENDPOINT} answers"
