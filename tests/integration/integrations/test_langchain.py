"""LangChain and LangGraph: captured logs replayed, and real runs against a stand-in of the model APIs."""

import asyncio
import gc
import importlib
import json
import sys
import threading
from typing import Any
from uuid import uuid4

import pytest
from langchain_anthropic import ChatAnthropic
from langchain_core.caches import InMemoryCache
from langchain_core.language_models import BaseChatModel
from langchain_core.language_models.fake_chat_models import FakeMessagesListChatModel
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.outputs import ChatGeneration, Generation, LLMResult
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnableLambda
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.types import Command, interrupt

from session_lifecycle import SessionDatabase
from session_lifecycle.errors import BudgetExceededError
from session_lifecycle.integrations.budget_check import BudgetCheck
from session_lifecycle.integrations.langchain import SessionCallbackHandler
from session_lifecycle.writing.recorder import SessionRecorder
from support.books import items_needed, open_parts
from support.budget_checks import assert_checked, assert_settled
from support.budgets import limit, used
from support.eventually import eventually
from support.model_server import ModelServer, Served
from support.transcripts import SHARED, events, everything, rows, runs, steps, written
from support.usage import A

Fields = dict[str, Any]
LOGS = SHARED / "payloads"
needs_logs = pytest.mark.skipif(not SHARED.is_dir(), reason="the logs are not beside the project")
COUNTS = (
    "tokens_in, tokens_out, cache_read_tokens, cache_write_tokens, "
    "coalesce((parts->>'cache_write_1h_tokens')::int, 0), reasoning_tokens"
)
NO_COUNTS = (0, 0, 0, 0, 0, 0)


class Replay:
    """Hands the lines of a log to a handler, as LangChain does."""

    def __init__(self, handler: SessionCallbackHandler) -> None:
        self.handler = handler
        self.outermost: list[str] = []

    def line(self, line: Fields) -> None:  # noqa: C901 - one case for each callback
        method, ids = line["method"], line.get("ids", {})
        run_id: Any = ids.get("run") or line.get("run")
        common = {"run_id": run_id, "parent_run_id": ids.get("parent"), "tags": ids.get("tags")}
        serialized = {"id": line.get("serialized_id"), "name": line.get("name")}
        match method:
            case "on_chain_start":
                if ids.get("parent") is None:
                    self.outermost.append(run_id)
                metadata = {"langgraph_node": line.get("node"), "langgraph_checkpoint_ns": line.get("ns")}
                self.handler.on_chain_start(None, {}, **common, metadata=metadata, name=line["name"])
            case "on_chat_model_start":
                told = {"invocation_params": line["invocation_params"], "name": line.get("name")}
                messages = [[HumanMessage("What is it?")]]
                self.handler.on_chat_model_start(serialized, messages, **common, metadata=ids["metadata"], **told)
            case "on_llm_end":
                self.handler.on_llm_end(self.result(line["response"]), **common)
            case "on_llm_error":
                is_left = line["error"]["exc"] == "builtins.GeneratorExit"
                error = GeneratorExit() if is_left else ServerError(line["error"].get("str"))
                self.handler.on_llm_error(error, **common, response=self.result(line.get("response")))
            case "on_tool_start":
                told = {"tool_call_id": line["tool_call_id"], "inputs": line["inputs"]}
                self.handler.on_tool_start(serialized, line["input_str"], **common, **told)
            case "on_tool_end":
                self.handler.on_tool_end(ToolMessage("7", **line["output"]), **common)
            case "done":
                for outermost in self.outermost:
                    self.handler.on_chain_end({}, run_id=outermost)  # type: ignore[arg-type]  # the log shortens it
            case "on_llm_new_token(usage)" | "drained" | "break" | "raised":
                pass
            case _:
                raise AssertionError(method)

    @staticmethod
    def result(told: Fields | None) -> LLMResult:
        if told is None:
            return LLMResult(generations=[])
        fields = {name: told[name] for name in ("usage_metadata", "response_metadata", "tool_calls") if name in told}
        message = AIMessage("It is 7.", id=told.get("msg_id"), **fields)
        return LLMResult(generations=[[ChatGeneration(message=message, generation_info=told.get("generation_info"))]])


class ServerError(Exception):
    status_code = 500


async def replay(db: SessionDatabase, log: list[Fields], **options: Any) -> None:
    async with db.recorder() as recorder:
        replaying = Replay(SessionCallbackHandler(recorder, user_id=A, **options))
        for line in log:
            replaying.line(line)
    assert recorder.snapshot().failures == 0


