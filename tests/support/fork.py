"""A Python that starts in milliseconds: `python()` is a program to call in place of `sys.executable`.

Importing torch and timm takes seconds of CPU, and a hundred tests start a process. A server per test worker imports
them once and forks for each call: a process of its own, with the caller's arguments, environment, folder, input and
output. What looks at the start itself, or kills what it started, uses `sys.executable`.
"""

import atexit
import contextlib
import gc
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any, NoReturn

_CLIENT = """#!{python} -SEs
import array, json, os, socket, sys
with socket.socket(socket.AF_UNIX) as server:
    server.connect({address!r})
    fds = array.array("i", [0, 1, 2])
    server.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)])
    server.sendall(json.dumps([sys.argv[1:], os.getcwd(), dict(os.environ)]).encode() + b"\\n")
    code = int(server.recv(16) or 1)
if code < 0:
    os.kill(os.getpid(), -code)  # as the signal did that ended the process
sys.exit(code)
"""


@cache
def python(*, timm: bool = True) -> str:
    """Return the path of the program.

    Args:
        timm: whether timm is imported, too, and with it the Hub's client, which reads the environment's HF_* then.
    """
    folder = Path(tempfile.mkdtemp(prefix="sqzoo-fork-"))
    program, address = folder / "python", str(folder / "socket")
    program.write_text(_CLIENT.format(python=sys.executable, address=address), encoding="utf-8")
    program.chmod(0o755)
    root = str(Path(__file__).parents[2])
    code = f"import sys; sys.path.insert(0, {root!r}); from tests.support.fork import serve; serve({address!r}, {timm})"
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"OMP_NUM_THREADS": "1"}
    server = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
    )
    assert server.stdout and server.stdout.readline() == b"ready\n"
    atexit.register(server.kill)
    return str(program)


def serve(address: str, timm: bool) -> None:
    """Fork for each caller; in the forked process, run what it asks for and return."""
    import torch  # noqa: F401

    if timm:
        import timm.models
        import torchvision  # noqa: F401

    gc.freeze()  # or each child would copy what its collector looks at
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen(64)
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # children are not waited for
        while True:
            caller, _ = listener.accept()
            if os.fork():
                caller.close()
                continue
            listener.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            _, fds, _, _ = socket.recv_fds(caller, 1, 3)
            request = b""
            while not request.endswith(b"\n"):
                request += caller.recv(65536)
            if not (child := os.fork()):
                caller.close()
                _exit_after(partial(_become, fds, *json.loads(request)))
            ready, _, _ = select.select([os.pidfd_open(child), caller], [], [])
            if caller in ready:  # it was ended, and so is what it started
                os.kill(child, signal.SIGTERM)
            _, status = os.waitpid(child, 0)
            with contextlib.suppress(OSError):
                caller.sendall(str(os.waitstatus_to_exitcode(status)).encode())
            os._exit(0)


def _exit_after(call: Callable[[], None]) -> NoReturn:
    """Exit as Python does, but for taking all modules apart, which takes torch's a second."""
    code: Any = 0
    try:
        call()
    except SystemExit as e:
        code = e.code
        if code is not None and not isinstance(code, int):
            print(code, file=sys.stderr)
            code = 1
    except BaseException as e:
        sys.excepthook(type(e), e, e.__traceback__)
        code = 1
    with contextlib.suppress(Exception):
        threading._shutdown()  # type: ignore[attr-defined]  # joins threads
        atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            stream.flush()
    os._exit(code or 0)


def _become(fds: list[int], words: list[str], folder: str, environment: dict[str, str]) -> None:
    """Run what a caller asks for, with its input and output, as Python itself would."""
    for target, fd in enumerate(fds):
        os.dup2(fd, target)
        os.close(fd)
    sys.stdin = open(0, encoding="utf-8", closefd=False)
    sys.stdout = open(1, "w", encoding="utf-8", closefd=False)
    sys.stderr = open(2, "w", 1, encoding="utf-8", errors="backslashreplace", closefd=False)
    atexit._clear()
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    paths = [p for p in environment.get("PYTHONPATH", "").split(os.pathsep) if p]
    sys.path[:] = paths + sys.path[2:]  # without the server's own first two, the root and -c's
    for name in [name for name in sys.modules if name.partition(".")[0] in ("tests", "sqzoo", "__main__")]:
        del sys.modules[name]
    kind, *rest = [word for word in words if word != "-u"]
    if kind == "-c":
        sys.argv, sys.path[:0] = ["-c", *rest[1:]], [""]
        module = type(sys)("__main__")
        sys.modules["__main__"] = module
        exec(compile(rest[0], "<string>", "exec"), module.__dict__)
    elif kind == "-m":
        sys.argv, sys.path[:0] = rest, [folder]
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    else:
        sys.argv, sys.path[:0] = [kind, *rest], [str(Path(kind).resolve().parent)]
        runpy.run_path(kind, run_name="__main__")
