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
        self, arguments: list[str], environment: dict[str, str], *, within_seconds: float
    ) -> "subprocess.CompletedProcess[str]":
        """Runs `session-lifecycle` with these arguments and this environment, and an empty standard input.

        Raises:
            TimeoutError: It has not ended within so many seconds. The process is killed with its server.
        """
        request = json.dumps({"arguments": arguments, "environment": environment}).encode()
        outputs = [os.memfd_create(name) for name in ("stdout", "stderr")]
        try:
            with self._lock:
                self._socket.settimeout(within_seconds)
                socket.send_fds(self._socket, [request], outputs)
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
        finally:
            for output in outputs:
                os.close(output)
        return subprocess.CompletedProcess(arguments, code, *said)


@cache
def command_server() -> CommandServer:
    """The server of this test process."""
    return CommandServer()


def _become(arguments: list[str], environment: dict[str, str], outputs: list[int]) -> NoReturn:
    """Runs the command in this process, as the interpreter would run the console script."""
    code = 1
    try:
        os.environ.clear()
        os.environ.update(environment)
        nothing = os.open(os.devnull, os.O_RDONLY)
        for target, source in enumerate([nothing, *outputs]):
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
            request, outputs, *_ = socket.recv_fds(asked, LONGEST_REQUEST_BYTES, 2)
            if not request:
                return
            wanted = json.loads(request)
            child = os.fork()
            if child == 0:
                asked.close()
                signal.signal(signal.SIGINT, signal.default_int_handler)
                _become(wanted["arguments"], wanted["environment"], outputs)
            for output in outputs:
                os.close(output)
            _, status = os.waitpid(child, 0)
            asked.send(str(os.waitstatus_to_exitcode(status)).encode())


if __name__ == "__main__":
    _serve()
