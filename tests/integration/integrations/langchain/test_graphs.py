"""Which graphs, chains and tools of LangChain are runs and steps."""

import asyncio
from typing import Any
from uuid import uuid4

import pytest
from langchain_core.messages import AIMessage, ToolMessage
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnableLambda
from langchain_core.tools import tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.types import Command, interrupt

from session_lifecycle import SessionDatabase
from session_lifecycle.integrations.langchain import SessionCallbackHandler
from session_lifecycle.writing.recorder import SessionRecorder
from support.books import open_parts
from support.eventually import eventually
from support.model_server import ModelServer
from support.runtimes.langchain import (
    COUNTS,
    KINDS,
    NO_COUNTS,
    Fake,
    agent_of,
    books,
    counts_of,
    get_time,
    get_weather,
    model_of,
    run_chain,
)
from support.transcripts import events, everything, rows, runs, steps
from support.usage import A


async def test_a_graph_that_runs_when_the_recorder_closes_is_cancelled(session_database: SessionDatabase) -> None:
    outer = uuid4()
    async with session_database.recorder() as recorder:
        handler = SessionCallbackHandler(recorder, user_id=A)
        handler.on_chain_start(None, {}, run_id=outer, name="chain")
        handler.on_chat_model_start({}, [[]], run_id=uuid4(), parent_run_id=outer)
    assert list((await events(session_database, "measured")).values()) == [(False,)]
    assert await runs(session_database) == {str(outer): "cancelled"}


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
