"""Options and arguments that several commands share, their completion in the shell, and output files."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer

if TYPE_CHECKING:
    from torch import nn

    from sqzoo.errors import ArgumentError


def argument(help: str, **settings: Any) -> Any:
    """Return a Typer argument whose help does not show its default."""
    return typer.Argument(help=help, show_default=False, **settings)


def option(help: str, *names: str, **settings: Any) -> Any:
    """Return a Typer option whose help does not show its default."""
    return typer.Option(*names, help=help, show_default=False, **settings)


def complete_tag(incomplete: str) -> list[str]:
    """Return the weights tags that begin with the incomplete word."""
    from sqzoo.weights.manifest import read_manifest

    return [tag for tag in read_manifest() if tag.startswith(incomplete)]


Tag = Annotated[str, argument("Weights tag, such as sq1.ft_cifar10.", metavar="TAG", autocompletion=complete_tag)]
Model = Annotated[
    str,
    typer.Option("--model", help="Model, weights tag, run folder or hf-hub:ORG/NAME.", autocompletion=complete_tag),
]
Trunk = Annotated[
    str | None,
    option("ImageNet backbone, file or folder (default: $SQZOO_TRUNKS, else torch.hub's cache or a download)."),
]
Data = Annotated[str | None, option("CIFAR-10 folder (default: $SQZOO_CIFAR10, else the Hub).")]
Backend = Annotated[
    str | None,
    option("Runtime: auto (the fastest on this machine, measured), onnxruntime, openvino, ... (default: PyTorch)."),
]


def network(model: str, trunk: str | None, backend: str | None = None, batch_size: int = 1) -> "nn.Module":
    """Return the pretrained model of `--model`, in the runtime of `--backend`."""
    from sqzoo.registry import create_model, model_name

    net = create_model(model_name(model), pretrained=True, trunk=trunk)
    if backend is None:
        return net
    from sqzoo.deploy.optimize import optimize

    return optimize(net, backend, batch_size)


def check_writable(file: Path) -> None:
    """Raise `ArgumentError` unless a file can be written, before any work is done for it."""
    from sqzoo.errors import ArgumentError, shown
    from sqzoo.files import check_replaceable

    folder = os.path.dirname(os.path.abspath(file))
    if not os.path.isdir(folder):
        raise ArgumentError(
            f"Cannot write {shown(file)} (No folder {os.fspath(file.parent)!r}); make it, or name another."
        )
    try:
        check_replaceable(file)
        if not os.access(folder, os.W_OK):
            raise PermissionError(13, "Permission denied")
    except (OSError, ValueError) as e:
        raise _unwritable(file, e) from e


def write_output(file: Path, data: bytes) -> None:
    """Write a file atomically; raise `ArgumentError` if it cannot be written."""
    from sqzoo.files import write_bytes

    try:
        write_bytes(file, data)
    except OSError as e:
        raise _unwritable(file, e) from e


def _unwritable(file: Path, error: Exception) -> "ArgumentError":
    from sqzoo.errors import ArgumentError, shown, why

    return ArgumentError(f"Cannot write {shown(file)} ({why(error)}); name a file that you can write.")


@contextmanager
def writing(output: Path | None) -> Iterator[TextIO]:
    """Yield stdout, or a text stream to a file that appears when all is written.

    What was written before a full disk or Ctrl-C is kept as FILE.part: it may be the result of a long run.
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
        raise _unwritable(output, e) from e
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
