"""Runs the command line in a process of its own each time, without importing the library each time.

One process has imported the commands, and forks for each of them. Importing takes ten times as long as most commands.
"""

import atexit
import gc
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Generator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import NoReturn, TextIO

import typer.main as typer_main

LONGEST_REQUEST_BYTES = 1_000_000
LONGEST_REPLY_BYTES = 100
LOADED_BY_COMMANDS = (
    "session_lifecycle.cli.app",
    "session_lifecycle.cli.tables",
    "session_lifecycle.database",
    "session_lifecycle.web.serving",
    "alembic.command",
    "genai_prices",
    "rich.console",
    "typer.rich_utils",
    "uvicorn",
)


class RunningCommand:
    """A command that runs. It has what tests use of `subprocess.Popen`."""

    def __init__(self, reply: socket.socket, stdout: TextIO | None = None, stderr: TextIO | None = None) -> None:
        self.stdout = stdout
        self.stderr = stderr
        self.returncode: int | None = None
        self._reply = reply
        self.pid = int(reply.recv(LONGEST_REPLY_BYTES))

    def send_signal(self, number: int) -> None:
        if self.returncode is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def wait(self, timeout: float | None = None) -> int:
        """Waits until it has ended; returns its exit code, or the negative number of the signal that ended it.

        Raises:
            TimeoutError: It has not ended within so many seconds.
        """
        if self.returncode is None:
            self._reply.settimeout(timeout)
            self.returncode = int(self._reply.recv(LONGEST_REPLY_BYTES))
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Waits until it has ended; returns what was not read of its outputs, which pipes must have room for."""
        self.wait(timeout)
        said = [stream.read() if stream else "" for stream in (self.stdout, self.stderr)]
        return said[0], said[1]


class CommandServer:
    """The process that forks. It ends with the process that made it, which closes its end of the socket."""

    def __init__(self) -> None:
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            # The file descriptor is its standard input: nothing else reads from there.
            self._process = subprocess.Popen([sys.executable, __file__], stdin=theirs.fileno())

    def run(
        self,
        arguments: Sequence[str],
        environment: dict[str, str],
        *,
        within_seconds: float,
        stdin: int | None = None,
        together: bool = False,
    ) -> "subprocess.CompletedProcess[str]":
        """Runs `session-lifecycle` with these arguments and this environment, until it has ended.

        Args:
            arguments: The arguments.
            environment: The whole environment.
            within_seconds: See below.
            stdin: The file descriptor of its standard input; None: it is empty.
            together: Whether its standard error goes where its standard output goes.

        Raises:
            TimeoutError: It has not ended within so many seconds. The process is killed.
        """
        with ExitStack() as stack:
            outputs = [stack.enter_context(os.fdopen(os.memfd_create(name), "r+b")) for name in ("stdout", "stderr")]
            stdout, stderr = (output.fileno() for output in outputs)
            reply = self._ask(arguments, environment, (stdin, stdout, stdout if together else stderr))
            with reply:
                command = RunningCommand(reply)
                try:
                    code = command.wait(within_seconds)
                finally:
                    command.kill()
            said = []
            for output in outputs:
                output.seek(0)
                said.append(output.read().decode())
        return subprocess.CompletedProcess(arguments, code, *said)

    @contextmanager
    def running(
        self, arguments: Sequence[str], environment: dict[str, str], *, folder: Path | None = None
    ) -> Generator[RunningCommand]:
        """Runs `session-lifecycle` until the block is left, with pipes as its outputs; kills it if it still runs.

        Args:
            arguments: The arguments.
            environment: The whole environment.
            folder: The folder in which it works; None: that of the tests.
        """
        with ExitStack() as stack:
            ends = []
            outputs = []
            for _ in range(2):
                read_end, write_end = os.pipe()
                ends.append(stack.enter_context(os.fdopen(read_end, encoding="utf-8")))
                outputs.append(write_end)
            try:
                reply = stack.enter_context(self._ask(arguments, environment, (None, *outputs), folder))
            finally:
                for output in outputs:
                    os.close(output)
            command = RunningCommand(reply, *ends)
            try:
                yield command
            finally:
                command.kill()

    def _ask(
        self,
        arguments: Sequence[str],
        environment: dict[str, str],
        streams: Sequence[int | None],
        folder: Path | None = None,
    ) -> socket.socket:
        """Asks for a command. Returns the connection that tells its process number, and later its exit code."""
        wanted = {"arguments": arguments, "environment": environment, "folder": str(folder or Path.cwd())}
        reply, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs, Path(os.devnull).open("rb") as nothing:
            given = [nothing.fileno() if stream is None else stream for stream in streams]
            socket.send_fds(self._socket, [json.dumps(wanted).encode()], [*given, theirs.fileno()])
        return reply


@cache
def command_server() -> CommandServer:
    """The server of this test process."""
    return CommandServer()


def _become(arguments: list[str], environment: dict[str, str], folder: str, streams: list[int]) -> NoReturn:
    """Runs the command in this process, as the interpreter would run the console script."""
    code = 1
    try:
        os.environ.clear()
        os.environ.update(environment)
        os.chdir(folder)
        for target, source in enumerate(streams):
            os.dup2(source, target)
            os.close(source)
        # As the interpreter makes them: those of the server were made for other files.
        sys.stdin = open(0, closefd=False)  # noqa: SIM115 - as long as the process
        sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
        sys.stderr = open(2, "w", buffering=1, errors="backslashreplace", closefd=False)  # noqa: SIM115
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
        # As the interpreter ends: a thread that goes on keeps the process alive.
        threading._shutdown()  # type: ignore[attr-defined]  # noqa: SLF001 - as multiprocessing does after a fork
        atexit._run_exitfuncs()  # noqa: SLF001 # pyright: ignore[reportPrivateUsage] - the same
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _serve() -> None:
    for module in LOADED_BY_COMMANDS:
        import_module(module)
    # A program builds its parser when it starts, from the same app every time.
    parser = typer_main.get_command(import_module("session_lifecycle.cli.app").app)
    setattr(typer_main, "get_command", lambda _: parser)  # noqa: B010 - its type names the argument
    gc.freeze()  # a child would go through all that is loaded here, and copy it
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with socket.socket(fileno=os.dup(0)) as asked, selectors.DefaultSelector() as selector:
        selector.register(asked, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                if key.fileobj is not asked:  # a child has ended
                    child, reply = key.data
                    selector.unregister(key.fileobj)
                    os.close(key.fd)
                    _, status = os.waitpid(child, 0)
                    with reply:
                        _tell(reply, os.waitstatus_to_exitcode(status))
                    continue
                request, descriptors, *_ = socket.recv_fds(asked, LONGEST_REQUEST_BYTES, 4)
                if not request:
                    return
                *streams, last = descriptors
                reply = socket.socket(fileno=last)
                child = os.fork()
                if child == 0:
                    asked.close()
                    reply.close()
                    signal.signal(signal.SIGINT, signal.default_int_handler)
                    _become(**json.loads(request), streams=streams)
                for stream in streams:
                    os.close(stream)
                _tell(reply, child)
                selector.register(os.pidfd_open(child), selectors.EVENT_READ, (child, reply))


def _tell(reply: socket.socket, number: int) -> None:
    with suppress(BrokenPipeError):  # a test that is over does not wait for the command that it killed
        reply.send(str(number).encode())


if __name__ == "__main__":
    _serve()
