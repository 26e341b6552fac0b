"""Models into the Hugging Face Hub's form: a folder, a repository, and back."""

import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn as nn
from safetensors.torch import save
from timm.models._hub import save_config_for_hf  # private in timm, same place in all of 1.0

from sqzoo.deploy.transformers_js import configurations, javascript_files, json_bytes
from sqzoo.errors import ArgumentError, ExportError, MissingExtraError, WeightsError, shown, why
from sqzoo.files import check_replaceable
from sqzoo.images.reader import label_names
from sqzoo.models.base import ZooModel
from sqzoo.models.upsample import Upsample
from sqzoo.registry import create_model
from sqzoo.weights.config_json import parse_config
from sqzoo.weights.header import check_matches, parse_header
from sqzoo.weights.metadata import metadata
from sqzoo.weights.remote import CONFIG, WEIGHTS, check_home, clean_token, reason
from sqzoo.weights.untrusted import CONFIG_LARGEST, LARGEST, parse_json, read_bytes

CARD = "README.md"
_logger = logging.getLogger("sqzoo")
_CARDS = Path(__file__).parents[1] / "MODEL_CARDS"  # beside the package in a checkout; a wheel has none


def save_pretrained(
    model: nn.Module, folder: str | os.PathLike[str], card: str | None = None, *, transformers_js: bool = False
) -> None:
    """Write a model to a folder: model.safetensors, config.json in timm's form with the SHA-256 of the weights, a card.

    A README.md that its owner wrote or changed stays as it is; a config.json or model.safetensors that is not a model
    of ours is refused. Once sqzoo is imported, `sqzoo.create_model("local-dir:FOLDER")`, timm's and transformers'
    `AutoModelForImageClassification.from_pretrained(FOLDER)` read it. Files appear whole; the configuration comes last,
    so that a folder with one is complete. It has the model's `temperature` and `ood_threshold`, too: set them to 1.0
    and None after training the model further.

    Args:
        model: a model of `create_model`.
        folder: where to write; made if need be.
        card: the text of README.md; by default a short one.
        transformers_js: also write ONNX graphs and what transformers.js reads beside them (extra `export`).

    Raises:
        ArgumentError: another model.
        ExportError, MissingExtraError: what transformers.js reads cannot be made.
        WeightsError: the folder cannot be written, or holds what is not ours.
    """
    target = Path(folder)
    model = _check(model)
    tensors = {k: v.detach().cpu().contiguous() for k, v in model.state_dict().items()}
    data = save(tensors, {"format": "pt"})
    script = _transformers_js(model) if transformers_js else {}
    try:
        target.mkdir(parents=True, exist_ok=True)
        _check_ours(target, tensors, list(script))
        with tempfile.TemporaryDirectory(dir=target, prefix=".writing-") as temporary:
            file = Path(temporary) / CONFIG
            save_config_for_hf(model, str(file), model_args=_enlargement(model))
            config = json.loads(file.read_text(encoding="utf-8"))
            # transformers gives num_classes beside the other arguments; it stands in the configuration itself.
            config.get("model_args", {}).pop("num_classes", None)
            names = list(model.pretrained_cfg.get("label_names") or ())
            if names and len(names) == model.num_classes:
                # timm leaves them out where the weights that the model began with had another number of classes, and
                # transformers looks for them at the top.
                config["label_names"] = config["pretrained_cfg"]["label_names"] = names
            _check_rebuilds(model, config, tensors)
            config["sha256"] = hashlib.sha256(data).hexdigest()
            if model.ood_threshold is not None:
                config["ood_threshold"] = model.ood_threshold
            contents = script | {WEIGHTS: data}
            if is_ours(_in_folder(target)):
                contents[CARD] = (card or _card(model)).encode()
                config["card_sha256"] = hashlib.sha256(contents[CARD]).hexdigest()
            contents |= configurations(config, label_names(model)) if script else {CONFIG: json_bytes(config)}
            (target / CONFIG).unlink(missing_ok=True)
            for name, content in contents.items():
                written = Path(temporary) / Path(name).name
                with written.open("wb") as stream:
                    stream.write(content)
                    stream.flush()
                    os.fsync(stream.fileno())
                (target / name).parent.mkdir(exist_ok=True)
                written.replace(target / name)
    except OSError as e:
        raise WeightsError(f"Cannot write to {shown(target)} ({why(e)}); name a folder that you may write to.") from e


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
    transformers_js: bool = True,
) -> str:
    """Upload a model to the Hub repository "ORG/NAME", made if need be; return the commit's hash.

    All files go in one commit: all or nothing; a card in the repository that its owner wrote or changed stays. A head
    file is joined with its trunk first, so what is on the Hub is whole.

    Args:
        model: one of `create_model`, or the name of one: a weights tag, or "local-dir:FOLDER" with FOLDER's card.
        repo: "ORG/NAME".
        token: a Hub token; by default the one that is logged in.
        private: whether a repository that is made here is private.
        revision: a branch; one that is not there is made.
        message: the commit's message.
        trunk: as in `create_model`.
        transformers_js: with what transformers.js reads, for browsers; a model that cannot have it, or a machine
            without the extra `export`, is said in a warning.

    Raises:
        WeightsError: the Hub refuses or cannot be reached.
    """
    from huggingface_hub import HfApi

    token = clean_token(token)
    check_home()
    card, plot = None, _CARDS / "none"
    if isinstance(model, str) and model.startswith("local-dir:"):
        own = _in_folder(Path(model.removeprefix("local-dir:")))(CARD)
        card = own.decode("utf-8", "replace") if own else None
        model = create_model(model, pretrained=True, trunk=trunk)
    elif isinstance(model, str):
        file, plot = (_CARDS / f"{model}.{kind}" for kind in ("md", "svg"))
        card = file.read_text(encoding="utf-8") if file.is_file() else None
        message = message or f"{model} by sqzoo"
        model = create_model(model, pretrained=True, trunk=trunk)
    with tempfile.TemporaryDirectory() as folder:
        try:
            save_pretrained(model, folder, card, transformers_js=transformers_js)
        except (ArgumentError, ExportError, MissingExtraError) as e:
            _check(model)
            _logger.warning("%s goes without files for transformers.js: %s", repo, e)
            save_pretrained(model, folder, card)
        if plot.is_file():
            shutil.copy(plot, folder)
        api = HfApi(token=token)
        try:
            api.create_repo(repo, private=private, exist_ok=True)
            if revision and revision != "main" and not revision.startswith("refs/"):
                api.create_branch(repo, branch=revision, exist_ok=True)
            with tempfile.TemporaryDirectory() as there:
                replaces = is_ours(_in_repository(api, repo, revision, there))
            commit = api.upload_folder(
                repo_id=repo,
                folder_path=folder,
                revision=revision,
                commit_message=message or "sqzoo model",
                ignore_patterns=[] if replaces else [CARD],
            )
        except Exception as e:  # whatever network and client raise
            raise WeightsError(
                f"Could not push to {repo} ({reason(e)}); check the name ORG/NAME, the token's rights and the network."
            ) from e
    return str(commit.oid)


