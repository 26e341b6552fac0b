"""Save, push and load models in the Hugging Face Hub's format."""

import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn as nn
from safetensors.torch import save
from timm.models._hub import save_config_for_hf  # private in timm, same place in all of 1.0

from sqzoo.deploy.transformers_js import configurations, javascript_files, json_bytes
from sqzoo.errors import ArgumentError, ExportError, MissingExtraError, WeightsError, shown, why
from sqzoo.files import TEMPORARY, check_replaceable, write_bytes
from sqzoo.images.reader import label_names
from sqzoo.models.base import ZooModel
from sqzoo.models.upsample import Upsample
from sqzoo.registry import create_model
from sqzoo.weights.config_json import is_generated_card, parse_config
from sqzoo.weights.header import check_matches, parse_header
from sqzoo.weights.hub_client import check_home, check_repository, clean_token, explain_push
from sqzoo.weights.metadata import metadata
from sqzoo.weights.remote import CONFIG, WEIGHTS
from sqzoo.weights.untrusted import CONFIG_LARGEST, LARGEST, read_bytes, read_small

CARD = "README.md"
_logger = logging.getLogger("sqzoo")
_CARDS = Path(__file__).parents[1] / "MODEL_CARDS"  # in a checkout; a wheel has none


def save_pretrained(
    model: nn.Module, folder: str | os.PathLike[str], card: str | None = None, *, transformers_js: bool = False
) -> None:
    """Save a model as model.safetensors, config.json in timm's form with the weights' SHA-256, and a model card.

    `sqzoo.create_model("local-dir:FOLDER")`, timm and transformers' `AutoModelForImageClassification` load it once
    sqzoo is imported. A README.md that its owner changed is kept; a config.json or model.safetensors that is not from
    sqzoo is refused. Each file is written atomically, the configuration last. It includes the model's `temperature` and
    `ood_threshold`: reset them to 1.0 and None after further training.

    Args:
        model: a model of `create_model`.
        folder: made if need be.
        card: text of README.md; by default a short one.
        transformers_js: also write ONNX graphs and configurations for transformers.js (extra `export`).

    Raises:
        ArgumentError: the model was not created by `create_model`, or its layers were changed since.
        ExportError: an ONNX graph differs from PyTorch.
        MissingExtraError: the extra `export` is not installed.
        WeightsError: the folder cannot be written, or holds files that are not from sqzoo.
    """
    target, model = Path(folder), _check(model)
    tensors = {k: v.detach().cpu().contiguous() for k, v in model.state_dict().items()}
    contents: dict[str, bytes] = {}
    if transformers_js:
        contents = javascript_files(model, metadata(model) | {"input": "float32 NCHW of any size, normalised"})
    try:
        target.mkdir(parents=True, exist_ok=True)
        _check_ours(target, tensors, contents)
        config = _config(model, tensors, target)
        contents[WEIGHTS] = save(tensors, {"format": "pt"})
        config["sha256"] = hashlib.sha256(contents[WEIGHTS]).hexdigest()
        new, old = (card or _card(model)).encode(), read_small(target / CARD)
        if old == new or is_generated_card(old, read_small(target / CONFIG)):  # equal: an interrupted save wrote it
            contents[CARD] = new
            config["card_sha256"] = hashlib.sha256(contents[CARD]).hexdigest()
        contents |= configurations(config, label_names(model)) if transformers_js else {CONFIG: json_bytes(config)}
        (target / CONFIG).unlink(missing_ok=True)
        for name, content in contents.items():
            write_bytes(target / name, content)
    except OSError as e:
        raise WeightsError(f"Cannot write to {shown(target)} ({why(e)}); name a folder that you may write to.") from e


def from_pretrained(source: str | os.PathLike[str], **options: Any) -> nn.Module:
    """Load the model in a folder or in the Hub repository "ORG/NAME"; options as for `create_model`."""
    return create_model(f"local-dir:{source}" if os.path.isdir(source) else f"hf-hub:{source}", **options)


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
    """Upload a model to a Hub repository in one commit; a card that its owner changed is kept.

    Args:
        model: a model of `create_model`, or a name of one: a weights tag, or "local-dir:FOLDER" with FOLDER's card.
            Head weights are joined with their trunk.
        repo: "ORG/NAME"; created if need be.
        token: a Hub token; by default the one of the login.
        private: whether a new repository is private.
        revision: a branch; created if need be.
        message: the commit message.
        trunk: as in `create_model`.
        transformers_js: include files for transformers.js; where they cannot be made, a warning is logged.

    Returns:
        The commit's hash.

    Raises:
        ArgumentError, WeightsError: no repository has such a name; the Hub refuses or cannot be reached.
    """
    from huggingface_hub import HfApi

    token = clean_token(token)
    check_home()
    check_repository(repo)  # before the work
    card, plot = None, _CARDS / "none"
    if isinstance(model, str):
        if model.startswith("local-dir:"):
            text = (read_small(Path(model.removeprefix("local-dir:"), CARD)) or b"").decode("utf-8", "replace")
            text = text.replace("local-dir:THIS_FOLDER", f"hf-hub:{repo}").replace("THIS_FOLDER", f"hf-hub:{repo}")
            card = text or None
        else:
            file, plot = (_CARDS / f"{model}.{kind}" for kind in ("md", "svg"))
            card = file.read_text(encoding="utf-8") if file.is_file() else None
            message = message or f"{model} by sqzoo"
        model = create_model(model, pretrained=True, trunk=trunk)
    with tempfile.TemporaryDirectory() as folder:
        save_pretrained(model, folder, card)  # an unusable model is reported before the Hub is asked
        if plot.is_file():
            shutil.copy(plot, folder)
        api = HfApi(token=token)
        with explain_push(repo):  # and a wrong token before the export, which takes seconds
            api.create_repo(repo, private=private, exist_ok=True)
            if revision and revision != "main" and not revision.startswith("refs/"):
                api.create_branch(repo, branch=revision, exist_ok=True)
            replace_card = is_generated_card(*(_read_remote(api, repo, name, revision) for name in (CARD, CONFIG)))
        try:
            if transformers_js:
                save_pretrained(model, folder, card, transformers_js=True)
        except (ArgumentError, ExportError, MissingExtraError) as e:
            _logger.warning("%s is pushed without files for transformers.js: %s", repo, e)
        with explain_push(repo):
            commit = api.upload_folder(
                repo_id=repo,
                folder_path=folder,
                revision=revision,
                commit_message=message or "sqzoo model",
                ignore_patterns=[] if replace_card else [CARD],
            )
    return str(commit.oid)


