"""The hook command loads the standard library only, and little of it: an agent waits for it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import os, sys
from session_lifecycle.integrations.hook_command import main
def show(code):
    names = {name.partition(".")[0] for name in sys.modules} - set(sys.stdlib_module_names) - AT_START
    ours = sorted(name for name in sys.modules if name.startswith("session_lifecycle"))
    sys.stderr.write(" ".join(sorted(names)) + "\\n" + " ".join(ours) + "\\n" + str("asyncio" in sys.modules))
    sys.stderr.flush()
    exit(code)
os._exit, exit = show, os._exit
main()
"""
OURS = {
    "session_lifecycle",
    "session_lifecycle._version",
    "session_lifecycle.errors",
    "session_lifecycle.integrations",
    "session_lifecycle.integrations.hook_command",
    "session_lifecycle.writing",
    "session_lifecycle.writing.spool",
    "session_lifecycle.writing.spool_directory",
}
READING = {
    f"session_lifecycle.integrations.{name}"
    for name in ("claude_code", "counts", "hook_transcript", "positions", "transcripts")
}


@pytest.mark.parametrize(("event", "more"), [("PreToolUse", set[str]()), ("Stop", READING)])
def test_the_hook_loads_the_standard_library_only(tmp_path: Path, event: str, more: set[str]) -> None:
    told = {"session_id": "s", "prompt_id": "p", "tool_use_id": "t", "hook_event_name": event}
    transcript = tmp_path / "s.jsonl"
    transcript.write_text("{}\n")
    ran = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys; AT_START = {n.partition('.')[0] for n in sys.modules}" + PROGRAM,
            "claude-code",
        ],
        input=json.dumps(told | {"transcript_path": str(transcript)}),
        env={**os.environ, "XDG_STATE_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    foreign, ours, has_asyncio = ran.stderr.splitlines()
    assert (foreign, has_asyncio) == ("session_lifecycle", "False")
    assert set(ours.split()) == OURS | more
    assert not (tmp_path / "session-lifecycle" / "hook.log").exists()
