"""The command line, `sqzoo …`: each module of this package is the command of its name, its function `run` does it."""

import contextlib
import errno
import io
import os
import sys
import warnings
from collections.abc import Sequence
from importlib import import_module
from pkgutil import iter_modules
from typing import Annotated

import typer

from sqzoo.errors import SqzooError, printable, shown, why

_LONGEST = 3000  # characters of a sentence

app = typer.Typer(
    name="sqzoo",
    help="Tiny image classifiers made from SqueezeNet.",
    epilog="`sqzoo COMMAND --help` shows a command's options and examples.",
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code; whatever goes wrong is one sentence on stderr.

    Exit codes: 0, done; 1, done, but for inputs that could not be read or files that are damaged, which are named;
    2, not done: a mistake, something missing, a folder or disk that cannot be written; 3, a fault of sqzoo's own;
    130, stopped by Ctrl-C; 141, the reader of the output has closed it.
    """
    _prepare_streams()
    warnings.filterwarnings("ignore", module=r"PIL\.")  # of damaged images, which the command names itself
    try:
        code = int(app(args=argv, prog_name="sqzoo", standalone_mode=False) or 0)
        if code == 130:  # what Typer makes of Ctrl-C
            print("\nsqzoo: stopped.", file=sys.stderr)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        return _end(130, "stopped.")
    except BrokenPipeError:
        return _end(141)
    except typer.TyperException as e:
        return _end(2, _sentence(e))
    except SqzooError as e:
        return _end(2, str(e))
    except ImportError as e:
        from sqzoo.environment import missing_extra

        missing = missing_extra(e)
        return _end(2, str(missing)) if missing else _fault(e)
    except OSError as e:
        return _end(2, _of_the_system(e))
    except MemoryError:
        return _end(2, "There is not enough memory; give fewer or smaller images, or a smaller --batch-size.")
    except Exception as e:
        return _fault(e)


def _prepare_streams() -> None:
    """See that each standard stream is there, and takes a name of any bytes.

    A service may be started without them. The next file to be opened would then take the stream's number, and
    libraries that write to it by number would write into that file.
    """
    for number, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        stream = getattr(sys, name)
        if stream is None:
            nothing = os.open(os.devnull, os.O_RDWR)
            try:
                os.fstat(number)
            except OSError:
                os.dup2(nothing, number)
            setattr(sys, name, open(nothing, mode, encoding="utf-8"))
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="surrogateescape" if name == "stdin" else "backslashreplace")


def _end(code: int, text: str = "") -> int:
    """Say a sentence and return the exit code; a stream that cannot be written any more is left alone."""
    if text:
        with contextlib.suppress(OSError):
            print(f"sqzoo: {printable(text, _LONGEST)}", file=sys.stderr)
    for number, stream in ((1, sys.stdout), (2, sys.stderr)):
        try:
            stream.flush()
        except (OSError, ValueError):  # or Python would try again as it ends, and print a traceback
            os.dup2(os.open(os.devnull, os.O_WRONLY), number)
    return code


def _fault(error: Exception) -> int:
    if os.environ.get("SQZOO_TRACEBACK"):
        raise error
    import traceback

    frame = traceback.extract_tb(error.__traceback__)[-1]
    where = f"{os.path.basename(frame.filename)}, line {frame.lineno}"
    said = " ".join(f"{type(error).__name__}: {error}".split())
    return _end(
        3, f"{printable(said, 300)} ({where}); this is a fault of sqzoo: SQZOO_TRACEBACK=1 shows all to report."
    )


def _of_the_system(error: OSError) -> str:
    """Return a sentence on an error of the operating system's, with what to do about it."""
    what = f"{shown(os.fsdecode(error.filename))}: " if isinstance(error.filename, str | bytes) else ""
    advice = {
        **dict.fromkeys((errno.ENOSPC, errno.EFBIG, errno.EDQUOT), "free some space, or write to another disk"),
        **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), "name a file or folder that you may use"),
        errno.ENAMETOOLONG: "name a shorter one",
    }.get(error.errno or 0, "check the name, the disk and your rights")
    return f"{what}{why(error)}; {advice}."


def _sentence(mistake: typer.TyperException) -> str:
    """Return the message of a mistake in the words of the command line, on one line, with a way to go on."""
    near = getattr(mistake, "possibilities", None)
    text = mistake.message if near else mistake.format_message()
    hint = f" Did you mean {sorted(near)[0]}?" if near else ""
    context = getattr(mistake, "ctx", None)
    where = context.command_path if context else "sqzoo"
    text = " ".join(text.split()).rstrip(".")
    return f"{text}{'' if text.endswith('?') else '.'}{hint} See {where} --help."


def _version(asked: bool) -> None:
    if asked:
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
