"""Write records that prove themselves: of a committed state, with what measured them, and without a private path."""

import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import sqzoo
from sqzoo.environment import environment
from sqzoo.files import read_json, write_text
from sqzoo.weights import get_weights

# An absolute path of at least two parts, or one in a home folder; not a URL's, and not a relative one's inner part.
ABSOLUTE = re.compile(r"(?:^|(?<=[\s\"'=,;(\[]))(?:~?/[\w.+-]+(?=/)|[A-Za-z]:\\)")


def write_record(file: Path, record: dict[str, Any], weights: Iterable[str] = ()) -> None:
    """Write a record as JSON, in one piece, with this process's environment where it has none.

    Args:
        file: where it lies, below `benchmarks/results`.
        record: what was measured, with the SHA-256 of weights that it made.
        weights: tags, or names of models with a default tag, that were measured; their SHA-256 is added.

    Raises:
        SystemExit: the record, or a part of it that the file does not hold yet, comes from a state of the code that is
            not committed, or a text in it has an absolute path. The file is left as it was.
    """
    known = read_json(file) if file.is_file() else {}
    if not list(environments(record)):
        record = {"environment": environment()} | record
    judged = list(environments(known))
    for facts in environments(record):
        if facts not in judged and facts["versions"].get("sqzoo", "") is None:  # imported from its checkout
            facts["versions"]["sqzoo"] = sqzoo.__version__
    entries = [get_weights(name) for name in weights]
    if entries:
        known_weights = record.get("weights_sha256", known.get("weights_sha256", {}))
        record = record | {"weights_sha256": known_weights | {entry.tag: entry.sha256 for entry in entries}}
    check(record, judged)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_text(file, json.dumps(record, indent=1) + "\n")


def check(record: dict[str, Any], known: list[dict[str, Any]] | None = None) -> None:
    """Raise `SystemExit` unless a record proves itself; `known` environments were judged when they were new."""
    for facts in environments(record):
        commit = facts["commit"]
        if facts not in (known or []) and (commit is None or commit.endswith("+changes")):
            raise SystemExit(
                f"A record must name the commit that made it, and this code is of {commit or 'no git checkout'}; "
                "commit the changes, or set them aside, and measure again."
            )
    for text in texts(record):
        if ABSOLUTE.search(text):
            raise SystemExit(f"A record must not have an absolute path, and this has {text!r}; give a relative one.")


def environments(value: Any) -> Iterator[dict[str, Any]]:
    """Yield each environment in a record, wherever it stands."""
    if isinstance(value, dict) and {"commit", "versions"} <= value.keys():
        yield value
    elif isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from environments(part)


def texts(value: Any) -> Iterator[str]:
    """Yield each text in a record, keys as well."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for part in [*value, *value.values()] if isinstance(value, dict) else value:
            yield from texts(part)