def lines_of(name: str) -> list[Fields]:
    return [json.loads(line) for line in (LOGS / f"langchain-{name}.jsonl").read_text().splitlines()]


OPENAI = (1200, 80, 1024, 64, 0, 48)
ROWS = [
    ("chat-invoke", "d94fb7d10fc6", "gpt-5-2025-08-07", OPENAI, True, False, "completed"),
    ("chat-stream-usage-on", "ccbfcc37feb4", "gpt-5-2025-08-07", OPENAI, True, False, "completed"),
    ("chat-stream-usage-off", "432e86b1e8f7", "gpt-5-2025-08-07", NO_COUNTS, False, False, "completed"),
    ("chat-cancel", "7ef215b2d719", "gpt-5", NO_COUNTS, False, False, "cancelled"),
    ("chat-err500", "4af471c559b9", "gpt-5", NO_COUNTS, True, True, "failed"),
    ("responses-invoke", "33fc78c4e580", "gpt-5-2025-08-07", OPENAI, True, False, "completed"),
    (
        "anthropic-invoke",
        "76fa32adc989",
        "claude-sonnet-4-5",
        (7120, 64, 5000, 2000, 500, 20),
        True,
        False,
        "completed",
    ),
    ("anthropic-nousage-stream", "1f82084983fa", "claude-sonnet-4-5", NO_COUNTS, False, False, "completed"),
    ("anthropic-cancel-stream", "746e60bc09a8", "claude-sonnet-4-5", NO_COUNTS, False, False, "cancelled"),
]


@needs_logs
@pytest.mark.parametrize("row", ROWS, ids=[f"H{number}" for number in range(17, 26)])
async def test_H17_and_H18_and_H19_and_H20_and_H21_and_H22_and_H23_and_H24_and_H25_captured_calls_of_a_model(
    session_database: SessionDatabase, row: tuple[str, str, str, tuple[int, ...], bool, bool, str]
) -> None:
    name, run_id, model, counts, measured, errored, status = row
    log = lines_of(name)
    await replay(session_database, log)
    provider = "anthropic" if name.startswith("anthropic") else "openai"
    expected = {run_id: (run_id, provider, model, *counts, measured, errored)}
    columns = f"run_id, provider, model, {COUNTS}, measured, errored"
    assert await events(session_database, columns) == expected
    assert await runs(session_database, "status, agent_name") == {run_id: (status, None)}
    before = [len(table) for table in await everything(session_database)]
    await replay(session_database, log)
    assert await events(session_database, columns) == expected
    assert [len(table) for table in await everything(session_database)] == before


@needs_logs
async def test_H26_a_captured_graph_with_tools(session_database: SessionDatabase) -> None:
    log = lines_of("langgraph-tools")
    for _ in range(2):
        await replay(session_database, log)
        run = "e9911cc31330"
        assert await events(session_database, f"session_id, run_id, model, {COUNTS}") == {
            "ab3400108428": ("thread-9", run, "gpt-5-2025-08-07", 1200, 80, 1024, 64, 0, 48),
            "1f1000166646": ("thread-9", run, "gpt-5-2025-08-07", 1300, 81, 1024, 64, 0, 48),
            "3d7f63fb5589": ("thread-9", run, "gpt-5-2025-08-07", 1400, 82, 1024, 64, 0, 48),
        }
        assert await runs(session_database, "status, agent_name, parent_run_id") == {
            run: ("completed", "main_agent", None)
        }
        assert await steps(session_database) == {
            (run, "call_local0068"): ("get_weather", "completed"),
            (run, "call_local0069"): ("get_time", "completed"),
        }


# Against the stand-in


def model_of(kind: str, server: ModelServer, **options: Any) -> BaseChatModel:
    if kind == "anthropic":
        model: dict[str, Any] = {"model_name": "claude-sonnet-4-6", "base_url": server.url, "api_key": "none"}
        return ChatAnthropic(**model, **options)
    told = {"model": "gpt-5", "base_url": server.openai, "api_key": "none", "stream_usage": True}
    return ChatOpenAI(**told, use_responses_api=kind == "responses", **options)


def counts_of(served: Served, *, is_split: bool = True) -> tuple[int, ...]:
    hour = served.cache_write_1h_tokens if is_split else 0
    parts = (served.cache_read_tokens, served.cache_write_tokens, hour, served.reasoning_tokens)
    return (served.tokens_in, served.tokens_out, *parts)


