"""`session-lifecycle-hook`: what each event of Claude Code records, and that it never breaks the agent."""

import json
import os
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from session_lifecycle import SessionDatabase, Spool
from session_lifecycle.integrations.hook_command import EVENTS, claude_code_items
from support.transcripts import SHARED, answer, bring, events, prompt, result, rows, runs, steps, totals, write
from support.usage import A

PROGRAM = "from session_lifecycle.integrations.hook_command import main; main()"


class Agent:
    """Runs the hook command as an agent does."""

    def __init__(self, folder: Path) -> None:
        self.state = folder / "state"
        self.spool = self.state / "session-lifecycle" / "spool"
        self.log = self.state / "session-lifecycle" / "hook.log"

    def tell(self, payload: Any, *arguments: str, program: str = PROGRAM) -> None:
        text = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
        words = arguments or ("claude-code", "--user", str(A))
        environment = {**os.environ, "XDG_STATE_HOME": str(self.state), "HOME": str(self.state)}
        ran = subprocess.run(
            [sys.executable, "-c", program, *words],
            input=text,
            env=environment,
            capture_output=True,
            timeout=60,
            check=False,
        )
        assert (ran.returncode, ran.stdout, ran.stderr) == (0, b"", b"")

    async def deliver(self, db: SessionDatabase) -> None:
        with Spool(self.spool) as spool:
            report = await spool.drain(db)
        assert (report.set_aside, report.left) == (0, 0)


@pytest.fixture
def agent(tmp_path: Path) -> Agent:
    return Agent(tmp_path)


def payload(event: str, **fields: Any) -> dict[str, Any]:
    return {"session_id": "s1", "hook_event_name": event, "prompt_id": "p1", "cwd": "/home/dev/orchard", **fields}


TOOL = {"tool_name": "Bash", "tool_input": {"command": "echo hello"}, "tool_use_id": "t1"}
LIVED = [
    payload("SessionStart", source="startup", prompt_id=None),
    payload("UserPromptSubmit", prompt="Say hello."),
    payload("PreToolUse", **TOOL),
    payload("PostToolUse", **TOOL, tool_response={"stdout": "hello"}, duration_ms=36),
    payload("PostToolBatch", tool_calls=[{**TOOL, "tool_response": "hello"}]),
    payload(
        "PostToolBatch", tool_calls=[{"tool_name": "Agent", "tool_use_id": "t2", "tool_response": "<tool_use_error>no"}]
    ),
    payload("SubagentStart", agent_id="kid", agent_type="weigher"),
    payload("PreToolUse", agent_id="kid", **TOOL),
    payload("PostToolUseFailure", agent_id="kid", **TOOL, error="no such file"),
    payload("SubagentStop", agent_id="kid", agent_type="weigher"),
    payload("Stop"),
    payload("SessionEnd", reason="other"),
]


async def test_H55_a_session_that_hooks_tell_of(session_database: SessionDatabase, agent: Agent) -> None:
    for event in LIVED:
        agent.tell(event)
    await agent.deliver(session_database)
    assert not agent.log.exists()
    assert await runs(session_database, "status, parent_run_id, agent_name, client") == {
        "p1": ("completed", None, None, "claude-code"),
        "kid": ("completed", "p1", "weigher", "claude-code"),
    }
    assert await steps(session_database) == {
        ("p1", "t1"): ("Bash", "completed"),
        ("p1", "t2"): ("Agent", "failed"),
        ("kid", "t1"): ("Bash", "failed"),
    }
    found = await session_database.lifecycle.get_session_row("s1", A)
    assert found is not None
    assert (found.effective_status, found.record.end_reason) == ("completed", "other")
    assert await events(session_database) == {}


@pytest.mark.parametrize("order", [("StopFailure", "SessionEnd"), ("SessionEnd", "StopFailure")])
async def test_H55_a_failure_is_told_before_the_end_or_after_it(
    session_database: SessionDatabase, agent: Agent, order: tuple[str, str]
) -> None:
    agent.tell(payload("UserPromptSubmit"))
    for event in order:
        agent.tell(payload(event, error="server_error"))
    await agent.deliver(session_database)
    assert await runs(session_database, "status, error") == {"p1": ("failed", "server_error")}


