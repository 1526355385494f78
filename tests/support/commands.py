"""The commands of the command line, found in the app."""

from typing import Any

from typer.main import get_command

from session_lifecycle.cli.app import app


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
