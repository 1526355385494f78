"""`session-lifecycle-hook`: what a coding agent runs at each of its events. It writes the spool, and nothing else.

The agent waits for this command, so the command starts in milliseconds: it imports the standard library only, and of
that little. And the agent must not suffer from it: whatever happens, it prints nothing, exits with code 0, and appends
a line to a log file of its own.

No hook tells the usage of a response. Where an answer is complete, the command reads what the transcript has since the
last time.
"""

import json
import os
import sys
from datetime import UTC, datetime, timedelta
from typing import Any

from session_lifecycle.errors import described
from session_lifecycle.writing import spool_directory
from session_lifecycle.writing.spool import Spool

COMMAND = "session-lifecycle-hook"
CLIENT = "claude-code"
Fields = dict[str, Any]
EVENTS = (
    "SessionStart",
    "UserPromptSubmit",
    "PreToolUse",
    "PostToolUse",
    "PostToolUseFailure",
    "PostToolBatch",
    "SubagentStart",
    "SubagentStop",
    "Stop",
    "StopFailure",
    "SessionEnd",
)
"""The events that the command is told."""
_READS_TRANSCRIPT = {"SubagentStop", "Stop", "StopFailure", "SessionEnd"}
_MOST_BUSY_SECONDS = 2.0
_MOST_LOG_BYTES = 1_000_000
_REFUSED = "<tool_use_error>"


def default_user() -> str:
    """The id of the user for whom none is named: made of the login name and the host's name."""
    from getpass import getuser
    from platform import node
    from uuid import NAMESPACE_URL, uuid5

    return str(uuid5(NAMESPACE_URL, f"session-lifecycle:{getuser()}@{node()}"))


def main() -> None:
    """Runs the command `session-lifecycle-hook`. Ends the process with code 0, whatever happens."""
    try:
        _run(sys.argv[1:])
    except BaseException as error:  # noqa: BLE001 - the agent goes on whatever is wrong here
        _log(error)
    os._exit(0)  # the interpreter's own end would take milliseconds more


def _run(arguments: list[str]) -> None:
    program, *rest = arguments or [""]
    if program != CLIENT:
        raise ValueError(f"got the program {program!r}, expected {CLIENT}")
    content = "--no-content" not in rest
    payload = json.loads(sys.stdin.buffer.read())
    if not isinstance(payload, dict):
        raise TypeError("the hook's payload is no JSON object")
    user_id = _option(rest, "--user") or default_user()
    path = _option(rest, "--spool")
    items = claude_code_items(payload, user_id, datetime.now(UTC), content=content)
    # It is not closed: closing would write the log of SQLite into its file, with two more syncs of the disk.
    spool = Spool(path, busy_seconds=_MOST_BUSY_SECONDS)
    if payload.get("hook_event_name") in _READS_TRANSCRIPT:
        _append_with_transcripts(spool, payload, items, user_id, content=content)
    else:
        spool.append(items)


def _append_with_transcripts(
    spool: Spool, payload: Fields, items: list[Fields], user_id: str, *, content: bool
) -> None:
    from session_lifecycle.integrations.hook_transcript import read_new_lines
    from session_lifecycle.integrations.positions import Positions

    positions = Positions(spool.path.with_name("positions"), f"hook {spool.path} {user_id} {content}")
    read = []
    for name in ("transcript_path", "agent_transcript_path"):
        if isinstance(transcript := payload.get(name), str):
            path = spool.path / transcript  # a transcript's path is absolute
            found, position = read_new_lines(path, positions, user_id, content=content, on_bad_line=_log)
            # What the transcript says comes first: a session's end makes what is later than it late.
            items = found + items
            read += [position] if position is not None else []
    spool.append(items)
    for position in read:
        positions.save(position)


def _option(arguments: list[str], name: str) -> str | None:
    return arguments[arguments.index(name) + 1] if name in arguments[:-1] else None