async def books(db: SessionDatabase, recorder: SessionRecorder, columns: str = COUNTS) -> list[tuple[Any, ...]]:
    """The events in the order in which they were recorded, without their keys."""
    return list((await written(db, recorder, columns)).values())


KINDS = pytest.mark.parametrize("kind", ["chat", "responses", "anthropic"])


@KINDS
async def test_a_plain_call_and_a_stream(
    session_database: SessionDatabase, recorder: SessionRecorder, server: ModelServer, kind: str
) -> None:
    handler = SessionCallbackHandler(recorder, user_id=A, session_id="s1")
    model = model_of(kind, server)
    await model.ainvoke("What is it?", config={"callbacks": [handler]})
    await asyncio.to_thread(model.invoke, "What is it?", config={"callbacks": [handler]})
    chunks = [chunk async for chunk in model.astream("What is it?", config={"callbacks": [handler]})]
    assert len(chunks) > 1
    first, second, streamed = server.served
    # Streaming, langchain-anthropic leaves out how long the cache keeps what was written.
    assert await books(session_database, recorder) == [
        counts_of(first),
        counts_of(second),
        counts_of(streamed, is_split=False),
    ]
    named = set(await books(session_database, recorder, "session_id, provider, model, service_tier, measured"))
    provider = "anthropic" if kind == "anthropic" else "openai"
    assert named == {("s1", provider, first.served_model, "standard", True)}
    assert set((await runs(session_database)).values()) == {"completed"}
    assert recorder.snapshot().items == await items_needed(session_database)


@KINDS
async def test_retries_of_the_client_are_one_event(
    session_database: SessionDatabase, recorder: SessionRecorder, server: ModelServer, kind: str
) -> None:
    handler = SessionCallbackHandler(recorder, user_id=A)
    model = model_of(kind, server, max_retries=3)
    await model.ainvoke("[[once429:a]] [[once500:b]]", config={"callbacks": [handler]})
    assert [one.status for one in server.served] == [429, 500, 200]
    assert await books(session_database, recorder) == [counts_of(server.served[-1])]


@KINDS
async def test_an_answer_without_usage_is_unmeasured(
    session_database: SessionDatabase, recorder: SessionRecorder, server: ModelServer, kind: str
) -> None:
    handler = SessionCallbackHandler(recorder, user_id=A)
    model = model_of(kind, server)
    await model.ainvoke("[[nousage]]", config={"callbacks": [handler]})
    assert [chunk async for chunk in model.astream("[[nousage]]", config={"callbacks": [handler]})]
    found = await books(session_database, recorder, f"measured, errored, {COUNTS}")
    assert found == [(False, False, *NO_COUNTS)] * 2


@KINDS
async def test_a_service_tier(
    session_database: SessionDatabase, recorder: SessionRecorder, server: ModelServer, kind: str
) -> None:
    handler = SessionCallbackHandler(recorder, user_id=A)
    await model_of(kind, server).ainvoke("[[priority]]", config={"callbacks": [handler]})
    [served] = server.served
    found = await books(session_database, recorder, f"service_tier, {COUNTS}")
    assert found == [("priority", *counts_of(served))]


@KINDS
async def test_an_error_of_the_provider(
    session_database: SessionDatabase, recorder: SessionRecorder, server: ModelServer, kind: str
) -> None:
    handler = SessionCallbackHandler(recorder, user_id=A, session_id="s1")
    model = model_of(kind, server, max_retries=0)
    with pytest.raises(Exception, match="500"):
        await model.ainvoke("[[err500]]", config={"callbacks": [handler]})
    with pytest.raises(Exception, match=r".+"):
        await model.ainvoke("[[broken]]", config={"callbacks": [handler]})
    # A connection that breaks says nothing about what was used.
    found = await books(session_database, recorder, f"measured, errored, {COUNTS}")
    assert found == [(True, True, *NO_COUNTS), (False, False, *NO_COUNTS)]
    assert set((await runs(session_database)).values()) == {"failed"}


