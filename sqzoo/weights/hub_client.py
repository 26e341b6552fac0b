"""Guard the Hub's client: errors of one sentence, tokens that are never printed, a cache folder that exists."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

from sqzoo.errors import ArgumentError, WeightsError, printable, shown


def explain_download(error: Exception, repository: str, url: str) -> str:
    """Return one sentence on an error of a download from a repository."""
    from huggingface_hub import constants
    from huggingface_hub.errors import EntryNotFoundError, HFValidationError, RepositoryNotFoundError

    if isinstance(error, HFValidationError):
        return f"{repository!r} is no Hub repository ({reason(error)}); give ORG/NAME."
    if isinstance(error, RepositoryNotFoundError):
        return f"There is no {url} for this account; correct the name, or give the token of one that may read it."
    if isinstance(error, EntryNotFoundError) and constants.is_offline_mode():
        return f"{url} is not in the cache, and HF_HUB_OFFLINE is set; unset it to download it once."
    return f"Could not download {url} ({reason(error)}); check the name, the network, the token and the disk."


@contextmanager
def explain_push(repository: str) -> Iterator[None]:
    """Turn whatever network and client raise in an upload into a `WeightsError`."""
    try:
        yield
    except Exception as e:
        raise WeightsError(
            f"Could not push to {shown(repository)} ({reason(e)}); check the name, the token's rights and the network."
        ) from e


def check_repository(name: str) -> None:
    """Raise `ArgumentError` where a name cannot be that of a Hub repository."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(name)
    except HFValidationError as e:
        raise ArgumentError(explain_download(e, name, name)) from e


def reason(error: Exception) -> str:
    """Describe an error of the Hub's client in one line, without access tokens."""
    said = re.sub(r"(Bearer\s+|hf_)[^\s'\"]+", r"\1...", " ".join(str(error).split()))
    return f"{type(error).__name__}: {printable(said, 200)}"


def clean_token(token: str | bool | None) -> str | bool | None:
    """Strip the line end that files and variables add to an access token.

    Raises:
        ArgumentError: it cannot be a token; unlike the client's own message, this one does not show it.
    """
    if not isinstance(token, str):
        return token
    if not re.fullmatch(r"[!-~]+", token.strip()):
        raise ArgumentError("The access token has blanks or other characters that tokens never have; copy it again.")
    return token.strip()


def check_home() -> None:
    """Raise `WeightsError` where there is no home folder: the client would put its cache into a folder named ~."""
    from huggingface_hub import constants

    if str(constants.HF_HUB_CACHE).startswith("~"):
        raise WeightsError(f"There is no home folder to keep {constants.HF_HUB_CACHE} in; set HOME or HF_HOME.")
