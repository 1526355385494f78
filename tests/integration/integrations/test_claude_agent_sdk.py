"""The Claude Agent SDK: captured messages replayed, and Claude Code itself run against a stand-in of the model API."""

import asyncio
import importlib
import json
import re
import sys
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import claude_agent_sdk
import pytest
from claude_agent_sdk import ClaudeAgentOptions, HookMatcher, StreamEvent, Transport

from session_lifecycle import SessionDatabase, Settings
from session_lifecycle.integrations.budget_check import BudgetCheck
from session_lifecycle.integrations.claude_agent_sdk import SessionSdk
from session_lifecycle.writing.recorder import SessionRecorder
from support import transcripts
from support.budget_checks import AWAY, assert_settled
from support.budgets import limit, used
from support.eventually import eventually
from support.model_apis.dialect import Served
from support.model_server import ModelServer
from support.transcripts import SHARED, bring, events, everything, rows, runs, steps, totals, written
from support.usage import A

Fields = dict[str, Any]
LOGS = SHARED / "payloads"
needs_logs = pytest.mark.skipif(not SHARED.is_dir(), reason="the logs are not beside the project")
PROGRAM = Path(claude_agent_sdk.__file__).with_name("_bundled") / "claude"
needs_program = pytest.mark.skipif(not PROGRAM.is_file(), reason="the wheel of the SDK has no program for this system")
COUNTS = (
    "tokens_in, tokens_out, cache_read_tokens, cache_write_tokens, coalesce((parts->>'cache_write_1h_tokens')::int, 0)"
)


class Scripted(Transport):
    """Speaks the protocol of Claude Code: sends its lines after the prompt of each turn, and then ends, or waits."""

    def __init__(self, *turns: Sequence[Fields], ends: bool = True) -> None:
        self._turns = list(turns)
        self._ends = ends
        self._lines: asyncio.Queue[Fields | None] = asyncio.Queue()
        self._is_ready = False

    async def connect(self) -> None:
        self._is_ready = True

    async def write(self, data: str) -> None:
        told = json.loads(data)
        if told["type"] == "control_request":
            answer = {"subtype": "success", "request_id": told["request_id"], "response": {}}
            self._lines.put_nowait({"type": "control_response", "response": answer})
        elif told["type"] == "user":
            for line in self._turns.pop(0):
                self._lines.put_nowait(line)
            if not self._turns and self._ends:
                self._lines.put_nowait(None)

    async def read_messages(self) -> AsyncIterator[Fields]:
        while (line := await self._lines.get()) is not None:
            yield line

    async def close(self) -> None:
        self._is_ready = False
        self._lines.put_nowait(None)

    def is_ready(self) -> bool:
        return self._is_ready

    async def end_input(self) -> None:
        pass


def lines_of(name: str) -> list[Fields]:
    """A captured log, with the session's whole id in place of its beginning."""
    lines = [json.loads(line) for line in (LOGS / f"claude-code-streamjson-{name}.jsonl").read_text().splitlines()]
    whole = lines[0]["session_id"]
    for line in lines:
        line["session_id"] = whole
        line.setdefault("output_file", "")
    return lines


async def converse(sdk: SessionSdk, turn: Sequence[Fields], *, ends: bool = True, **options: Any) -> None:
    told = ClaudeAgentOptions(env={"CLAUDE_CONFIG_DIR": "/nowhere"}, **options)
    async for _ in sdk.query(prompt="What is it?", options=told, transport=Scripted(turn, ends=ends)):
        pass