def claude_code_items(  # noqa: PLR0911 - one answer for each event
    payload: Fields, user_id: str, now: datetime, *, content: bool = True
) -> list[Fields]:
    """The items of one event of Claude Code, in the shape that `Spool.append` takes.

    A transcript says the same of runs and steps, with times of its own and a higher revision.
    """
    at = now.isoformat()
    session = {"session_id": payload["session_id"], "user_id": user_id}
    prompt, agent = payload.get("prompt_id"), payload.get("agent_id")
    run: Fields = {"kind": "run", **session, "client": CLIENT, "started_at": at}
    child = run | given(run_id=agent, parent_run_id=prompt, agent_name=payload.get("agent_type"))
    ended = {"ended_at": at, "revision": 1}
    match payload["hook_event_name"]:
        case "SessionStart":
            metadata = given(cwd=payload.get("cwd"))
            reopen = [{"kind": "reopen", **session, "at": at}] if payload.get("source") == "resume" else []
            return [*reopen, {"kind": "touch", **session, "at": at, "metadata": metadata}]
        case "UserPromptSubmit" if prompt:
            return [run | {"run_id": prompt}]
        case "Stop" if prompt:
            return [run | {"run_id": prompt, "status": "completed"} | ended]
        case "StopFailure" if prompt:
            return [run | {"run_id": prompt, "status": "failed"} | given(error=payload.get("error")) | ended]
        case "SubagentStart" if agent:
            return [child]
        case "SubagentStop" if agent:
            return [child | {"status": "completed"} | ended]
        case "SessionEnd":
            # A prompt that was not stopped was cancelled. A Stop or StopFailure, also a later one, replaces this.
            cancelled = [run | {"run_id": prompt, "status": "cancelled", "ended_at": at}] if prompt else []
            end = {"kind": "end", **session, "status": "completed", "at": at}
            return [*cancelled, end | given(reason=payload.get("reason"))]
        case "PreToolUse" | "PostToolUse" | "PostToolUseFailure":
            return _steps(payload, payload, user_id, now, content=content)
        case "PostToolBatch":
            # A call that was refused before the tool ran is in no other event.
            refused = [
                call
                for call in payload.get("tool_calls") or []
                if isinstance(call, dict)
                and isinstance(said := call.get("tool_response"), str)
                and said.startswith(_REFUSED)
            ]
            return [step for call in refused for step in _steps(payload, call, user_id, now, content=content)]
        case _:
            return []


def given(**fields: Any) -> Fields:
    """The fields that are not None."""
    return {name: value for name, value in fields.items() if value is not None}


def _steps(payload: Fields, call: Any, user_id: str, now: datetime, *, content: bool) -> list[Fields]:
    run_id, call_id = payload.get("agent_id") or payload.get("prompt_id"), call.get("tool_use_id")
    if not run_id or not call_id:
        return []
    event = payload["hook_event_name"]
    took = call.get("duration_ms") if event != "PreToolUse" else None
    started = now - timedelta(milliseconds=took) if isinstance(took, int | float) else now
    step: Fields = {"kind": "step", "step_kind": "tool", "user_id": user_id, "run_id": run_id, "step_id": call_id}
    step |= {"tool_call_id": call_id, "started_at": started.isoformat()} | given(name=call.get("tool_name"))
    if content:
        step |= given(inputs=call.get("tool_input"))
    if event == "PreToolUse":
        return [step]
    step["ended_at"] = now.isoformat()
    if event == "PostToolUse":
        return [step | given(output=call.get("tool_response") if content else None)]
    said = call.get("error") if event == "PostToolUseFailure" else call.get("tool_response")
    return [step | {"errors": given(type="tool_error", message=said if content else None)}]


def _log(error: BaseException, place: str = "") -> None:
    """Appends a line to the log file. Its text is the error's, which has no content."""
    try:
        path = spool_directory.default_path().expanduser().with_name("hook.log")
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | getattr(os, "O_NOFOLLOW", 0)
        descriptor = os.open(path, flags, 0o600)
        try:
            if os.fstat(descriptor).st_size > _MOST_LOG_BYTES:
                os.ftruncate(descriptor, 0)
            text = f"{datetime.now(UTC).isoformat()} {place} {described(error)}"
            os.write(descriptor, (" ".join(text.split()) + "\n").encode(errors="replace"))
        finally:
            os.close(descriptor)
    except OSError:
        return  # there is no other place to say so: what a hook prints may reach the model
