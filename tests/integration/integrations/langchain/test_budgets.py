"""Budgets of the calls of LangChain."""

import asyncio
import threading
from typing import Any

import pytest
from langchain_core.caches import InMemoryCache
from langchain_core.language_models import BaseChatModel
from langchain_openai import ChatOpenAI

from session_lifecycle import SessionDatabase
from session_lifecycle.errors import BudgetExceededError
from session_lifecycle.integrations.budget_check import BudgetCheck
from session_lifecycle.integrations.langchain import SessionCallbackHandler
from session_lifecycle.writing.recorder import SessionRecorder
from support.budget_checks import assert_checked, assert_settled
from support.budgets import limit, used
from support.eventually import eventually
from support.model_server import ModelServer
from support.runtimes.langchain import agent_of, get_weather, model_of
from support.transcripts import runs
from support.usage import A


async def test_a_call_that_a_budget_refuses_raises(
    session_database: SessionDatabase, recorder: SessionRecorder, server: ModelServer
) -> None:
    def asked(budgets: Any, name: str) -> tuple[BaseChatModel, Any]:
        handler = SessionCallbackHandler(recorder, user_id=A, session_id="s1", budgets=budgets)
        told = {"model": name, "base_url": server.openai, "api_key": "none", "stream_usage": True}
        return ChatOpenAI(**told), {"callbacks": [handler]}

    async def plain(budgets: Any, name: str) -> None:
        model, config = asked(budgets, name)
        await model.ainvoke("What is it?", config=config)

    async def in_a_thread(budgets: Any, name: str) -> None:
        model, config = asked(budgets, name)
        await asyncio.to_thread(model.invoke, "What is it?", config=config)

    async def without_await(budgets: Any, name: str) -> None:
        model, config = asked(budgets, name)
        model.invoke("What is it?", config=config)

    async def stream(budgets: Any, name: str) -> None:
        model, config = asked(budgets, name)
        assert [chunk async for chunk in model.astream("What is it?", config=config)]

    async def graph(budgets: Any, name: str) -> None:
        model, config = asked(budgets, name)
        await agent_of(model, [], "main_agent").ainvoke({"messages": [("user", "Hello")]}, config=config)

    others = [in_a_thread, without_await, stream, graph]
    await assert_checked(session_database, recorder, server, plain, BudgetExceededError, others=others)
    statuses = list((await runs(session_database)).values())
    assert (statuses[-1], set(statuses)) == ("failed", {"completed", "failed"})


class NotedBudgets:
    """Notes the thread that asks."""

    def __init__(self, budgets: Any) -> None:
        self.budgets = budgets
        self.threads: list[str] = []

    async def reserve(self, *asked: Any, **more: Any) -> Any:
        self.threads.append(threading.current_thread().name)
        return await self.budgets.reserve(*asked, **more)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.budgets, name)


async def test_only_a_call_without_await_asks_in_another_thread(
    session_database: SessionDatabase, recorder: SessionRecorder, server: ModelServer
) -> None:
    budgets = NotedBudgets(session_database.budgets)
    handler = SessionCallbackHandler(recorder, user_id=A, session_id="s1", budgets=budgets)
    model = model_of("chat", server)
    await model.ainvoke("What is it?", config={"callbacks": [handler]})
    model.invoke("What is it?", config={"callbacks": [handler]})
    assert budgets.threads == [threading.main_thread().name, "session-lifecycle budgets"]


async def test_what_a_budget_reserves_for_tools_cached_and_cancelled_calls(
    session_database: SessionDatabase, recorder: SessionRecorder, server: ModelServer
) -> None:
    await limit(session_database, limit_usd=None, limit_tokens=100_000)
    check = BudgetCheck(session_database.budgets, needs={"tokens_in": 1_500, "tokens_out": 100})
    config: Any = {"callbacks": [SessionCallbackHandler(recorder, user_id=A, session_id="s1", budgets=check)]}
    graph = agent_of(model_of("chat", server), [get_weather], "main_agent")
    await graph.ainvoke({"messages": [("user", "[[tools]] What is it?")]}, config=config)
    cached = model_of("chat", server, cache=InMemoryCache())
    await cached.ainvoke("What is it?", config=config)
    await cached.ainvoke("What is it?", config=config)
    assert len(server.served) == 3
    slow = asyncio.create_task(model_of("chat", server).ainvoke("[[slow]]", config=config))
    await eventually(lambda: server.served[-1].case == ("slow",))
    assert (await used(session_database)).reserved_tokens >= 1_600
    slow.cancel()
    with pytest.raises(asyncio.CancelledError):
        await slow
    await eventually(lambda: is_free(session_database, recorder))
    spent = sum(one.tokens_in + one.tokens_out for one in server.served[:3])
    assert await assert_settled(session_database, recorder) == spent


async def is_free(db: SessionDatabase, recorder: SessionRecorder) -> bool:
    await recorder.flush()
    return bool((await used(db)).reserved_tokens == 0)