@needs_logs
async def test_H53_captured_messages_of_a_sub_agent(session_database: SessionDatabase) -> None:
    session, init = "b2bc3ec8-5303-49d4-8e14-034c841911b4", "4ee905a0-fe1c-4574-ae5b-b70d1e0b09e0"
    child = "ae17c5ef20dbfb7e2"
    for _ in range(2):
        async with session_database.recorder() as recorder:
            await converse(SessionSdk(recorder, user_id=A), lines_of("subagent"))
        assert recorder.snapshot().failures == 0
        found = await events(session_database, f"session_id, run_id, model, {COUNTS}")
        assert found == {
            "msg_local0001": (session, init, "claude-sonnet-4-5", 7120, 3, 5000, 2000, 500),
            "msg_local0002": (session, child, "claude-sonnet-4-5", 7120, 3, 5000, 2000, 500),
            "msg_local0004": (session, init, "claude-sonnet-4-5", 7121, 3, 5000, 2000, 500),
            "msg_local0005": (session, init, "claude-sonnet-4-5", 7122, 3, 5000, 2000, 500),
            f"{init}:claude-sonnet-4-5": (session, init, "claude-sonnet-4-5", 7121, 312, 5000, 2000, 0),
        }
        assert await totals(session_database) == {session: (35604, 324, 0, 0)}
        assert await runs(session_database, "status, agent_name, parent_run_id, parent_tool_call_id") == {
            init: ("completed", None, None, None),
            child: ("completed", "general-purpose", init, "toolu_local0001"),
        }
        assert await steps(session_database) == {
            (init, "toolu_local0001"): ("Agent", "completed"),
            (child, "toolu_local0002"): ("Bash", "completed"),
            (init, "toolu_local0004"): ("Agent", "failed"),
        }


@needs_logs
async def test_H54_captured_messages_of_an_error(session_database: SessionDatabase) -> None:
    async with session_database.recorder() as recorder:
        await converse(SessionSdk(recorder, user_id=A), lines_of("err500"))
    found = await events(session_database, f"session_id, model, measured, errored, {COUNTS}")
    session = "cef4bb05-d0f6-4c4b-ae70-4bb283e642b4"
    assert found == {"82048da5-de08-4fa4-87c7-49d4ca0785b9": (session, None, True, True, 0, 0, 0, 0, 0)}
    assert list((await runs(session_database)).values()) == ["failed"]


# Messages, made here

SESSION = "0d000000-0000-4000-8000-000000000001"
MODEL = "claude-sonnet-4-6"


def init(uuid: str = "run-1") -> Fields:
    return {"type": "system", "subtype": "init", "session_id": SESSION, "uuid": uuid, "model": MODEL}


def answer(message_id: str, *blocks: Fields, out: int = 3, fresh: int = 120, parent: str | None = None) -> Fields:
    usage = {"input_tokens": fresh, "output_tokens": out}
    message: Fields = {"id": message_id, "model": MODEL, "role": "assistant", "usage": usage}
    message["content"] = list(blocks) or [{"type": "text", "text": "It is 7."}]
    line = {"type": "assistant", "message": message, "session_id": SESSION, "uuid": f"line-{message_id}"}
    return line | {"parent_tool_use_id": parent}


def call(call_id: str, name: str = "Bash") -> Fields:
    return {"type": "tool_use", "id": call_id, "name": name, "input": {"command": "echo sesame"}}


def result(total_in: int, total_out: int, uuid: str = "result-1", **more: Any) -> Fields:
    usage = {f"{MODEL}[1m]": {"inputTokens": total_in, "outputTokens": total_out}}
    line = {"type": "result", "subtype": "success", "is_error": False, "duration_ms": 1, "duration_api_ms": 1}
    line |= {"num_turns": 1, "session_id": SESSION, "modelUsage": usage, "uuid": uuid, "total_cost_usd": 9.0}
    return line | more


async def test_H53_running_totals_are_adjusted_once(
    session_database: SessionDatabase, recorder: SessionRecorder
) -> None:
    sdk = SessionSdk(recorder, user_id=A)
    client = sdk.client(ClaudeAgentOptions(env={"CLAUDE_CONFIG_DIR": "/nowhere"}), _two_turns())
    async with client:
        for _ in range(2):
            await client.query("What is it?")
            assert [message async for message in client.receive_response()]
    assert await written(session_database, recorder) == {
        "m1": (120, 3),
        f"run-1:{MODEL}[1m]": (0, 61),
        "m2": (130, 3),
        f"run-2:{MODEL}[1m]": (10, 62),
    }
    assert await runs(session_database) == {"run-1": "completed", "run-2": "completed"}
    assert {cost for (cost,) in (await events(session_database, "cost_usd")).values() if cost is not None} != {9}


def _two_turns() -> Scripted:
    first = [init("run-1"), answer("m1"), result(120, 64)]
    second = [init("run-2"), answer("m2", fresh=130), result(260, 129, "result-2"), result(260, 129, "result-3")]
    return Scripted(first, second, ends=False)


async def test_a_resumed_session_is_not_adjusted(session_database: SessionDatabase, recorder: SessionRecorder) -> None:
    """Its totals hold what another process has used."""
    await converse(SessionSdk(recorder, user_id=A), [init(), answer("m1"), result(5000, 900)], resume=SESSION)
    assert await written(session_database, recorder, "tokens_in, tokens_out") == {"m1": (120, 3)}