def _config(model: ZooModel, tensors: Mapping[str, torch.Tensor], folder: Path) -> dict[str, Any]:
    """Return the configuration in timm's form; raise `ArgumentError` where it would not rebuild the model."""
    upsample = model.upsample
    changed = {  # since the model was built
        "upsample": [upsample.resize, upsample.crop] if isinstance(upsample, Upsample) else None,
        "temperature": model.temperature,
    }
    with tempfile.TemporaryDirectory(dir=folder, prefix=TEMPORARY) as temporary:
        file = Path(temporary) / CONFIG
        save_config_for_hf(model, str(file), model_args=changed)
        config: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    # transformers passes the top-level num_classes beside these.
    config.get("model_args", {}).pop("num_classes", None)
    names = list(model.pretrained_cfg.get("label_names") or ())
    if names and len(names) == model.num_classes:
        # timm omits them after a change of num_classes, and transformers looks for them at the top level.
        config["label_names"] = config["pretrained_cfg"]["label_names"] = names
    if model.ood_threshold is not None:
        config["ood_threshold"] = model.ood_threshold
    arguments = {"num_classes": config["num_classes"]} | (config.get("model_args") or {})
    try:
        check_matches(tensors, type(model)(device="meta", **arguments).state_dict(), "It")  # type: ignore[call-arg]
    except WeightsError as e:
        raise ArgumentError(
            "The model cannot be built again from its arguments: its layers were pruned, parametrised or replaced; "
            f"undo that (torch.nn.utils.prune.remove, parametrize.remove_parametrizations) first. {e}"
        ) from e
    return config


def _read_remote(api: Any, repo: str, name: str, revision: str | None) -> bytes | None:
    """Return a small file of a repository, past the cache; see `read_small`."""
    from huggingface_hub.errors import EntryNotFoundError, RevisionNotFoundError

    with tempfile.TemporaryDirectory() as folder:
        try:
            return read_small(Path(api.hf_hub_download(repo, name, revision=revision, cache_dir=folder)))
        except (EntryNotFoundError, RevisionNotFoundError):
            return None


def _check_ours(folder: Path, tensors: Mapping[str, torch.Tensor], names: Iterable[str]) -> None:
    """Raise `WeightsError` where a file to be written exists and is not of a model that sqzoo saved.

    `names` are files besides configuration, weights and card. Weights without a configuration, as a killed save leaves
    them, are ours if they have the model's tensors.
    """
    configured = (folder / CONFIG).exists()
    card = [CARD] if is_generated_card(read_small(folder / CARD), read_small(folder / CONFIG)) else []
    for name in (CONFIG, WEIGHTS, *names, *card):
        path = folder / name
        check_replaceable(path)
        ours = configured or not path.exists() or name == CARD
        try:
            if path.parent.is_symlink() and path.parent != folder:
                ours = False  # it leads elsewhere
            elif name == CONFIG and configured:
                parse_config(read_bytes(path, CONFIG_LARGEST), CONFIG)
            elif name == WEIGHTS and not ours:
                ours = set(parse_header(read_bytes(path, LARGEST), WEIGHTS)) == set(tensors)
        except WeightsError:
            ours = False
        if not ours:
            raise WeightsError(
                f"{shown(path)} is not of a model that sqzoo saved, and would be replaced; name another folder."
            )


def _check(model: nn.Module) -> ZooModel:
    if not isinstance(model, ZooModel):
        raise ArgumentError(f"{type(model).__name__} was not created by create_model; pass a model that was.")
    return model


def _card(model: ZooModel) -> str:
    return (
        "---\nlibrary_name: sqzoo\npipeline_tag: image-classification\n---\n\n"
        f"# {model.pretrained_cfg['architecture']}\n\n"
        "Saved by [sqzoo](https://github.com/org/sqzoo). Load it with `sqzoo.hub.from_pretrained`, or after "
        '`import sqzoo` with `timm.create_model("hf-hub:ORG/NAME", pretrained=True)`.\n'
    )
