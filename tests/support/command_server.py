"""Runs the command line in a process of its own each time, without importing the library each time.

One process has imported the commands, and forks for each of them. Importing takes ten times as long as most commands.
"""

import gc
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from contextlib import ExitStack
from functools import cache
from importlib import import_module
from typing import NoReturn

import typer.main as typer_main

LONGEST_REQUEST_BYTES = 1_000_000
LOADED_BY_COMMANDS = (
    "session_lifecycle.cli.app",
    "session_lifecycle.cli.tables",
    "session_lifecycle.database",
    "alembic.command",
    "genai_prices",
    "rich.console",
    "typer.rich_utils",
)


class CommandServer:
    """The process that forks. It ends with the process that made it, which closes its end of the socket."""

    def __init__(self) -> None:
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            # The file descriptor is its standard input: nothing else reads from there.
            self._process = subprocess.Popen([sys.executable, __file__], stdin=theirs.fileno())
        self._lock = threading.Lock()

    def run(
        self,
        arguments: list[str],
        environment: dict[str, str],
        *,
        within_seconds: float,
        stdin: int | None = None,
        together: bool = False,
    ) -> "subprocess.CompletedProcess[str]":
        """Runs `session-lifecycle` with these arguments and this environment.

        Args:
            arguments: The arguments.
            environment: The whole environment.
            within_seconds: See below.
            stdin: The file descriptor of its standard input; None: it is empty.
            together: Whether its standard error goes where its standard output goes.

        Raises:
            TimeoutError: It has not ended within so many seconds. The process is killed with its server.
        """
        request = json.dumps({"arguments": arguments, "environment": environment}).encode()
        with ExitStack() as stack:
            if stdin is None:
                stdin = os.open(os.devnull, os.O_RDONLY)
                stack.callback(os.close, stdin)
            outputs = [os.memfd_create(name) for name in ("stdout", "stderr")]
            for output in outputs:
                stack.callback(os.close, output)
            with self._lock:
                self._socket.settimeout(within_seconds)
                socket.send_fds(self._socket, [request], [stdin, outputs[0], outputs[0 if together else 1]])
                try:
                    code = int(self._socket.recv(100))
                except TimeoutError:
                    self._process.kill()
                    raise
            said = []
            for output in outputs:
                os.lseek(output, 0, os.SEEK_SET)
                with open(output, encoding="utf-8", closefd=False) as text:
                    said.append(text.read())
        return subprocess.CompletedProcess(arguments, code, *said)


@cache
def command_server() -> CommandServer:
    """The server of this test process."""
    return CommandServer()


def _become(arguments: list[str], environment: dict[str, str], streams: list[int]) -> NoReturn:
    """Runs the command in this process, as the interpreter would run the console script."""
    code = 1
    try:
        os.environ.clear()
        os.environ.update(environment)
        for target, source in enumerate(streams):
            os.dup2(source, target)
        sys.argv = ["session-lifecycle", *arguments]
        from session_lifecycle.cli import main

        try:
            main()
            code = 0
        except SystemExit as ended:
            if ended.code is None or isinstance(ended.code, int):
                code = ended.code or 0
            else:
                sys.stderr.write(f"{ended.code}\n")
        except Exception:  # noqa: BLE001 - as the interpreter ends a program
            sys.excepthook(*sys.exc_info())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _serve() -> None:
    for module in LOADED_BY_COMMANDS:
        import_module(module)
    # A program builds its parser when it starts, from the same app every time.
    parser = typer_main.get_command(import_module("session_lifecycle.cli.app").app)
    vars(typer_main)["get_command"] = lambda _: parser
    gc.freeze()  # a child would go through all that is loaded here, and copy it
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with socket.socket(fileno=os.dup(0)) as asked:
        while True:
            request, streams, *_ = socket.recv_fds(asked, LONGEST_REQUEST_BYTES, 3)
            if not request:
                return
            wanted = json.loads(request)
            child = os.fork()
            if child == 0:
                asked.close()
                signal.signal(signal.SIGINT, signal.default_int_handler)
                _become(wanted["arguments"], wanted["environment"], streams)
            for stream in streams:
                os.close(stream)
            _, status = os.waitpid(child, 0)
            asked.send(str(os.waitstatus_to_exitcode(status)).encode())


if __name__ == "__main__":
    _serve()