async def test_totals_that_say_less_take_nothing_away(
    session_database: SessionDatabase, recorder: SessionRecorder
) -> None:
    await converse(SessionSdk(recorder, user_id=A), [init(), answer("m1"), result(7, 1)])
    assert await written(session_database, recorder) == {"m1": (120, 3)}


@pytest.mark.parametrize("awaits", [True, False])
async def test_a_conversation_that_is_left(
    session_database: SessionDatabase, recorder: SessionRecorder, awaits: bool
) -> None:
    lines = [init()] if awaits else [init(), answer("m1", call("c1"))]
    converse_for_ever = converse(SessionSdk(recorder, user_id=A), lines, ends=False)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(converse_for_ever, 0.3)
    expected = {"attempt:run-1": (False, 0)} if awaits else {"m1": (True, 120)}
    assert await written(session_database, recorder, "measured, tokens_in") == expected
    assert await runs(session_database) == {"run-1": "cancelled"}
    assert await steps(session_database) == ({} if awaits else {("run-1", "c1"): ("Bash", "failed")})
    assert recorder.quiet.open == set()


async def test_what_is_open_when_the_recorder_closes(session_database: SessionDatabase) -> None:
    options = ClaudeAgentOptions(env={"CLAUDE_CONFIG_DIR": "/nowhere"})
    async with session_database.recorder() as recorder:
        client = SessionSdk(recorder, user_id=A).client(options, Scripted([init()], ends=False))
        await client.connect()
        await client.query("What is it?")
        await anext(client.receive_messages())
    assert await events(session_database, "measured") == {"attempt:run-1": (False,)}
    assert await runs(session_database) == {"run-1": "cancelled"}
    await client.disconnect()


async def test_two_queries_at_once_stay_apart(session_database: SessionDatabase, recorder: SessionRecorder) -> None:
    sdk = SessionSdk(recorder, user_id=A)
    turn = [init(), answer("m1"), result(120, 64)]

    def of_session(number: int) -> list[Fields]:
        text = json.dumps(turn).replace(SESSION, f"s{number}")
        return list(json.loads(re.sub(r"(m1|run-1)", rf"\1-{number}", text)))

    await asyncio.gather(*(converse(sdk, of_session(number)) for number in range(2)))
    await recorder.flush()
    assert await totals(session_database) == {"s0": (120, 64, 0, 0), "s1": (120, 64, 0, 0)}
    assert await runs(session_database) == {"run-1-0": "completed", "run-1-1": "completed"}


async def test_a_query_awaits_nothing_of_the_database() -> None:
    """Nothing listens at the address, and the messages come."""
    url = "postgresql://nobody@127.0.0.1:9/nothing"
    async with SessionDatabase.connect(url) as db, db.recorder(drain_within=0.1) as recorder:
        await converse(SessionSdk(recorder, user_id=A), [init(), answer("m1"), result(120, 64)])
        assert recorder.snapshot().pending > 0


@pytest.mark.parametrize("awaits", [True, False])
async def test_a_transcript_takes_the_place_of_the_messages(
    session_database: SessionDatabase, recorder: SessionRecorder, tmp_path: Path, awaits: bool
) -> None:
    """What it had before the process began is another process's, and what is open at the end was cancelled."""
    now = datetime.now(UTC)

    def of_now(line: Fields, second: float) -> Fields:
        return line | {"timestamp": (now + timedelta(seconds=second)).isoformat()}

    old = [transcripts.prompt(0, "Before.", session=SESSION, promptId="p0")]
    old += [transcripts.answer(1, "m0", (9, 0, 0, 9), session=SESSION)]
    lines = [of_now(transcripts.prompt(0, "Now.", session=SESSION, promptId="p1"), 1)]
    lines += [
        of_now(transcripts.answer(1, "m1", (120, 0, 0, 64), session=SESSION, tool=("c1", "Bash"), stop="tool_use"), 2)
    ]
    if awaits:
        lines += [of_now(transcripts.result(2, "c1", session=SESSION), 3)]
    transcripts.write(tmp_path / "projects" / "work" / f"{SESSION}.jsonl", [*old, *lines])
    options = ClaudeAgentOptions(env={"CLAUDE_CONFIG_DIR": str(tmp_path)}, resume=SESSION)
    query = SessionSdk(recorder, user_id=A).query(
        prompt="Now.", options=options, transport=Scripted([init(), answer("m1", call("c1"))])
    )
    assert [type(message).__name__ async for message in query] == ["SystemMessage", "AssistantMessage"]
    found = await written(session_database, recorder, "measured, tokens_in, tokens_out")
    assert found.pop("m1") == (True, 120, 64)
    assert list(found.values()) == ([(False, 0, 0)] if awaits else [])
    assert await runs(session_database) == {"p1": "cancelled"}
    assert await steps(session_database) == {("p1", "c1"): ("Bash", "completed" if awaits else "failed")}