@KINDS
async def test_cancelled_calls_are_unmeasured(
    session_database: SessionDatabase, recorder: SessionRecorder, server: ModelServer, kind: str
) -> None:
    handler = SessionCallbackHandler(recorder, user_id=A, session_id="s1")
    model = model_of(kind, server, max_retries=0)
    config: Any = {"callbacks": [handler]}

    async def invoke() -> None:
        await model.ainvoke("[[slow]]", config=config)

    async def leave() -> None:
        async for _ in model.astream("[[slow]]", config=config):
            break
        gc.collect()

    task = asyncio.create_task(invoke())
    await eventually(lambda: len(server.served) == 1)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await asyncio.create_task(leave())
    await eventually(lambda: len(server.served) == 2)
    await asyncio.sleep(0)
    found = await books(session_database, recorder, f"measured, errored, {COUNTS}")
    assert found == [(False, False, *NO_COUNTS)] * 2
    assert set((await runs(session_database)).values()) == {"cancelled"}


async def test_a_cancelled_call_is_closed_when_the_recorder_closes(
    session_database: SessionDatabase, server: ModelServer
) -> None:
    async with session_database.recorder() as recorder:
        handler = SessionCallbackHandler(recorder, user_id=A)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await model_of("chat", server).ainvoke("[[slow]]", config={"callbacks": [handler]})
        await recorder.flush()
        assert await events(session_database, "measured") == {}
    assert list((await events(session_database, "measured")).values()) == [(False,)]
    assert list((await runs(session_database)).values()) == ["cancelled"]


async def test_a_graph_that_runs_when_the_recorder_closes_is_cancelled(session_database: SessionDatabase) -> None:
    outer = uuid4()
    async with session_database.recorder() as recorder:
        handler = SessionCallbackHandler(recorder, user_id=A)
        handler.on_chain_start(None, {}, run_id=outer, name="chain")
        handler.on_chat_model_start({}, [[]], run_id=uuid4(), parent_run_id=outer)
    assert list((await events(session_database, "measured")).values()) == [(False,)]
    assert await runs(session_database) == {str(outer): "cancelled"}


async def test_an_attempt_that_is_given_up_is_replaced_by_the_answer(
    session_database: SessionDatabase, recorder: SessionRecorder
) -> None:
    handler = SessionCallbackHandler(recorder, user_id=A, attempt_timeout=0.01)
    run_id = uuid4()
    handler.on_chat_model_start({}, [[HumanMessage("What is it?")]], run_id=run_id, metadata={"ls_provider": "openai"})
    await eventually(lambda: recorder.quiet.open == set())
    await recorder.flush()
    assert await runs(session_database) == {str(run_id): "cancelled"}
    handler.on_llm_end(answered(), run_id=run_id)
    assert await books(session_database, recorder, "measured, tokens_in") == [(True, 10)]
    assert await runs(session_database) == {str(run_id): "completed"}


def answered(*, tokens_in: Any = 10, tokens_out: Any = 2, **usage: Any) -> LLMResult:
    told: Any = {"input_tokens": tokens_in, "output_tokens": tokens_out, "total_tokens": 12} | usage
    message = AIMessage("It is 7.")
    message.usage_metadata = told
    return LLMResult(generations=[[ChatGeneration(message=message)]])


@tool
def get_weather(city: str) -> str:
    """Tells the weather."""
    return f"7 degrees in {city}"


@tool
def get_time(city: str) -> str:
    """Fails."""
    raise ValueError(f"no clock in {city}")


def agent_of(model: BaseChatModel, tools: list[Any], name: str, **options: Any) -> Any:
    """A graph of a model and tools that calls itself as long as the model calls tools."""
    bound = model.bind_tools(tools)

    async def think(state: MessagesState) -> Any:
        return {"messages": [await bound.ainvoke(state["messages"])]}

    async def act(state: MessagesState) -> Any:
        by_name = {one.name: one for one in tools}
        said: Any = state["messages"][-1]
        results: list[ToolMessage] = []
        for call in said.tool_calls:
            try:
                results.append(await by_name[call["name"]].ainvoke({**call, "type": "tool_call"}))
            except ValueError:
                results.append(ToolMessage("failed", tool_call_id=call["id"]))
        return {"messages": results}

    def goes_on(state: MessagesState) -> str:
        said: Any = state["messages"][-1]
        return "act" if said.tool_calls else "__end__"

    graph = StateGraph(MessagesState)
    graph.add_node("think", think)
    graph.add_node("act", act)
    graph.add_edge(START, "think")
    graph.add_conditional_edges("think", goes_on, ["act", "__end__"])
    graph.add_edge("act", "think")
    return graph.compile(name=name, **options)


