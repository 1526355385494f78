"""Failures of the adapter of OpenAI Agents: they are counted and logged, and the agent goes on."""

import asyncio
from typing import Any, cast

from agents.testing import ScriptedModel, assistant_message

from session_lifecycle import SessionDatabase
from support import books
from support.broken import Broken
from support.eventually import eventually
from support.model_apis.dialect import ANSWER
from support.model_server import ModelServer
from support.runtimes.openai_agents import MakeModel, agent_of, hooks_of, run
from support.scripts import refusal_without


async def test_no_owner_is_a_loss_that_is_told_once(
    session_database: SessionDatabase, server: ModelServer, make_model: MakeModel
) -> None:
    lost: list[str] = []
    async with session_database.recorder(on_lost=lambda _, error: lost.append(str(error))) as recorder:
        result = await run(agent_of(make_model("chat")), "[[tools]] x", hooks_of(recorder, user_id=None))
    assert result.final_output == ANSWER
    assert len(lost) == recorder.snapshot().failures == 1
    assert "user_id: got None" in lost[0]
    assert await books.events(session_database) == {}


async def test_a_broken_value_of_the_runtime_disturbs_nobody(session_database: SessionDatabase) -> None:
    lost: list[str] = []
    async with session_database.recorder(on_lost=lambda _, error: lost.append(str(error))) as recorder:
        hooks, broken = hooks_of(recorder), cast(Any, Broken())
        await hooks.on_agent_start(broken, broken)
        await hooks.on_llm_start(broken, broken, None, broken)
        await hooks.on_llm_end(broken, broken, broken)
        await hooks.on_tool_start(broken, broken, broken)
        await hooks.on_tool_end(broken, broken, broken, broken)
        await hooks.on_handoff(broken, broken, broken)
        await hooks.on_agent_end(broken, broken, broken)
        for told in (hooks.on_trace_start, hooks.on_trace_end, hooks.on_span_start, hooks.on_span_end):
            told(broken)
        await eventually(lambda: len(lost) >= 10)
    assert recorder.snapshot().failures == len(lost)
    assert all(text == "SessionHooks failed (RuntimeError)" for text in lost)


async def test_a_database_that_does_not_answer_holds_up_no_agent() -> None:
    async with (
        SessionDatabase.connect("postgresql://nobody@127.0.0.1:1/none") as db,
        db.recorder(drain_within=0) as recorder,
    ):
        async with asyncio.timeout(20):
            model = ScriptedModel([[assistant_message("ok")]])
            result = await run(agent_of(model), "Hello", hooks_of(recorder))
        assert result.final_output == "ok"
        snapshot = recorder.snapshot()
        assert (snapshot.failures, snapshot.items) == (0, 0)
        assert snapshot.pending > 0


def test_without_openai_agents_the_import_names_the_extra() -> None:
    refusal = refusal_without("agents", "openai_agents")
    assert "pip install 'session-lifecycle[openai-agents]'" in refusal