@pytest.mark.parametrize("content", [True, False])
async def test_content(session_database: SessionDatabase, recorder: SessionRecorder, content: bool) -> None:
    told = {"type": "tool_result", "tool_use_id": "c1", "content": "no sesame", "is_error": True}
    user = {"type": "user", "message": {"role": "user", "content": [told]}, "session_id": SESSION, "uuid": "u1"}
    lines = [init(), answer("m1", call("c1")), user, answer("m2"), result(240, 6)]
    await converse(SessionSdk(recorder, user_id=A, content=content), lines)
    await recorder.flush()
    text = str(await everything(session_database))
    found = [word for word in ("sesame", "It is 7.", "What is it?") if word in text]
    assert found == (["sesame", "It is 7.", "What is it?"] if content else [])
    assert await steps(session_database) == {("run-1", "c1"): ("Bash", "failed")}


async def test_the_session_around_and_an_unknown_owner(
    session_database: SessionDatabase, recorder: SessionRecorder
) -> None:
    sdk = SessionSdk(recorder)
    await converse(sdk, [init(), answer("m1"), result(120, 64)])
    await eventually(lambda: recorder.snapshot().failures > 0)
    async with recorder.session("host", A):
        await converse(sdk, [init(), answer("m1"), result(120, 64)])
    await recorder.flush()
    parents = f"SELECT parent_session_id FROM session_lifecycle.session_records WHERE session_id = '{SESSION}'"
    assert await rows(session_database, parents) == [("host",)]
    assert len(await events(session_database, "model")) == 2


async def test_messages_that_are_broken_disturb_nobody(
    session_database: SessionDatabase, recorder: SessionRecorder
) -> None:
    odd = answer("m2")
    odd["message"]["usage"] = {"input_tokens": "many", "output_tokens": -1, "cache_creation": 7}
    task = {"type": "system", "subtype": "task_updated", "patch": "odd", "session_id": SESSION}
    lines = [init(), task, answer("m1"), odd, result(120, 64, modelUsage={MODEL: "odd"})]
    await converse(SessionSdk(recorder, user_id=A), lines)
    found = await written(session_database, recorder, "measured, tokens_in")
    assert found == {"m1": (True, 120), "m2": (False, 0)}


# Claude Code itself


def options_of(server: ModelServer, folder: Path) -> ClaudeAgentOptions:
    work = folder / "work"
    work.mkdir(exist_ok=True)
    environment = {
        "ANTHROPIC_API_KEY": "none",
        "ANTHROPIC_BASE_URL": server.url,
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
        "CLAUDE_CODE_MAX_RETRIES": "2",
        "CLAUDE_CONFIG_DIR": str(folder / "claude"),
        "HOME": str(folder),
    }
    return ClaudeAgentOptions(
        env=environment,
        cwd=str(work),
        model=MODEL,
        tools=["Bash", "Agent"],
        allowed_tools=["Bash", "Agent"],
        setting_sources=[],
    )


def counts_of(served: Served) -> tuple[int, ...]:
    parts = (served.cache_read_tokens, served.cache_write_tokens, served.cache_write_1h_tokens)
    return (served.tokens_in, served.tokens_out, *parts)


async def ask(sdk: SessionSdk, words: str, options: ClaudeAgentOptions) -> Any:
    """The result of a query."""
    last: Any = None
    async for message in sdk.query(prompt=words, options=options):
        last = message
    return last