@KINDS
async def test_a_graph_with_tools_and_a_checkpointer(
    session_database: SessionDatabase, recorder: SessionRecorder, server: ModelServer, kind: str
) -> None:
    handler = SessionCallbackHandler(recorder, user_id=A, content=True)
    graph = agent_of(model_of(kind, server), [get_weather, get_time], "main_agent", checkpointer=InMemorySaver())
    config: Any = {"callbacks": [handler], "configurable": {"thread_id": "thread-9"}}
    await graph.ainvoke({"messages": [("user", "[[tools]] What is it?")]}, config=config)
    await graph.ainvoke({"messages": [("user", "And now?")]}, config=config)
    assert len(server.served) == 4
    assert await books(session_database, recorder) == [counts_of(one) for one in server.served]
    told = await runs(session_database, "status, agent_name, session_id, parent_run_id")
    assert list(told.values()) == [("completed", "main_agent", "thread-9", None)] * 2
    found = list((await steps(session_database)).values())
    assert found == [("get_weather", "completed"), ("get_time", "failed")]
    said = await rows(
        session_database, "SELECT role, content FROM session_lifecycle.session_messages ORDER BY created_at"
    )
    assert said == [
        ("user", "[[tools]] What is it?"),
        ("assistant", server.answer),
        ("user", "And now?"),
        ("assistant", server.answer),
    ]
    outputs = await rows(session_database, "SELECT inputs, output FROM session_lifecycle.session_steps ORDER BY seq")
    assert ({"city": "Tartu"}, "7 degrees in Tartu") in outputs


@pytest.mark.parametrize("as_node", [False, True], ids=["tool", "node"])
async def test_a_sub_agent_is_a_run_of_its_own_and_counted_once(
    session_database: SessionDatabase, recorder: SessionRecorder, server: ModelServer, as_node: bool
) -> None:
    child = agent_of(model_of("chat", server), [get_weather], "child_agent")

    @tool
    async def ask(question: str) -> str:
        """Asks the child."""
        answer = await child.ainvoke({"messages": [("user", question)]})
        return str(answer["messages"][-1].content)

    if as_node:
        graph: Any = StateGraph(MessagesState)
        graph.add_node("kid", child)
        graph.add_edge(START, "kid")
        main, prompt = graph.compile(name="main_agent"), "[[tools:get_weather]]"
    else:
        main, prompt = agent_of(model_of("chat", server), [ask], "main_agent"), "[[tools:ask]] {{tools:get_weather}}"
    handler = SessionCallbackHandler(recorder, user_id=A)
    config: Any = {"callbacks": [handler], "configurable": {"thread_id": "t1"}}
    await main.ainvoke({"messages": [("user", prompt)]}, config=config)
    await recorder.flush()
    told = await runs(session_database, "agent_name, parent_run_id, parent_tool_call_id, status, session_id")
    [(outer, _)] = [item for item in told.items() if item[1][0] == "main_agent"]
    [(inner, _)] = [item for item in told.items() if item[1][0] == "child_agent"]
    call = None if as_node else server.served[0].tool_calls[0][0]
    assert told == {
        outer: ("main_agent", None, None, "completed", "t1"),
        inner: ("child_agent", outer, call, "completed", "t1"),
    }
    found = await books(session_database, recorder, f"run_id, {COUNTS}")
    calls = [inner, inner] if as_node else [outer, inner, inner, outer]
    assert found == [(run, *counts_of(one)) for run, one in zip(calls, server.served, strict=True)]


async def test_a_graph_that_is_cancelled(
    session_database: SessionDatabase, recorder: SessionRecorder, server: ModelServer
) -> None:
    handler = SessionCallbackHandler(recorder, user_id=A)
    graph = agent_of(model_of("chat", server), [get_weather], "main_agent")
    inputs = {"messages": [("user", "[[tools]] [[slow@1]]")]}
    task = asyncio.create_task(graph.ainvoke(inputs, config={"callbacks": [handler]}))
    await eventually(lambda: len(server.served) == 2)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    found = await books(session_database, recorder, f"measured, {COUNTS}")
    assert found == [(True, *counts_of(server.served[0])), (False, *NO_COUNTS)]
    assert list((await runs(session_database)).values()) == ["cancelled"]


