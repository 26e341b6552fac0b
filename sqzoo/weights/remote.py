"""Fetch and verify models of the Hugging Face Hub, or of a folder laid out like a repository there.

A model is config.json, in timm's form, and model.safetensors. Our configurations state the SHA-256 of the weights; a
file from the Hub is also compared with its ETag. Cached files are used without a network call.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqzoo.errors import ArgumentError, WeightsError, shown, why
from sqzoo.weights.config_json import parse_config
from sqzoo.weights.hub_client import check_home, clean_token, explain_download
from sqzoo.weights.untrusted import CONFIG_LARGEST, LARGEST, read_bytes

if TYPE_CHECKING:
    import torch

CONFIG, WEIGHTS = "config.json", "model.safetensors"
_REVISION = re.compile(r"\w[\w.+/-]{0,199}")
_logger = logging.getLogger("sqzoo")


@dataclass(frozen=True)
class Source:
    """A folder, or a Hub repository "ORG/NAME" at a revision (None: the main branch)."""

    where: str
    folder: bool = False
    revision: str | None = None
    token: str | bool | None = None
    cache_dir: str | None = None
    force_download: bool = False


def parse_source(name: str, **options: Any) -> Source | None:
    """Parse "hf-hub:ORG/NAME", "hf-hub:ORG/NAME@REVISION" or "local-dir:FOLDER"; return None for other names.

    Args:
        name: the name.
        options: fields of `Source`.

    Raises:
        ArgumentError: the revision is invalid; the client would use it as a file name.
    """
    kind, _, where = name.partition(":")
    if kind == "local-dir":
        if not where:
            raise ArgumentError("local-dir: needs a folder; give one that save_pretrained wrote.")
        return Source(where, folder=True)
    if kind != "hf-hub":
        return None
    where, _, revision = where.partition("@")
    source = Source(where, **(options | {"token": clean_token(options.get("token"))}))
    source = replace(source, revision=revision) if revision else source
    given = source.revision
    if given is not None and not (isinstance(given, str) and _REVISION.fullmatch(given) and ".." not in given):
        raise ArgumentError(f"{given!r} is not a revision; give a branch, a tag or a commit's hash.")
    return source


def read_config(source: Source) -> tuple[dict[str, Any], Source]:
    """Return a model's configuration (see `parse_config`), and the source pinned to its commit."""
    if source.folder:
        data = _read_folder(source, CONFIG, CONFIG_LARGEST)
    else:
        data, commit = fetch(source, CONFIG, CONFIG_LARGEST)
        source = replace(source, revision=commit)
    return parse_config(data, f"{source.where}/{CONFIG}"), source