async def test_H55_a_resumed_session_runs_again_and_its_usage_is_not_late(
    session_database: SessionDatabase, agent: Agent, tmp_path: Path
) -> None:
    """The prompt is cancelled, and the session ends. It is resumed, answers, and ends again."""
    agent.tell(payload("UserPromptSubmit"))
    agent.tell(payload("SessionEnd"))
    agent.tell(payload("SessionStart", source="resume"))
    agent.tell(payload("UserPromptSubmit", prompt_id="p2"))
    await agent.deliver(session_database)
    found = await session_database.lifecycle.get_session_row("s1", A)
    assert found is not None
    assert found.effective_status == "running"
    lines = [prompt(0, "More.", promptId="p2"), answer(1, "m1", (10, 0, 0, 3))]
    for line in lines:
        line["timestamp"] = datetime.now(UTC).isoformat()
    file = write(tmp_path / "s1.jsonl", lines)
    agent.tell(payload("Stop", prompt_id="p2", transcript_path=str(file)))
    agent.tell(payload("SessionEnd", prompt_id="p2", transcript_path=str(file)))
    await agent.deliver(session_database)
    found = await session_database.lifecycle.get_session_row("s1", A)
    assert found is not None
    assert (found.effective_status, found.record.tokens_out, found.record.late_events) == ("completed", 3, 0)
    assert await runs(session_database) == {"p1": "cancelled", "p2": "completed"}


async def test_the_transcript_is_read_from_where_it_was_left(
    session_database: SessionDatabase, agent: Agent, tmp_path: Path
) -> None:
    lines = [
        prompt(0, "Go.", promptId="p1"),
        answer(1, "m1", (10, 0, 0, 3), stop="tool_use", tool=("t1", "Agent")),
        result(2, "t1"),
        answer(3, "m2", (10, 0, 0, 4)),
    ]
    of: dict[str, Any] = {"isSidechain": True, "agentId": "kid"}
    child = write(
        tmp_path / "agent-kid.jsonl", [prompt(1.1, "x", promptId="p1", **of), answer(1.2, "k1", (1, 0, 0, 1), **of)]
    )
    child.with_suffix(".meta.json").write_text('{"agentType": "weigher", "toolUseId": "t1"}')
    file = write(tmp_path / "s1.jsonl", lines[:2])
    at = {"transcript_path": str(file)}
    agent.tell(payload("SubagentStop", agent_id="kid", agent_type="weigher", agent_transcript_path=str(child), **at))
    write(file, lines)
    for _ in range(2):
        agent.tell(payload("Stop", **at))
    with Spool(agent.spool) as spool:
        spooled = [json.loads(one.item) for one in spool.read(1000)]
    assert [one["idempotency_key"] for one in spooled if one["kind"] == "usage"] == ["k1", "m1", "m2"]
    await agent.deliver(session_database)
    assert await totals(session_database) == {"s1": (21, 8, 0, 0)}
    found = await runs(session_database, "status, parent_run_id, agent_name, parent_tool_call_id")
    assert found == {"p1": ("completed", None, None, None), "kid": ("completed", "p1", "weigher", "t1")}
    # An import of the same files changes no total, and nothing of them is a second message.
    before = await rows(session_database, "SELECT count(*) FROM session_lifecycle.session_messages")
    assert (await bring(session_database, "claude-code", tmp_path)).new_events == 0
    assert await rows(session_database, "SELECT count(*) FROM session_lifecycle.session_messages") == before
    assert await totals(session_database) == {"s1": (21, 8, 0, 0)}


@pytest.mark.parametrize(
    ("given", "arguments", "said"),
    [
        (b"", ("claude-code",), "JSONDecodeError"),
        (b'"\xff"', ("claude-code",), "UnicodeDecodeError"),
        (b"[]", ("claude-code",), "TypeError: the hook's payload is no JSON object"),
        (b"{}", ("claude-code",), "KeyError"),
        (b"{}", (), "ValueError: got the program '', expected claude-code"),
        (b"{}", ("other",), "ValueError: got the program 'other', expected claude-code"),
    ],
)
def test_whatever_is_wrong_the_agent_goes_on_and_the_log_says_so(
    agent: Agent, given: bytes, arguments: tuple[str, ...], said: str
) -> None:
    words = repr(list(arguments))
    program = f"import sys; sys.argv = ['hook', *{words}]; {PROGRAM}"
    agent.tell(given, "ignored", program=program)
    assert said in agent.log.read_text()
    assert agent.log.stat().st_mode & 0o777 == 0o600