async def test_two_runs_at_once_stay_apart(
    session_database: SessionDatabase, recorder: SessionRecorder, server: ModelServer
) -> None:
    handler = SessionCallbackHandler(recorder, user_id=A)
    graph = agent_of(model_of("chat", server), [get_weather], "main_agent")
    inputs = {"messages": [("user", "[[tools]]")]}
    configs: list[Any] = [{"callbacks": [handler], "configurable": {"thread_id": f"t{one}"}} for one in range(2)]
    await asyncio.gather(*(graph.ainvoke(inputs, config=config) for config in configs))
    await recorder.flush()
    sums = "SELECT session_id, tokens_in, tokens_out FROM session_lifecycle.session_records ORDER BY session_id"
    assert await rows(session_database, sums) == [("t0", 2500, 161), ("t1", 2500, 161)]
    assert open_parts(handler) == 0
    assert recorder.quiet.open == set()


# Traps, made here


async def run_chain(handler: SessionCallbackHandler, chain: Any, given: Any) -> None:
    await chain.ainvoke(given, config={"callbacks": [handler]})


class Fake(FakeMessagesListChatModel):
    """A model that says what it is made with."""

    def bind_tools(self, tools: Any, **kwargs: Any) -> Any:
        return self


def content_of(said: Any) -> Any:
    return said.content


async def test_a_chain_without_a_graph_is_one_run(session_database: SessionDatabase, recorder: SessionRecorder) -> None:
    handler = SessionCallbackHandler(recorder, user_id=A)
    usage: Any = {"input_tokens": 10, "output_tokens": 2, "total_tokens": 12}
    model = Fake(responses=[AIMessage("It is 7.", usage_metadata=usage)])
    chain = ChatPromptTemplate.from_messages([("user", "{words}")]) | model | RunnableLambda(content_of)
    config: Any = {"callbacks": [handler], "metadata": {"session_id": "chat-1"}, "run_name": "answer"}
    await chain.ainvoke({"words": "What is it?"}, config=config)
    assert await books(session_database, recorder, "session_id, tokens_in") == [("chat-1", 10)]
    sql = "SELECT name, status::text, agent_name FROM session_lifecycle.session_runs"
    assert await rows(session_database, sql) == [("answer", "completed", None)]


async def test_an_answer_of_langchains_cache_was_not_billed(
    session_database: SessionDatabase, recorder: SessionRecorder, server: ModelServer
) -> None:
    handler = SessionCallbackHandler(recorder, user_id=A, session_id="s1")
    model = model_of("chat", server, cache=InMemoryCache())
    for _ in range(2):
        await run_chain(handler, model, "What is it?")
    assert len(server.served) == 1
    assert await books(session_database, recorder) == [counts_of(server.served[0])]
    assert list((await runs(session_database)).values()) == ["completed"] * 2


async def test_retries_of_a_runnable_are_calls(
    session_database: SessionDatabase, recorder: SessionRecorder, server: ModelServer
) -> None:
    handler = SessionCallbackHandler(recorder, user_id=A)
    model = model_of("chat", server, max_retries=0).with_retry(stop_after_attempt=2, wait_exponential_jitter=False)
    await run_chain(handler, model, "[[once500:x]]")
    found = await books(session_database, recorder, f"errored, {COUNTS}")
    assert found == [(True, *NO_COUNTS), (False, *counts_of(server.served[1]))]
    assert list((await runs(session_database)).values()) == ["completed"]


PARTS = [
    # Both figures of Anthropic's writes, should a version fill all three.
    ({"cache_creation": 2000, "ephemeral_5m_input_tokens": 1500, "ephemeral_1h_input_tokens": 500}, (2000, 500, 0)),
    ({"cache_creation": 0, "ephemeral_5m_input_tokens": 1500, "ephemeral_1h_input_tokens": 500}, (2000, 500, 0)),
    ({"cache_creation": 2000}, (2000, 0, 0)),
    ({"priority_cache_read": 30, "priority": 4}, (0, 0, 30)),
    ({"flex_cache_read": 30, "flex_cache_creation": 7}, (7, 0, 30)),
    ({"cache_read": None, "cache_creation": None}, (0, 0, 0)),
]


@pytest.mark.parametrize(("details", "expected"), PARTS)
async def test_H23_parts_of_the_input(
    session_database: SessionDatabase, recorder: SessionRecorder, details: Fields, expected: tuple[int, ...]
) -> None:
    handler = SessionCallbackHandler(recorder, user_id=A)
    run_id = uuid4()
    handler.on_chat_model_start({}, [[]], run_id=run_id)
    handler.on_llm_end(answered(tokens_in=9000, input_token_details=details), run_id=run_id)
    columns = "cache_write_tokens, coalesce((parts->>'cache_write_1h_tokens')::int, 0), cache_read_tokens"
    assert await books(session_database, recorder, columns) == [expected]