def read_weights(source: Source, config: Mapping[str, Any], own: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return a model's tensors; size, hashes and header of the file are checked before a tensor is created.

    Args:
        source: where it is.
        config: what `read_config` returned.
        own: the model's state dict, on meta, say; names, shapes and dtypes must match.

    Raises:
        WeightsError: the weights cannot be had, or do not match.
    """
    from sqzoo.weights.header import LONGEST, read_tensors  # which imports torch

    name, stated = f"{source.where}/{WEIGHTS}", config.get("sha256")
    size = sum(t.numel() * t.itemsize for t in own.values())
    if size > LARGEST:
        raise WeightsError(f"{source.where} describes a model of {size:,} bytes, at most {LARGEST:,} are allowed.")
    if not source.folder:
        data, _ = fetch(source, WEIGHTS, size + LONGEST, stated)
    else:
        data = _read_folder(source, WEIGHTS, size + LONGEST)
        if stated is not None and (actual := hashlib.sha256(data).hexdigest()) != stated:
            raise WeightsError(
                f"{name} is damaged: its configuration states SHA-256 {stated}, found {actual}; save the model again."
            )
    if stated is None:
        _logger.warning("%s states no SHA-256: sqzoo checks its names, shapes and dtypes, not its values.", name)
    elif not source.folder:
        _logger.warning("%s matches its own config.json; sqzoo verifies nothing beyond that.", name)
    return read_tensors(data, name, own)


def fetch(source: Source, file: str, limit: int, sha256: str | None = None) -> tuple[bytes, str]:
    """Return a Hub file's bytes and commit, from the cache or downloaded; a damaged cached file is downloaded again.

    Args:
        source: the repository.
        file: name of the file.
        limit: most bytes.
        sha256: expected hash, beside the Hub's own.

    Raises:
        WeightsError: the file cannot be had, is larger, or is wrong again.
    """
    actual = "none"
    for again in (False, True):
        path = _download(replace(source, force_download=again or source.force_download), file, limit)
        try:
            data = read_bytes(path, limit, f"{source.where}/{file}")
        except FileNotFoundError:  # another process found it damaged and removed it
            continue
        except OSError as e:
            raise WeightsError(f"Cannot read {shown(path)} ({why(e)}); have its owner repair the cache.") from e
        actual = hashlib.sha256(data).hexdigest()
        if sha256 in (None, actual) and _matches_etag(path, data):
            return data, path.parent.name
        _remove(path)
    raise WeightsError(
        f"{_url(source, file)} is not what it should be: expected SHA-256 {sha256 or 'of the Hub (ETag)'}, found "
        f"{actual}, downloaded twice; it was not kept; name another revision, or tell its owner."
    )


def is_intact(snapshot: Path) -> bool:
    """Whether a cached snapshot's configuration and weights match their ETags and the stated SHA-256."""
    limits = {CONFIG: CONFIG_LARGEST, WEIGHTS: LARGEST}
    try:
        files = {name: (snapshot / name, read_bytes(snapshot / name, limit)) for name, limit in limits.items()}
        stated = parse_config(files[CONFIG][1], CONFIG)["sha256"]
    except (OSError, WeightsError):
        return False
    actual = hashlib.sha256(files[WEIGHTS][1]).hexdigest()
    return stated in (None, actual) and all(_matches_etag(path, data) for path, data in files.values())


def _remove(path: Path) -> None:
    """Remove a damaged REPOSITORY/snapshots/COMMIT/FILE of the client's cache, and the blob that it links to.

    Only inside REPOSITORY: in a cache that others write to, the link may lead anywhere.
    """
    blob = path.resolve()
    inside = path.parents[2].resolve() in blob.parents
    try:
        for file in (blob, path) if inside else (path,):
            file.unlink(missing_ok=True)
    except OSError as e:
        raise WeightsError(
            f"{path} is damaged and cannot be removed ({why(e)}); have its owner remove it, or name another cache "
            "in HF_HOME or cache_dir."
        ) from e


def _download(source: Source, file: str, limit: int) -> Path:
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_download, hf_hub_url, try_to_load_from_cache

    if source.cache_dir is None:
        check_home()
    url = _url(source, file)
    try:
        if not source.force_download:
            cached = try_to_load_from_cache(source.where, file, source.cache_dir, source.revision)
            if isinstance(cached, str):
                return Path(cached)
        if not constants.is_offline_mode():
            address = hf_hub_url(source.where, file, revision=source.revision)
            metadata = get_hf_file_metadata(address, token=source.token, timeout=constants.HF_HUB_ETAG_TIMEOUT)
            for part in (metadata.etag, metadata.commit_hash):
                if part is not None and not re.fullmatch(r"[\w-]{1,100}", part):  # the client uses them as file names
                    raise WeightsError(f"{url} comes with {part!r} for a hash; do not use that server.")
            if metadata.size is not None and metadata.size > limit:
                raise WeightsError(
                    f"{url} has {metadata.size:,} bytes, at most {limit:,} are expected; it is not this model's file, "
                    "and was not downloaded."
                )
        force = source.force_download and not constants.is_offline_mode()
        options: Any = {"force_download": force, "token": source.token, "cache_dir": source.cache_dir}
        return Path(hf_hub_download(source.where, file, revision=source.revision, **options))
    except WeightsError:
        raise
    except Exception as e:  # whatever network, disk and client raise
        raise WeightsError(explain_download(e, source.where, url)) from e


def _read_folder(source: Source, file: str, limit: int) -> bytes:
    path = Path(source.where) / file
    try:
        return read_bytes(path, limit)
    except OSError as e:
        raise WeightsError(f"Cannot read {shown(path)} ({why(e)}); name a folder that save_pretrained wrote.") from e


def _matches_etag(path: Path, data: bytes) -> bool:
    """Compare with the ETag, the name of the cached blob: SHA-256 of a large file, Git's SHA-1 of a small one.

    A cache without symbolic links keeps no ETag; there the configuration's or manifest's hash must do.
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
