"""Models on the Hugging Face Hub, or in a folder laid out like a repository there: fetched, verified, never pickled.

A model is config.json, in timm's form, and model.safetensors. Ours state the SHA-256 of the weights in the
configuration; a file from the Hub is also compared with the hash that the Hub gave for it. A file that is in the cache
is used without a network call.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqzoo.errors import ArgumentError, WeightsError, printable, shown, why
from sqzoo.weights.config_json import parse_config
from sqzoo.weights.untrusted import CONFIG_LARGEST, LARGEST, read_bytes

if TYPE_CHECKING:
    import torch

CONFIG, WEIGHTS = "config.json", "model.safetensors"
_REVISION = re.compile(r"\w[\w.+/-]{0,199}")
_logger = logging.getLogger("sqzoo")


@dataclass(frozen=True)
class Source:
    """Where a model lies: a folder, or a Hub repository "ORG/NAME" at a revision (None: the main branch)."""

    where: str
    folder: bool = False
    revision: str | None = None
    token: str | bool | None = None
    cache_dir: str | None = None
    force_download: bool = False


def parse_source(name: str, **options: Any) -> Source | None:
    """Return the source in a name: "hf-hub:ORG/NAME", "hf-hub:ORG/NAME@REVISION" or "local-dir:FOLDER"; else None.

    Raises `ArgumentError` for a revision that is none, since the client makes a file of its name.
    """
    kind, _, where = name.partition(":")
    if kind == "local-dir":
        if not where:
            raise ArgumentError("local-dir: names no folder; give one that save_pretrained wrote.")
        return Source(where, folder=True)
    if kind != "hf-hub":
        return None
    where, _, revision = where.partition("@")
    source = Source(where, **(options | {"token": clean_token(options.get("token"))}))
    source = replace(source, revision=revision) if revision else source
    given = source.revision
    if given is not None and not (isinstance(given, str) and _REVISION.fullmatch(given) and ".." not in given):
        raise ArgumentError(f"{given!r} is no revision; give a branch, a tag or a commit's hash.")
    return source


def read_config(source: Source) -> tuple[dict[str, Any], Source]:
    """Return a model's configuration (see `parse_config`), and the source fixed to the commit that it is of."""
    if source.folder:
        data = _read_folder(source, CONFIG, CONFIG_LARGEST)
    else:
        data, commit = fetch(source, CONFIG, CONFIG_LARGEST)
        source = replace(source, revision=commit)
    return parse_config(data, f"{source.where}/{CONFIG}"), source


