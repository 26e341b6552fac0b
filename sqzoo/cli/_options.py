"""Options and arguments that several commands share, and what the shell completes for them."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TextIO

import typer

if TYPE_CHECKING:
    from torch import nn

    from sqzoo.errors import ArgumentError


def complete_tag(incomplete: str) -> list[str]:
    """Return the weights tags that begin so."""
    from sqzoo.weights.manifest import read_manifest

    return [tag for tag in read_manifest() if tag.startswith(incomplete)]


Tag = Annotated[
    str, typer.Argument(metavar="TAG", help="Weights tag, such as sq1.ft_cifar10.", autocompletion=complete_tag)
]
Model = Annotated[
    str,
    typer.Option("--model", help="Model, weights tag, run folder or hf-hub:ORG/NAME.", autocompletion=complete_tag),
]
Trunk = Annotated[
    str | None,
    typer.Option(help="File or folder with the ImageNet trunk, for tags stored as a head.", show_default=False),
]
Data = Annotated[
    str | None, typer.Option(help="CIFAR-10 folder (default: $SQZOO_CIFAR10, else the Hub).", show_default=False)
]
Backend = Annotated[
    str | None,
    typer.Option(
        help="Runtime: auto (the fastest here, measured), onnxruntime, openvino, ... (default: PyTorch as it is).",
        show_default=False,
    ),
]


def network(model: str, trunk: str | None, backend: str | None = None, batch_size: int = 1) -> "nn.Module":
    """Return the pretrained model that `--model` names, behind the runtime that `--backend` names."""
    from sqzoo.registry import create_model, model_name

    found = create_model(model_name(model), pretrained=True, trunk=trunk)
    if backend is None:
        return found
    from sqzoo.deploy.optimize import optimize

    return optimize(found, backend, batch_size)


def check_writable(file: Path) -> None:
    """Raise `ArgumentError` unless a file may be written there, before any work is done for it."""
    from sqzoo.errors import ArgumentError, shown
    from sqzoo.files import check_replaceable

    try:
        if not file.absolute().parent.is_dir():
            raise ArgumentError(
                f"Cannot write {shown(file)} (No folder {os.fspath(file.parent)!r}); make it, or name another."
            )
        check_replaceable(file)
        if not os.access(file.absolute().parent, os.W_OK):
            raise PermissionError(13, "Permission denied")
    except (OSError, ValueError) as e:
        if isinstance(e, ArgumentError):
            raise
        raise unwritable(file, e) from e


def unwritable(file: Path, error: Exception) -> "ArgumentError":
    """Return the error of a file that cannot be written."""
    from sqzoo.errors import ArgumentError, shown, why

    return ArgumentError(f"Cannot write {shown(file)} ({why(error)}); name a file that you may write.")


@contextmanager
def writing(output: Path | None) -> Iterator[TextIO]:
    """Yield stdout, or a text stream to a file that appears whole, when all is written.

    What was written before a full disk or Ctrl-C is kept as FILE.part: it may be the answers of a night.
    """
    from sqzoo.files import temporary_beside

    if output is None:
        yield sys.stdout
        return
    check_writable(output)
    temporary, part = temporary_beside(output), output.with_name(f"{output.name}.part")
    try:
        try:
            with temporary.open("x", encoding="utf-8", newline="", errors="backslashreplace") as stream:
                yield stream
                stream.flush()
                os.fsync(stream.fileno())
        except BaseException:
            if temporary.stat().st_size and not os.path.lexists(part):
                temporary.rename(part)
                print(f"sqzoo: what was written so far is in {part}.", file=sys.stderr)
            raise
        check_writable(output)
        temporary.replace(output)
    except OSError as e:
        raise unwritable(output, e) from e
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
