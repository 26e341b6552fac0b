"""The command line, `sqzoo …`: each module of this package is the command of its name, its function `run` does it."""

import sys
from collections.abc import Sequence
from importlib import import_module
from pkgutil import iter_modules
from typing import Annotated

import typer

from sqzoo.errors import SqzooError

app = typer.Typer(
    name="sqzoo",
    help="Tiny image classifiers made from SqueezeNet.",
    epilog="`sqzoo COMMAND --help` shows a command's options and examples.",
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; a mistake of the user's ends in one sentence on stderr and exit code 2."""
    try:
        code = app(args=argv, prog_name="sqzoo", standalone_mode=False)
    except SqzooError as e:
        print(f"sqzoo: {e}", file=sys.stderr)
        return 2
    except typer.TyperException as e:
        print(f"sqzoo: {_sentence(e)}", file=sys.stderr)
        return 2
    if code == 130:  # what Typer makes of Ctrl-C
        print("\nsqzoo: stopped.", file=sys.stderr)
    return int(code or 0)


def _sentence(mistake: typer.TyperException) -> str:
    """Return the message of a mistake in the words of the command line, on one line, with a way to go on."""
    near = getattr(mistake, "possibilities", None)
    text = mistake.message if near else mistake.format_message()
    hint = f" Did you mean {sorted(near)[0]}?" if near else ""
    context = getattr(mistake, "ctx", None)
    where = context.command_path if context else "sqzoo"
    text = " ".join(text.split()).rstrip(".")
    return f"{text}{'' if text.endswith('?') else '.'}{hint} See {where} --help."


def _version(wanted: bool) -> None:
    if wanted:
        from sqzoo import __version__

        print(__version__)
        raise typer.Exit


@app.callback(invoke_without_command=True)
def _no_command(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    if context.invoked_subcommand is None:
        print(context.get_help(), end="")
        raise typer.Exit(2)


for _module in iter_modules(__path__):
    if not _module.name.startswith("_"):
        app.command(_module.name)(import_module(f"{__name__}.{_module.name}").run)