def test_a_spool_that_others_may_enter_is_told_to_the_log(agent: Agent) -> None:
    agent.spool.mkdir(parents=True)
    agent.spool.chmod(0o755)
    agent.tell(payload("Stop", last_assistant_message="secret"))
    assert "ConfigurationError" in agent.log.read_text()
    assert "secret" not in agent.log.read_text()


def test_a_transcript_that_is_gone_or_bad_stops_nothing(agent: Agent, tmp_path: Path) -> None:
    file = write(tmp_path / "s1.jsonl", ["no JSON", prompt(0, "Go.", promptId="p1"), answer(1, "m1", (10, 0, 0, 3))])
    agent.tell(payload("Stop", transcript_path=str(tmp_path / "gone.jsonl")))
    agent.tell(payload("Stop", transcript_path=str(file)))
    with Spool(agent.spool) as spool:
        kinds = [json.loads(one.item)["kind"] for one in spool.read(1000)]
    assert kinds.count("usage") == 1
    assert f"{file}:1 BadLineError" in agent.log.read_text()


def test_without_content_a_hook_keeps_nothing_that_was_said() -> None:
    now = datetime.now(UTC)
    said = {
        **TOOL,
        "tool_input": "zebra",
        "tool_response": "<tool_use_error>zebra",
        "error": "zebra",
        "prompt": "zebra",
    }
    for event in EVENTS:
        told = payload(event, **said, last_assistant_message="zebra", tool_calls=[said])
        if event != "StopFailure":
            assert "zebra" not in json.dumps(claude_code_items(told, str(A), now, content=False))


def test_every_event_has_an_answer_and_an_unknown_one_none() -> None:
    now = datetime.now(UTC)
    told = {event: claude_code_items(payload(event, agent_id="kid", **TOOL), str(A), now) for event in EVENTS}
    assert [event for event, items in told.items() if not items] == ["PostToolBatch"]  # nothing was refused in it
    assert claude_code_items(payload("Notification"), str(A), now) == []


@pytest.mark.skipif(not SHARED.is_dir(), reason="the logs are not beside the project")
async def test_H55_captured_hooks(session_database: SessionDatabase, agent: Agent) -> None:
    lines = (SHARED / "payloads" / "claude-code-hooks.jsonl").read_text("utf-8").splitlines()
    told = [json.loads(line) for line in lines]
    for one in told:
        one["session_id"] = one["session_id"][:8]
        agent.tell(one)
    await agent.deliver(session_database)
    found = await runs(session_database, "session_id, status, parent_run_id, agent_name")
    assert found == {
        "19eb4b06": ("f606c7bf", "completed", None, None),
        "424a512d": ("cef4bb05", "failed", None, None),
        "ca183f1d": ("b2bc3ec8", "completed", None, None),
        "ae17c5ef20dbfb7e2": ("b2bc3ec8", "completed", "ca183f1d", "general-purpose"),
        "9ba5e1ef": ("ef74a52a", "completed", None, None),
        "29fcb659": ("ef74a52a", "completed", None, None),
        "35c2e448": ("60913845", "completed", None, None),
        "3d7859a8": ("1d4e82e4", "cancelled", None, None),
    }
    assert await steps(session_database) == {
        ("19eb4b06", "toolu_local0001"): ("Bash", "completed"),
        ("19eb4b06", "toolu_local0002"): ("Agent", "failed"),
        ("ca183f1d", "toolu_local0001"): ("Agent", "completed"),
        ("ae17c5ef20dbfb7e2", "toolu_local0002"): ("Bash", "completed"),
        ("ca183f1d", "toolu_local0004"): ("Agent", "failed"),
    }
    assert await events(session_database) == {}
    statuses = await rows(session_database, "SELECT DISTINCT status FROM session_lifecycle.session_records")
    assert statuses == [("completed",)]