@needs_program
async def test_claude_code_with_a_sub_agent_and_a_resume(
    session_database: SessionDatabase, recorder: SessionRecorder, server: ModelServer, tmp_path: Path
) -> None:
    sdk = SessionSdk(recorder, user_id=A)
    options = options_of(server, tmp_path)
    told = await ask(sdk, "[[tools:Agent]] {{tools:Bash}} [[once429:a]]", options)
    await ask(sdk, "And now?", replace(options, resume=told.session_id))
    assert [one.status for one in server.served][:2] == [429, 200]
    expected = {one.response_id: counts_of(one) for one in server.answered}
    assert await written(session_database, recorder, COUNTS) == expected
    assert len(expected) >= 5
    assert {session for (session,) in (await events(session_database, "session_id")).values()} == {told.session_id}
    found = await runs(session_database, "agent_name, parent_run_id, parent_tool_call_id, status")
    assert {values[3] for values in found.values()} == {"completed"}
    [(child, (_, parent, tool_call, _))] = [item for item in found.items() if item[1][0] == "general-purpose"]
    assert parent in found
    assert tool_call == server.answered[0].tool_calls[0][0]
    names = {(name, ended) for name, ended in (await steps(session_database)).values()}
    assert names == {("Agent", "completed"), ("Bash", "completed")}
    assert child in {run for (run,) in (await events(session_database, "run_id")).values()}
    # An import of the same transcripts adds nothing.
    await bring(session_database, "claude-code", tmp_path / "claude" / "projects", content=False)
    assert await written(session_database, recorder, COUNTS) == expected
    assert await totals(session_database) == {
        told.session_id: (*(sum(one[place] for one in expected.values()) for place in range(2)), 0, 0)
    }


@needs_program
async def test_claude_code_that_fails_tells_no_usage_or_is_cancelled(
    session_database: SessionDatabase, recorder: SessionRecorder, server: ModelServer, tmp_path: Path
) -> None:
    sdk = SessionSdk(recorder, user_id=A)
    options = options_of(server, tmp_path)
    with pytest.raises(Exception, match="API Error"):
        await ask(sdk, "[[err500]]", options)
    found = await written(session_database, recorder, f"measured, errored, model, {COUNTS}")
    assert list(found.values()) == [(True, True, None, 0, 0, 0, 0, 0)]
    await ask(sdk, "[[nousage]]", options)
    found = await written(session_database, recorder, f"measured, errored, {COUNTS}")
    assert list(found.values())[1:] == [(False, False, 0, 0, 0, 0, 0)]
    seen = len(server.served)
    task = asyncio.create_task(ask(sdk, "[[slow]]", options))
    await eventually(lambda: len(server.served) > seen)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    found = await written(session_database, recorder, f"measured, errored, {COUNTS}")
    assert list(found.values())[2:] == [(False, False, 0, 0, 0, 0, 0)]
    assert sorted((await runs(session_database)).values()) == ["cancelled", "completed", "failed"]


@needs_program
async def test_claude_code_by_a_client_that_interrupts(
    session_database: SessionDatabase, recorder: SessionRecorder, server: ModelServer, tmp_path: Path
) -> None:
    options = replace(options_of(server, tmp_path), include_partial_messages=True)
    async with SessionSdk(recorder, user_id=A, content=True).client(options) as client:
        await client.query("What is it?")
        assert [message async for message in client.receive_response()]
        await client.query("[[slow]]")
        async for message in client.receive_messages():
            if isinstance(message, StreamEvent) and message.event["type"] == "content_block_delta":
                break
        await client.interrupt()
        assert [message async for message in client.receive_response()]
    found = await written(session_database, recorder, f"partial, {COUNTS}")
    # The whole input is told, and of the output what the response began with.
    assert list(found.values()) == [(False, *counts_of(server.served[0])), (True, 7121, 3, 5000, 2000, 500)]
    assert sorted((await runs(session_database)).values()) == ["cancelled", "completed"]
    said = "SELECT role, content FROM session_lifecycle.session_messages ORDER BY created_at"
    assert (await rows(session_database, said))[:2] == [("user", "What is it?"), ("assistant", server.answer)]