async def test_a_text_model(session_database: SessionDatabase, recorder: SessionRecorder) -> None:
    handler = SessionCallbackHandler(recorder, user_id=A, content=True)
    run_id = uuid4()
    handler.on_llm_start({"name": "OpenAI"}, ["Once upon"], run_id=run_id, invocation_params={"model_name": "davinci"})
    told = {"token_usage": {"prompt_tokens": 3, "completion_tokens": 5}, "model_name": "davinci-002"}
    handler.on_llm_end(LLMResult(generations=[[Generation(text="a time")]], llm_output=told), run_id=run_id)
    assert await books(session_database, recorder, "model, tokens_in, tokens_out") == [("davinci-002", 3, 5)]
    said = "SELECT role, content FROM session_lifecycle.session_messages ORDER BY role"
    assert await rows(session_database, said) == [("assistant", "a time"), ("user", "Once upon")]


async def test_an_interrupt_is_no_failure(session_database: SessionDatabase, recorder: SessionRecorder) -> None:
    @tool
    def approve(question: str) -> str:
        """Asks a person."""
        return str(interrupt(question))

    call: Any = {"name": "approve", "args": {"question": "Go on?"}, "id": "call-1", "type": "tool_call"}
    model = Fake(responses=[AIMessage("", tool_calls=[call]), AIMessage("Done.")])
    graph = agent_of(model, [approve], "main_agent", checkpointer=InMemorySaver())
    handler = SessionCallbackHandler(recorder, user_id=A)
    config: Any = {"callbacks": [handler], "configurable": {"thread_id": "t1"}}
    await graph.ainvoke({"messages": [("user", "Go.")]}, config=config)
    await graph.ainvoke(Command(resume="yes"), config=config)
    await recorder.flush()
    assert list((await runs(session_database)).values()) == ["completed"] * 2
    assert [ended for _, ended in (await steps(session_database)).values()] == ["completed"] * 2
    assert len(await books(session_database, recorder)) == 2


async def test_a_tool_call_that_is_tried_again_is_two_steps(
    session_database: SessionDatabase, recorder: SessionRecorder
) -> None:
    handler = SessionCallbackHandler(recorder, user_id=A)
    outer: Any = uuid4()
    handler.on_chain_start(None, {}, run_id=outer, name="chain")
    for error in (ValueError("once"), None):
        one = uuid4()
        handler.on_tool_start({"name": "look"}, "", run_id=one, parent_run_id=outer, tool_call_id="call-1")
        if error is None:
            handler.on_tool_end(ToolMessage("7", tool_call_id="call-1"), run_id=one)
        else:
            handler.on_tool_error(error, run_id=one)
    handler.on_chain_end({}, run_id=outer)
    await recorder.flush()
    assert sorted((await steps(session_database)).values()) == [("look", "completed"), ("look", "failed")]
    calls = "SELECT DISTINCT tool_call_id FROM session_lifecycle.session_steps"
    assert await rows(session_database, calls) == [("call-1",)]


async def test_a_tool_and_a_retriever_by_themselves(
    session_database: SessionDatabase, recorder: SessionRecorder
) -> None:
    handler = SessionCallbackHandler(recorder, user_id=A, session_id="s1")
    assert await get_weather.ainvoke({"city": "Tartu"}, config={"callbacks": [handler]}) == "7 degrees in Tartu"
    with pytest.raises(ValueError, match="no clock"):
        await get_time.ainvoke({"city": "Tartu"}, config={"callbacks": [handler]})
    one = uuid4()
    handler.on_retriever_start({"name": "Shelf"}, "pears", run_id=one)
    handler.on_retriever_end([], run_id=one)
    await recorder.flush()
    assert sorted((await steps(session_database)).values()) == [
        ("Shelf", "completed"),
        ("get_time", "failed"),
        ("get_weather", "completed"),
    ]
    assert sorted((await runs(session_database)).values()) == ["completed", "completed", "failed"]


