"""Runs the command line as users run it, and finds its commands in the app."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from typer.main import get_command

from session_lifecycle.cli.app import app
from support.command_server import RunningCommand, command_server

PROGRAM = (str(Path(sys.executable).with_name("session-lifecycle")),)


def environment() -> dict[str, str]:
    """The environment, without a setting that names a database."""
    return {
        name: value
        for name, value in os.environ.items()
        if name == "SESSION_LIFECYCLE_PG_BIN" or not name.startswith("SESSION_")
    }


def without_database(said: str) -> str:
    """What a command says on standard error, without the line that names the database."""
    return re.sub(r"\Adatabase: .*\n", "", said)


def run(*arguments: str, program: Sequence[str] = PROGRAM, **more: str) -> "subprocess.CompletedProcess[str]":
    """Runs the command. Its standard error comes without the line that names the database."""
    ran = run_raw(*arguments, program=program, **more)
    ran.stderr = without_database(ran.stderr)
    return ran


def run_raw(*arguments: str, program: Sequence[str] = PROGRAM, **more: str) -> "subprocess.CompletedProcess[str]":
    # A setting of the interpreter has to be there when it starts.
    if program == PROGRAM and not any(name.startswith("PYTHON") for name in more):
        ran = command_server().run(arguments, environment() | more, within_seconds=120)
    else:
        ran = subprocess.run(
            [*program, *arguments],
            env=environment() | more,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
    assert "Traceback" not in ran.stderr, ran.stderr
    return ran


@contextmanager
def running(*arguments: str, **more: str) -> Generator[RunningCommand]:
    """Runs the command until the block is left; kills it if it still runs."""
    with command_server().running(arguments, environment() | more) as command:
        yield command


def interrupt(command: RunningCommand) -> tuple[int, str]:
    """Interrupts the command; returns its exit code and its last output."""
    command.send_signal(signal.SIGINT)
    _, said = command.communicate(timeout=30)
    assert command.returncode is not None
    return command.returncode, without_database(said)


def succeed(*arguments: str, program: Sequence[str] = PROGRAM, **more: str) -> str:
    ran = run(*arguments, program=program, **more)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def on_pipe(answer: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """Runs the command with a pipe as its input."""
    read_end, write_end = os.pipe()
    try:
        with os.fdopen(write_end, "w") as pipe:
            pipe.write(answer)
        return command_server().run(arguments, environment(), within_seconds=60, stdin=read_end)
    finally:
        os.close(read_end)


def on_terminal(answer: str, *arguments: str) -> tuple[int, str]:
    """Runs the command with a terminal as its input and answers its question. Returns its exit code and output."""
    terminal, inside = os.openpty()
    try:
        os.write(terminal, answer.encode())
        ran = command_server().run(arguments, environment(), within_seconds=60, stdin=inside, together=True)
        return ran.returncode, ran.stdout
    finally:
        os.close(inside)
        os.close(terminal)


def options_of_commands() -> dict[str, list[str]]:
    """The options of each command, by the words of the command."""
    found: dict[str, list[str]] = {}

    def collect(words: tuple[str, ...], command: Any) -> None:
        for name, one in getattr(command, "commands", {}).items():
            collect((*words, name), one)
        if not hasattr(command, "commands"):
            found[" ".join(words)] = [option for parameter in command.params for option in parameter.opts]

    collect((), get_command(app))
    return found