@needs_program
async def test_claude_code_stops_where_a_budget_would_be_exceeded(
    session_database: SessionDatabase, recorder: SessionRecorder, server: ModelServer, tmp_path: Path
) -> None:
    sdk = SessionSdk(recorder, user_id=A, budgets=session_database.budgets)
    uses_up = False

    async def hook(*_: Any) -> Any:
        if uses_up:
            await limit(session_database, limit_usd=None, limit_tokens=1)
        return {}

    options = replace(options_of(server, tmp_path), hooks={"PostToolUse": [HookMatcher(hooks=[hook])]})
    await limit(session_database, limit_usd=None, limit_tokens=100_000)

    async def turn(client: Any, words: str) -> Any:
        await client.query(words)
        last = [message async for message in client.receive_response()][-1]
        await recorder.flush()
        return last

    told = await ask(sdk, "[[tools:Bash]]", options)
    assert (told.is_error, told.num_turns, len(server.served)) == (False, 2, 2)
    async with sdk.client(options) as client:
        # A budget that is used up while a tool runs: the answer of the tool is not sent.
        uses_up = True
        told = await turn(client, "[[tools:Bash]]")
        assert (told.terminal_reason, told.is_error) == ("hook_stopped", False)
        assert len(server.served) == 3
        # A budget that is used up before: the prompt is not sent.
        told = await turn(client, "Hello")
        assert told.result.startswith("Operation stopped by hook: budget 'b' would be exceeded")
        assert len(server.served) == 3
        uses_up = False
        await limit(session_database, limit_usd=None, limit_tokens=100_000)
        await turn(client, "Hello")
        assert len(server.served) == 4
    await assert_released(session_database)
    spent = sum(one.tokens_in + one.tokens_out for one in server.served)
    assert await assert_settled(session_database, recorder) == spent
    statuses = sorted((await runs(session_database)).values())
    assert statuses == ["cancelled", "cancelled", "completed", "completed"]
    assert recorder.snapshot().failures == 0


@needs_program
async def test_claude_code_asks_before_a_sub_agent_begins(
    session_database: SessionDatabase, recorder: SessionRecorder, server: ModelServer, tmp_path: Path
) -> None:
    check = BudgetCheck(session_database.budgets, needs={"tokens_in": 8_000})
    sdk, options = SessionSdk(recorder, user_id=A, budgets=check), options_of(server, tmp_path)
    await limit(session_database, limit_usd=None, limit_tokens=12_000)
    told = await ask(sdk, "[[tools:Agent]] {{tools:Bash}}", options)
    assert (told.terminal_reason, len(server.served)) == ("hook_stopped", 1)
    await assert_released(session_database)
    # Each of the five calls finds room, as what the one before has reserved makes way for what it has used. At most
    # the agent, the sub-agent, and the call that began it hold something at once.
    await recorder.flush()
    spent = (await used(session_database)).spent_tokens
    await limit(session_database, limit_usd=None, limit_tokens=spent + 5 * 7_200 + 3 * 8_000)
    told = await ask(sdk, "[[tools:Agent]] {{tools:Bash}}", options)
    assert (told.is_error, len(server.served)) == (False, 6)
    await assert_released(session_database)
    spent = sum(one.tokens_in + one.tokens_out for one in server.served)
    assert await assert_settled(session_database, recorder) == spent
    assert recorder.snapshot().failures == 0


@needs_program
async def test_queries_at_once_stay_within_a_limit(
    session_database: SessionDatabase, recorder: SessionRecorder, server: ModelServer, tmp_path: Path
) -> None:
    check = BudgetCheck(session_database.budgets, needs={"tokens_in": 8_000})
    sdk, options = SessionSdk(recorder, user_id=A, budgets=check), options_of(server, tmp_path)
    await limit(session_database, limit_usd=None, limit_tokens=16_000)
    told = await asyncio.gather(*(ask(sdk, "Hello", options) for _ in range(4)))
    refused = [one for one in told if str(one.result).startswith("Operation stopped by hook")]
    await assert_released(session_database)
    # A call keeps its reservation for a moment after its use is recorded. Another call may find no room then.
    assert len(server.served) == len(told) - len(refused)
    assert len(server.served) in {1, 2}
    assert await assert_settled(session_database, recorder) <= 16_000


async def assert_released(db: SessionDatabase) -> None:
    """Asserts that nothing is reserved soon: nobody waits for that."""

    async def are_released() -> bool:
        found = await used(db)
        return (found.reserved_tokens, found.reserved_usd) == (0, 0)

    await eventually(are_released)