def read_weights(source: Source, config: Mapping[str, Any], own: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return a model's tensors, whose names, shapes and dtypes are those of `own`, its state dict (on meta, say).

    The size of the file, its hashes and its header are checked before a tensor is made. Raises `WeightsError`.
    """
    from sqzoo.weights.header import LONGEST, read_tensors  # which imports torch

    name, stated = f"{source.where}/{WEIGHTS}", config.get("sha256")
    size = sum(t.numel() * t.itemsize for t in own.values())
    if size > LARGEST:
        raise WeightsError(f"{source.where} describes a model of {size:,} bytes, at most {LARGEST:,} are taken.")
    if not source.folder:
        data, _ = fetch(source, WEIGHTS, size + LONGEST, stated)
    else:
        data = _read_folder(source, WEIGHTS, size + LONGEST)
        if stated is not None and (found := hashlib.sha256(data).hexdigest()) != stated:
            raise WeightsError(
                f"{name} is damaged: its configuration states SHA-256 {stated}, found {found}; save the model again."
            )
    if stated is None:
        _logger.warning("%s states no SHA-256: sqzoo checks its names, shapes and dtypes, not its values.", name)
    elif not source.folder:
        _logger.warning("%s is what its own config.json states, and not verified by sqzoo beyond that.", name)
    return read_tensors(data, name, own)


def fetch(source: Source, file: str, limit: int, sha256: str | None = None) -> tuple[bytes, str]:
    """Return a Hub file's bytes and its commit: from the cache if it is there, else downloaded.

    A cached file that is not what the Hub or `sha256` says is removed and fetched once more. Raises `WeightsError`
    where it cannot be had, is larger than `limit` bytes, or is again another.
    """
    found = "none"
    for again in (False, True):
        path = _download(replace(source, force_download=again or source.force_download), file, limit)
        try:
            data = read_bytes(path, limit, f"{source.where}/{file}")
        except FileNotFoundError:  # another process has found it damaged, and removed it
            continue
        except OSError as e:
            raise WeightsError(f"Cannot read {shown(path)} ({why(e)}); have its owner mend the cache.") from e
        found = hashlib.sha256(data).hexdigest()
        if sha256 in (None, found) and _is_what_the_hub_sent(path, data):
            return data, path.parent.name
        _remove(path)
    raise WeightsError(
        f"{_url(source, file)} is not what it should be: expected SHA-256 {sha256 or 'of the Hub (ETag)'}, found "
        f"{found}, downloaded twice; it was not kept: name another revision, or tell its owner."
    )


def is_intact(snapshot: Path) -> bool:
    """Whether a cached snapshot's configuration and weights are what the Hub sent and the configuration states."""
    limits = {CONFIG: CONFIG_LARGEST, WEIGHTS: LARGEST}
    try:
        files = {name: (snapshot / name, read_bytes(snapshot / name, limit)) for name, limit in limits.items()}
        stated = parse_config(files[CONFIG][1], CONFIG)["sha256"]
    except (OSError, WeightsError):
        return False
    found = hashlib.sha256(files[WEIGHTS][1]).hexdigest()
    return stated in (None, found) and all(_is_what_the_hub_sent(path, data) for path, data in files.values())


def _remove(path: Path) -> None:
    """Remove a damaged file of the client's cache, ORG/NAME's folder/snapshots/COMMIT/FILE, and the blob it links to.

    Only what lies in that folder: in a cache that others write to, the link may lead anywhere.
    """
    blob = path.resolve()
    inside = path.parents[2].resolve() in blob.parents
    try:
        for each in (blob, path) if inside else (path,):
            each.unlink(missing_ok=True)
    except OSError as e:
        raise WeightsError(
            f"{path} is damaged and cannot be removed ({why(e)}); have its owner remove it, or name another cache "
            "in HF_HOME or cache_dir."
        ) from e


def _download(source: Source, file: str, limit: int) -> Path:
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_download, hf_hub_url, try_to_load_from_cache
    from huggingface_hub.errors import EntryNotFoundError, HFValidationError, RepositoryNotFoundError

    if source.cache_dir is None:
        check_home()
    try:
        if not source.force_download:
            there = try_to_load_from_cache(source.where, file, source.cache_dir, source.revision)
            if isinstance(there, str):
                return Path(there)
        if not constants.is_offline_mode():
            url = hf_hub_url(source.where, file, revision=source.revision)
            told = get_hf_file_metadata(url, token=source.token, timeout=constants.HF_HUB_ETAG_TIMEOUT)
            for part in (told.etag, told.commit_hash):
                if part is not None and not re.fullmatch(r"[\w-]{1,100}", part):  # the client makes file names of them
                    raise WeightsError(f"{_url(source, file)} comes with {part!r} for a hash; do not use that server.")
            if told.size is not None and told.size > limit:
                raise WeightsError(
                    f"{_url(source, file)} has {told.size:,} bytes, at most {limit:,} are expected; it is not this "
                    "model's file, and was not downloaded."
                )
        return Path(
            hf_hub_download(
                source.where,
                file,
                revision=source.revision,
                token=source.token,
                cache_dir=source.cache_dir,
                force_download=source.force_download and not constants.is_offline_mode(),
            )
        )
    except WeightsError:
        raise
    except HFValidationError as e:
        raise WeightsError(f"{source.where!r} is no Hub repository ({e}); give ORG/NAME.") from e
    except RepositoryNotFoundError as e:
        advice = "correct the name, or give the token of an account that may read it"
        raise WeightsError(f"There is no {_url(source, file)} for this account; {advice}.") from e
    except EntryNotFoundError as e:
        if constants.is_offline_mode():
            raise WeightsError(
                f"{_url(source, file)} is not in the cache, and HF_HUB_OFFLINE is set; unset it to download it once."
            ) from e
        raise WeightsError(f"Could not get {_url(source, file)} ({reason(e)}); correct it, or try again.") from e
    except Exception as e:  # whatever network, disk and client raise
        raise WeightsError(
            f"Could not download {_url(source, file)} ({reason(e)}); check the network, the token and the disk."
        ) from e


def _read_folder(source: Source, file: str, limit: int) -> bytes:
    path = Path(source.where) / file
    try:
        return read_bytes(path, limit)
    except OSError as e:
        raise WeightsError(f"Cannot read {shown(path)} ({why(e)}); name a folder that save_pretrained wrote.") from e


def _is_what_the_hub_sent(path: Path, data: bytes) -> bool:
    """Compare with the ETag that the cache names the file by: SHA-256 of a large file, Git's SHA-1 of a small one.

    A cache without symbolic links keeps no ETag; there the configuration's or the manifest's hash must do.
    """
    etag = path.resolve().name
    if len(etag) == 64:
        return hashlib.sha256(data).hexdigest() == etag
    if len(etag) == 40:
        return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest() == etag
    return True


def _url(source: Source, file: str) -> str:
    from huggingface_hub import constants

    return f"{constants.ENDPOINT}/{source.where}/resolve/{source.revision or 'main'}/{file}"


def reason(error: Exception) -> str:
    """Return what went wrong with a client's call, in a line for our own error; an access token is left out."""
    said = re.sub(r"(Bearer\s+|hf_)[^\s'\"]+", r"\1...", " ".join(str(error).split()))
    return f"{type(error).__name__}: {printable(said, 200)}"


def clean_token(token: str | bool | None) -> str | bool | None:
    """Return an access token without the line end that files and variables bring along.

    Raises `ArgumentError`, which does not show it, where it could be none: the client's own error would show it.
    """
    if not isinstance(token, str):
        return token
    if not re.fullmatch(r"[!-~]+", token.strip()):
        raise ArgumentError("The access token has blanks or other characters that no token has; copy it again.")
    return token.strip()


def check_home() -> None:
    """Raise `WeightsError` where the client's cache would be made in a folder named ~, for want of a home folder."""
    from huggingface_hub import constants

    if str(constants.HF_HUB_CACHE).startswith("~"):
        raise WeightsError(f"There is no home folder to keep {constants.HF_HUB_CACHE} in; set HOME or HF_HOME.")
