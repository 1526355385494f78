"""Failures of the adapter of Pydantic AI: they are counted and logged, and the agent goes on."""

import asyncio
from types import SimpleNamespace
from typing import Any, cast

from pydantic_ai.models.test import TestModel

from session_lifecycle import SessionDatabase
from session_lifecycle.integrations.pydantic_ai import SessionCapability
from support import books
from support.broken import Broken
from support.model_server import ModelServer
from support.runtimes.pydantic_ai import agent_of
from support.scripts import refusal_without
from support.usage import A


async def test_no_owner_is_a_loss_that_is_told(server: ModelServer, session_database: SessionDatabase) -> None:
    lost: list[str] = []
    async with session_database.recorder(on_lost=lambda _, error: lost.append(str(error))) as recorder:
        result = await agent_of(SessionCapability(recorder), TestModel()).run("Hello")
    assert result.output
    assert recorder.snapshot().failures == 1
    assert "user_id: got None" in lost[0]
    assert await books.events(session_database) == {}


async def test_a_broken_value_of_the_runtime_disturbs_nobody(session_database: SessionDatabase) -> None:
    lost: list[str] = []
    async with session_database.recorder(on_lost=lambda _, error: lost.append(str(error))) as recorder:
        capability = SessionCapability(recorder, user_id=A)
        broken = cast(Any, Broken())
        context = SimpleNamespace(run_id="r", conversation_id="c", agent=None, prompt=None, run_step=1)

        async def answer(*_: Any) -> Any:
            await capability.before_model_request(cast(Any, context), broken)
            await capability.before_model_request(cast(Any, context), cast(Any, SimpleNamespace(model=None)))
            assert (
                await capability.after_model_request(cast(Any, context), request_context=broken, response=broken)
                is broken
            )
            return "the answer"

        answers: list[Any] = [await capability.wrap_run(one, handler=answer) for one in (broken, cast(Any, context))]
        assert answers == ["the answer", "the answer"]
    assert recorder.snapshot().failures == len(lost) >= 3
    assert all(text.startswith("SessionCapability failed (") for text in lost)


async def test_a_database_that_does_not_answer_holds_up_no_agent() -> None:
    async with (
        SessionDatabase.connect("postgresql://nobody@127.0.0.1:1/none") as db,
        db.recorder(drain_within=0) as recorder,
    ):
        async with asyncio.timeout(20):
            result = await agent_of(SessionCapability(recorder, user_id=A), TestModel()).run("Hello")
        assert result.output
        snapshot = recorder.snapshot()
        assert (snapshot.failures, snapshot.items) == (0, 0)
        assert snapshot.pending > 0


def test_without_pydantic_ai_the_import_names_the_extra() -> None:
    refusal = refusal_without("pydantic_ai", "pydantic_ai")
    assert "pip install 'session-lifecycle[pydantic-ai]'" in refusal