class Hooked:
    """The hooks of a conversation, called as Claude Code calls them."""

    def __init__(self, recorder: SessionRecorder, budgets: Any, **more: Any) -> None:
        self.sdk = SessionSdk(recorder, **{"user_id": A, "budgets": budgets, **more})
        self.conversation = self.sdk.conversation(None)
        options = self.sdk.with_hooks(None, self.conversation)
        assert options is not None
        assert options.hooks is not None
        self.hooks: dict[Any, Any] = {name: matchers[0] for name, matchers in options.hooks.items()}

    async def __call__(self, name: str, tool: str | None = None, **more: Any) -> Any:
        told = {"session_id": "s1", "hook_event_name": name, **more}
        [hook] = self.hooks[name].hooks
        return await hook(told, tool, {"signal": None})

    async def once(self) -> Any:
        answered = await self("UserPromptSubmit", prompt="Hello")
        self.sdk.close(self.conversation)
        return answered


async def test_what_the_hooks_of_budgets_answer(session_database: SessionDatabase, recorder: SessionRecorder) -> None:
    def hooked(budgets: Any, **more: Any) -> Hooked:
        return Hooked(recorder, budgets, **more)

    bare = SessionSdk(recorder, user_id=A)
    assert bare.with_hooks(None, bare.conversation(None)) is None
    await limit(session_database, limit_usd=None, limit_tokens=100)
    ours = session_database.budgets
    assert await hooked(BudgetCheck(ours, needs={"tokens_in": 100})).once() == {}
    await assert_released(session_database)
    stopped = await hooked(BudgetCheck(ours, needs={"tokens_in": 101})).once()
    assert stopped == {"continue_": False, "stopReason": "budget 'b' would be exceeded by 1 tokens"}
    await limit(session_database, limit_usd=1)
    # Nobody knows the model, so a need in tokens has no price.
    assert (await hooked(BudgetCheck(ours, needs={"tokens_in": 100})).once())["continue_"] is False
    assert await hooked(BudgetCheck(ours, needs={"cost_usd": 1})).once() == {}
    await assert_released(session_database)
    await recorder.flush()
    assert recorder.snapshot().failures == 0
    async with SessionDatabase.connect(AWAY, settings=Settings(retries=0)) as away:
        assert await hooked(away.budgets)("UserPromptSubmit") == {}
        refusing = hooked(BudgetCheck(away.budgets, on_unavailable="refuse"))
        assert (await refusing("UserPromptSubmit"))["continue_"] is False
    assert await hooked(ours, user_id=None)("UserPromptSubmit") == {}
    await eventually(lambda: recorder.snapshot().failures == 3)


async def test_each_agent_reserves_one_call(session_database: SessionDatabase, recorder: SessionRecorder) -> None:
    """However many tools answer at once, a model is called once for them."""
    check = BudgetCheck(session_database.budgets, needs={"tokens_in": 40})
    await limit(session_database, limit_usd=None, limit_tokens=100)
    first, other = Hooked(recorder, check), Hooked(recorder, check)

    async def reserved() -> Any:
        return (await used(session_database)).reserved_tokens

    assert await first("UserPromptSubmit") == {}
    for call in ("c1", "c2"):
        assert await first("PostToolUse", call) == {}
    assert await reserved() == 40
    # The same session, continued by another process.
    assert await other("UserPromptSubmit") == {}
    assert await reserved() == 80
    assert (await Hooked(recorder, check)("UserPromptSubmit"))["continue_"] is False
    other.sdk.close(other.conversation)

    async def is_released() -> bool:
        return bool(await reserved() == 40)

    await eventually(is_released)
    # The agent's call is over when it calls a tool, and a sub-agent's first call is reserved in its place.
    assert await first("PreToolUse", "c3") == {}
    assert await reserved() == 40
    assert await first("PostToolUse", "c4", agent_id="a1") == {}
    assert await reserved() == 80
    refused = await first("PreToolUse", "c5")
    assert (refused["continue_"], refused["hookSpecificOutput"]["permissionDecision"]) == (False, "deny")
    await first("SubagentStop", agent_id="a1")
    await eventually(is_released)
    # A tool that failed began no sub-agent.
    assert await first("PostToolUseFailure", "c3") == {}
    assert await reserved() == 40
    first.sdk.close(first.conversation)
    await assert_released(session_database)
    await recorder.flush()
    assert recorder.snapshot().failures == 0


def test_without_the_sdk_the_import_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "claude_agent_sdk", None)
    monkeypatch.delitem(sys.modules, SessionSdk.__module__)
    with pytest.raises(ImportError, match=re.escape("pip install 'session-lifecycle[claude-agent-sdk]'")):
        importlib.import_module(SessionSdk.__module__)