async def test_without_content_no_text_is_recorded(
    session_database: SessionDatabase, recorder: SessionRecorder, server: ModelServer
) -> None:
    secret = "sesame"

    @tool
    def fail(city: str) -> str:
        """Fails."""
        raise ValueError(secret + city)

    handler = SessionCallbackHandler(recorder, user_id=A)
    graph = agent_of(model_of("chat", server, max_retries=0), [fail], "main_agent")
    with pytest.raises(Exception, match="500"):
        await graph.ainvoke(
            {"messages": [("user", f"[[tools]] [[err500@1]] {secret}")]}, config={"callbacks": [handler]}
        )
    await recorder.flush()
    assert len((await steps(session_database)).values()) == 1
    text = str(await everything(session_database))
    assert [word for word in (secret, "Tartu", "degrees", "had an error") if word in text] == []
    assert "ValueError" in text


async def test_the_owner_and_the_session_around_the_run(
    session_database: SessionDatabase, recorder: SessionRecorder
) -> None:
    model = Fake(responses=[AIMessage("It is 7.")])
    handler = SessionCallbackHandler(recorder)
    async with recorder.session("chat-7", A) as session:
        with session.run("host") as run:
            await run_chain(handler, RunnableLambda(lambda words: words) | model, "What is it?")
    await recorder.flush()
    told = await runs(session_database, "session_id, parent_run_id")
    assert told.pop(run.run_id) == ("chat-7", None)
    assert list(told.values()) == [("chat-7", run.run_id)]
    assert {user for (user,) in await rows(session_database, "SELECT user_id FROM session_lifecycle.session_runs")} == {
        A
    }


async def test_an_unknown_owner_is_told_and_disturbs_nobody(
    session_database: SessionDatabase, recorder: SessionRecorder
) -> None:
    model = Fake(responses=[AIMessage("It is 7.")])
    await run_chain(SessionCallbackHandler(recorder), model, "What is it?")
    await eventually(lambda: recorder.snapshot().failures == 1)
    await recorder.flush()
    assert await runs(session_database) == {}


class Broken:
    """Raises at every attribute."""

    def __getattr__(self, name: str) -> Any:
        raise RuntimeError(name)


async def test_a_broken_object_of_the_runtime_disturbs_nobody(
    session_database: SessionDatabase, recorder: SessionRecorder
) -> None:
    handler = SessionCallbackHandler(recorder, user_id=A)
    run_id = uuid4()
    handler.on_chat_model_start({}, [[]], run_id=run_id)
    handler.on_llm_end(Broken(), run_id=run_id)
    await recorder.flush()
    assert recorder.snapshot().failures == 1
    assert await events(session_database, "measured") == {str(run_id): (False,)}
    assert await runs(session_database) == {str(run_id): "completed"}
    for count in ("many", -1, True, 1.5):
        one = uuid4()
        handler.on_chat_model_start({}, [[]], run_id=one)
        handler.on_llm_end(answered(tokens_in=count, tokens_out=count), run_id=one)
    await recorder.flush()
    assert recorder.snapshot().failures == 1
    assert len(await events(session_database, "measured")) == 5


async def test_parts_whose_end_is_never_told_are_given_up(
    recorder: SessionRecorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("session_lifecycle.integrations.adapter.MOST_OPEN", 2)
    handler = SessionCallbackHandler(recorder, user_id=A)
    for _ in range(5):
        outer = uuid4()
        handler.on_chain_start(None, {}, run_id=outer, name="chain")
        handler.on_chat_model_start({}, [[]], run_id=uuid4(), parent_run_id=outer)
    assert open_parts(handler) == 4  # chains, and calls
    assert len(recorder.quiet.open) == 4


async def test_a_call_awaits_nothing_of_the_database(server: ModelServer) -> None:
    """Nothing listens at the address, and the runtime's calls go on."""
    async with SessionDatabase.connect("postgresql://nobody@127.0.0.1:9/nothing") as db:
        recorder = db.recorder(drain_within=0.1)
        async with recorder:
            handler = SessionCallbackHandler(recorder, user_id=A)
            answer = await model_of("chat", server).ainvoke("What is it?", config={"callbacks": [handler]})
            assert answer.text == server.answer
            assert recorder.snapshot().pending > 0


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


def test_without_langchain_the_import_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "langchain_core.callbacks", None)
    monkeypatch.delitem(sys.modules, SessionCallbackHandler.__module__)
    with pytest.raises(ImportError, match=r"pip install 'session-lifecycle\[langchain\]'"):
        importlib.import_module(SessionCallbackHandler.__module__)
