"""Run commands of sqzoo under conditions, each in a process forked from one that has imported all they need.

`Commands` is the test's side; `serve`, the other, reads a request a line and answers with a line of JSON. To start
Python and torch takes seconds, a fork milliseconds.
"""

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from tests.support import ROOT

LONGEST = 60  # seconds for a command: more is a hang


class Result(NamedTuple):
    """What a command came to: its exit code, or the exception that came out; its output; the names it unpickled."""

    code: int | str
    out: str
    err: str
    unpickled: list[str]


@dataclass(frozen=True)
class Condition:
    """What a process is short of.

    block: packages that it cannot import. limit: bytes a file may have. user: whose rights it has. unset: environment
    variables that it lacks. stdout: "closed" or a file that takes its output, such as /dev/full.
    """

    block: tuple[str, ...] = ()
    limit: int = 0
    user: int = 0
    unset: tuple[str, ...] = ()
    stdout: str = ""


class Commands:
    """The process that runs commands; `folder` is where they are run, and what they keep lies in `home`."""

    def __init__(self, folder: Path, home: Path) -> None:
        env = {k: v for k, v in os.environ.items() if not k.startswith(("SQZOO_", "HF_", "XDG_"))}
        env |= {"HF_HUB_OFFLINE": "1", "SQZOO_TRUNKS": "/no/trunks", "NPM_CONFIG_REGISTRY": "http://127.0.0.1:9"}
        env |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT), "HOME": str(home)}
        env |= {"SQZOO_CACHE": str(home / "cache"), "PYTHONDONTWRITEBYTECODE": "1"}
        code = "from tests.support.commands import serve; serve()"
        self._process = subprocess.Popen(
            [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=folder, env=env
        )

    def run(self, commands: list[list[str]], condition: Condition | None = None) -> dict[str, Result]:
        """Run commands one after the other, without a condition in the process itself; return results by words."""
        request = {"commands": commands, "condition": condition and vars(condition)}
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        found = {" ".join(words): Result(*rest) for words, *rest in json.loads(self._process.stdout.readline())}
        assert len(found) == len(commands)
        return found

    def close(self) -> None:
        """End the process."""
        self._process.communicate()


def serve() -> None:
    """Answer requests until there are no more."""
    import torch  # noqa: F401

    import sqzoo.cli
    import sqzoo.registry  # noqa: F401

    requests, answers, sys.stdin = sys.stdin, os.fdopen(os.dup(1), "w"), io.StringIO()
    os.dup2(2, 1)
    unpickled: list[str] = []
    sys.addaudithook(lambda event, facts: unpickled.append(str(facts)) if event == "pickle.find_class" else None)
    for line in requests:
        request = json.loads(line)
        condition = request["condition"]
        if condition is None:
            answer = json.dumps([_run(words, unpickled) for words in request["commands"]])
        else:
            answer = _forked(request["commands"], Condition(**condition), unpickled)
        answers.write(answer + "\n")
        answers.flush()


def _forked(commands: list[list[str]], condition: Condition, unpickled: list[str]) -> str:
    """Run commands in a forked process; return its answer."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.close(reading)
        _impose(condition)
        with os.fdopen(writing, "w") as stream:
            stream.write(json.dumps([_run(words, unpickled, condition.stdout) for words in commands]))
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as stream:
        answer = stream.read()
    os.waitpid(child, 0)
    return answer


def _impose(condition: Condition) -> None:
    for name in condition.unset:
        os.environ.pop(name, None)

    class Without:
        """A finder that does not find some packages."""

        def __init__(self, finder: Any) -> None:
            self.finder = finder

        def __getattr__(self, name: str) -> Any:
            return getattr(self.finder, name)

        def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
            return None if name.partition(".")[0] in condition.block else self.finder.find_spec(name, path, target)

    sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]  # type: ignore[misc]
    assert not {name.partition(".")[0] for name in sys.modules} & set(condition.block), "imported already"
    if condition.limit:
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (condition.limit, condition.limit))
    if condition.user:
        os.setgid(condition.user)
        os.setuid(condition.user)


def _run(words: list[str], unpickled: list[str], stdout: str = "") -> tuple[list[str], Any, str, str, list[str]]:
    """Run a command in this process."""
    import sqzoo.cli

    def late(*_: object) -> None:
        raise BaseException(f"it took more than {LONGEST} seconds")

    unpickled.clear()
    out, err = io.StringIO(), io.StringIO()
    signal.signal(signal.SIGALRM, late)
    signal.alarm(LONGEST)
    try:
        with contextlib.redirect_stderr(err), _stdout(out, stdout):
            code: Any = sqzoo.cli.main(words)
    except BaseException as e:
        code = f"{type(e).__name__}: {e}"
    finally:
        signal.alarm(0)
    others = [thread.name for thread in threading.enumerate() if thread.name.startswith("sqzoo")]
    if others:
        code = f"it left threads at work: {others}"
    return words, code, out.getvalue(), err.getvalue(), list(unpickled)


@contextlib.contextmanager
def _stdout(captured: io.StringIO, target: str) -> Any:
    """Give a command its output: a text in memory, a closed stream, or a file."""
    if target == "closed":
        os.close(1)
        with contextlib.redirect_stdout(None):  # as Python itself has it then
            yield
    elif target:
        with open(target, "w") as stream:
            os.dup2(stream.fileno(), 1)
            with contextlib.redirect_stdout(stream):
                yield
    else:
        with contextlib.redirect_stdout(captured):
            yield
