"""`hook`: the settings with which a coding agent runs `session-lifecycle-hook`."""

import json
import os
import shlex
import shutil
import sys
from pathlib import Path
from typing import Annotated, Any
from uuid import UUID

import typer

from session_lifecycle.cli.options import refuse
from session_lifecycle.cli.output import print_line, print_note
from session_lifecycle.errors import InvalidValueError
from session_lifecycle.integrations.hook_command import COMMAND, EVENTS, default_user


def claude_code(
    install: Annotated[
        bool, typer.Option("--install", help="Write them into the settings, and keep all others.")
    ] = False,
    settings: Annotated[
        Path | None,
        typer.Option(
            help="Settings file. Default: settings.json in $CLAUDE_CONFIG_DIR or ~/.claude.", show_default=False
        ),
    ] = None,
    user: Annotated[
        UUID | None,
        typer.Option(help="Id of the user who owns the sessions. Default: made of the login name and the host's name."),
    ] = None,
    no_content: Annotated[
        bool, typer.Option("--no-content", help="Record no messages, and no input or output of tools.")
    ] = False,
) -> None:
    """Print the settings that let Claude Code call the hook command, or write them.

    The hook command writes items into the spool of this user. `session-lifecycle spool drain --follow` delivers them.
    """
    hooks = hooks_of(default_user() if user is None else str(user), no_content=no_content)
    if not install:
        for line in json.dumps({"hooks": hooks}, indent=2).splitlines():
            print_line(line)
        return
    file = settings or Path(os.environ.get("CLAUDE_CONFIG_DIR") or Path.home() / ".claude") / "settings.json"
    try:
        backup = install_hooks(file, hooks)
    except (OSError, ValueError, RecursionError) as error:
        refuse(f"{file} was not changed: {error}", code=1)
    if backup is None:
        print_line(f"Up to date: {file}")
    else:
        print_line(f"Installed: {file}")
        if backup.exists():
            print_note(f"what was there before: {backup}")


def hooks_of(user_id: str, *, no_content: bool = False) -> dict[str, Any]:
    """The hooks, as Claude Code's settings have them."""
    beside = Path(sys.executable).with_name(COMMAND)
    program = str(beside) if beside.exists() else shutil.which(COMMAND) or COMMAND
    words = [program, "claude-code", "--user", user_id, *(["--no-content"] if no_content else [])]
    entry = {"hooks": [{"type": "command", "command": shlex.join(words), "timeout": 10}]}
    return {event: [entry] for event in EVENTS}


def install_hooks(file: Path, hooks: dict[str, Any]) -> Path | None:
    """Writes the hooks into the settings, and replaces those of an earlier call. Everything else stays.

    Returns:
        The path of the backup, which exists if the file did. None: the settings had these hooks already.

    Raises:
        ValueError: The file is no JSON.
        InvalidValueError: It is no JSON object, or its hooks are not lists by event.
        OSError: The file cannot be read or written.
    """
    file = file.resolve()  # settings may be a link into a directory that is kept elsewhere
    before = file.read_text(encoding="utf-8") if file.exists() else None
    settings = {} if before is None or not before.strip() else json.loads(before)
    present = settings.get("hooks", {}) if isinstance(settings, dict) else None
    if not isinstance(present, dict):
        raise InvalidValueError("settings", settings, "a JSON object, and in it an object named hooks")
    merged = {event: _others(event, entries) for event, entries in present.items()}
    for event, entries in hooks.items():
        merged[event] = [*merged.get(event, []), *entries]
    merged = {event: entries for event, entries in merged.items() if entries or present.get(event) == []}
    after = settings | {"hooks": merged}
    if after == settings:
        return None
    backup = _free_name(file)
    file.parent.mkdir(parents=True, exist_ok=True)
    if before is not None:
        shutil.copy2(file, backup)
    new = file.with_name(f"{file.name}.{os.getpid()}")
    try:
        new.write_text(json.dumps(after, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        if before is not None:
            shutil.copymode(file, new)
        new.replace(file)
    finally:
        new.unlink(missing_ok=True)
    return backup


def _free_name(file: Path) -> Path:
    number = 1
    while (backup := file.with_name(f"{file.name}.backup-{number}")).exists():
        number += 1
    return backup


def _others(event: str, entries: Any) -> list[Any]:
    """The entries of an event without our command."""
    if not isinstance(entries, list):
        raise InvalidValueError(f"hooks.{event}", entries, "a list of hooks")
    kept = []
    for entry in entries:
        commands = entry.get("hooks") if isinstance(entry, dict) else None
        if isinstance(commands, list) and any(map(_is_ours, commands)):
            others = [command for command in commands if not _is_ours(command)]
            kept += [entry | {"hooks": others}] if others else []
        else:
            kept.append(entry)
    return kept


def _is_ours(command: Any) -> bool:
    text = command.get("command") if isinstance(command, dict) else None
    return isinstance(text, str) and f"{COMMAND} claude-code" in text.replace("'", "")
