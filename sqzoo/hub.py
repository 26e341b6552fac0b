"""Models into the Hugging Face Hub's form: a folder, a repository, and back."""

import hashlib
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch.nn as nn
from safetensors.torch import save
from timm.models._hub import save_config_for_hf  # private in timm, same place in all of 1.0

from sqzoo.errors import ArgumentError, WeightsError
from sqzoo.models._base import ZooModel
from sqzoo.models.upsample import Upsample
from sqzoo.registry import create_model
from sqzoo.weights.remote import CONFIG, WEIGHTS, reason

CARD = "README.md"
_CARDS = Path(__file__).parents[1] / "MODEL_CARDS"  # beside the package in a checkout; a wheel has none


def save_pretrained(model: nn.Module, folder: str | os.PathLike[str], card: str | None = None) -> None:
    """Write a model to a folder: model.safetensors, config.json in timm's form with the SHA-256 of the weights, a card.

    Both `sqzoo.create_model("local-dir:FOLDER")` and, once sqzoo is imported, timm's read it. Files appear whole; the
    configuration comes last, so that a folder with one is complete. It has the model's `temperature` and
    `ood_threshold`, too: set them to 1.0 and None after training the model further.
    """
    target = Path(folder)
    if not isinstance(model, ZooModel):
        raise ArgumentError(f"{type(model).__name__} is no model of create_model; give one that it made.")
    tensors = {k: v.detach().cpu().contiguous() for k, v in model.state_dict().items()}
    data = save(tensors, {"format": "pt"})
    try:
        target.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target, prefix=".writing-") as temporary:
            file = Path(temporary) / CONFIG
            save_config_for_hf(model, str(file), model_args=_enlargement(model))
            config = json.loads(file.read_text(encoding="utf-8"))
            config["sha256"] = hashlib.sha256(data).hexdigest()
            if model.ood_threshold is not None:
                config["ood_threshold"] = model.ood_threshold
            contents = {WEIGHTS: data, CARD: (card or _card(model)).encode()}
            contents[CONFIG] = (json.dumps(config, indent=2) + "\n").encode()
            (target / CONFIG).unlink(missing_ok=True)
            for name, content in contents.items():
                written = Path(temporary) / name
                with written.open("wb") as stream:
                    stream.write(content)
                    stream.flush()
                    os.fsync(stream.fileno())
                written.replace(target / name)
    except OSError as e:
        raise WeightsError(f"Cannot write to {target} ({e.strerror}); name a folder that you may write to.") from e


def _enlargement(model: ZooModel) -> dict[str, Any]:
    """Return the arguments that may have changed since the model was built: its enlargement and temperature."""
    upsample = model.upsample
    sizes = [upsample.resize, upsample.crop] if isinstance(upsample, Upsample) else None
    return {"upsample": sizes, "temperature": model.temperature}


def from_pretrained(
    source: str | os.PathLike[str],
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    force_download: bool = False,
    **model_args: Any,
) -> nn.Module:
    """Return the model in a folder or in the Hub repository "ORG/NAME", in evaluation mode; see `create_model`."""
    name = f"local-dir:{source}" if os.path.isdir(source) else f"hf-hub:{source}"
    return create_model(
        name, revision=revision, token=token, cache_dir=cache_dir, force_download=force_download, **model_args
    )


def push(
    model: nn.Module | str,
    repo: str,
    *,
    token: str | bool | None = None,
    private: bool = False,
    revision: str | None = None,
    message: str | None = None,
    trunk: str | os.PathLike[str] | None = None,
) -> str:
    """Upload a model, or a weights tag's, to the Hub repository "ORG/NAME", made if need be; return the commit's hash.

    Weights, configuration and card go in one commit: all or nothing. A head file is joined with its trunk first, so
    what is on the Hub is whole. Raises `WeightsError` where the Hub refuses or cannot be reached.
    """
    from huggingface_hub import HfApi

    card, plot = None, _CARDS / "none"
    if isinstance(model, str):
        file, plot = (_CARDS / f"{model}.{kind}" for kind in ("md", "svg"))
        card = file.read_text(encoding="utf-8") if file.is_file() else None
        message = message or f"{model} by sqzoo"
        model = create_model(model, pretrained=True, trunk=trunk)
    with tempfile.TemporaryDirectory() as folder:
        save_pretrained(model, folder, card)
        if plot.is_file():
            shutil.copy(plot, folder)
        api = HfApi(token=token)
        try:
            api.create_repo(repo, private=private, exist_ok=True)
            commit = api.upload_folder(
                repo_id=repo, folder_path=folder, revision=revision, commit_message=message or "sqzoo model"
            )
        except Exception as e:  # whatever network and client raise
            raise WeightsError(
                f"Could not push to {repo} ({reason(e)}); check the name ORG/NAME, the token's rights and the network."
            ) from e
    return str(commit.oid)


def _card(model: nn.Module) -> str:
    config: dict[str, Any] = model.pretrained_cfg  # type: ignore[assignment]
    return (
        f"---\nlibrary_name: sqzoo\npipeline_tag: image-classification\n---\n\n# {config['architecture']}\n\n"
        "Saved by [sqzoo](https://github.com/org/sqzoo). Load it with `sqzoo.hub.from_pretrained`, or after "
        '`import sqzoo` with `timm.create_model("hf-hub:ORG/NAME", pretrained=True)`.\n'
    )