def is_ours(read: Callable[[str], bytes | None]) -> bool:
    """Whether a model card may be replaced: there is none, or it is still what sqzoo noted in config.json.

    read: returns a file of the folder or repository by name, or None where there is none.
    """
    card, config = read(CARD), read(CONFIG)
    if card is None:
        return True
    try:
        return bool(parse_json(config or b"")["card_sha256"] == hashlib.sha256(card).hexdigest())
    except (ValueError, KeyError, TypeError):
        return False


def _in_folder(folder: Path) -> Callable[[str], bytes | None]:
    def read(name: str) -> bytes | None:
        try:
            return read_bytes(folder / name, CONFIG_LARGEST)
        except FileNotFoundError:
            return b"" if (folder / name).is_symlink() else None
        except (OSError, WeightsError):  # a pipe, a book: there, and not ours
            return b""

    return read


def _in_repository(api: Any, repo: str, revision: str | None, folder: str) -> Callable[[str], bytes | None]:
    from huggingface_hub.errors import EntryNotFoundError, RevisionNotFoundError

    def read(name: str) -> bytes | None:
        try:
            file = Path(api.hf_hub_download(repo, name, revision=revision, cache_dir=folder))
        except (EntryNotFoundError, RevisionNotFoundError):
            return None
        return _in_folder(file.parent)(file.name)

    return read


def _check_rebuilds(model: ZooModel, config: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> None:
    """Raise `ArgumentError` unless the configuration's arguments build a network that these tensors fit."""
    built = {"num_classes": config["num_classes"]} | (config.get("model_args") or {})
    try:
        check_matches(tensors, type(model)(device="meta", **built).state_dict(), "It")  # type: ignore[call-arg]
    except WeightsError as e:
        raise ArgumentError(
            "The model cannot be built again from its arguments: its layers were pruned, parametrised or replaced; "
            f"undo that (torch.nn.utils.prune.remove, parametrize.remove_parametrizations) first. {e}"
        ) from e


def _check_ours(folder: Path, own: Mapping[str, torch.Tensor], others: Sequence[str]) -> None:
    """Raise `WeightsError` where a folder has files of the names to be written that are not a model's of ours.

    others: names besides the configuration, weights and card. Weights alone, as a save that was killed leaves them,
    are ours if they have the model's tensors.
    """
    configured = (folder / CONFIG).exists()
    for name in (CONFIG, WEIGHTS, *others, *([CARD] if is_ours(_in_folder(folder)) else [])):
        place = folder / name
        check_replaceable(place)
        ours = configured or not place.exists() or name == CARD
        try:
            if place.parent.is_symlink() and place.parent != folder:
                ours = False  # it leads elsewhere
            elif name == CONFIG and configured:
                parse_config(read_bytes(place, CONFIG_LARGEST), CONFIG)
            elif name == WEIGHTS and not ours:
                ours = set(parse_header(read_bytes(place, LARGEST), WEIGHTS)) == set(own)
        except WeightsError:
            ours = False
        if not ours:
            raise WeightsError(
                f"{shown(place)} is not of a model that sqzoo saved, and would be replaced; name another folder."
            )


def _check(model: nn.Module) -> ZooModel:
    if not isinstance(model, ZooModel):
        raise ArgumentError(f"{type(model).__name__} is no model of create_model; give one that it made.")
    return model


def _transformers_js(model: nn.Module) -> dict[str, bytes]:
    return javascript_files(model, metadata(model) | {"input": "float32 NCHW of any size, normalised"})


def _card(model: nn.Module) -> str:
    config: dict[str, Any] = model.pretrained_cfg  # type: ignore[assignment]
    return (
        f"---\nlibrary_name: sqzoo\npipeline_tag: image-classification\n---\n\n# {config['architecture']}\n\n"
        "Saved by [sqzoo](https://github.com/org/sqzoo). Load it with `sqzoo.hub.from_pretrained`, or after "
        '`import sqzoo` with `timm.create_model("hf-hub:ORG/NAME", pretrained=True)`.\n'
    )
