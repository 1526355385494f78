"""Which runs of OpenAI Agents are recorded, and whose calls they have."""

import asyncio
from collections import Counter
from contextvars import ContextVar
from typing import Any
from uuid import UUID, uuid4

import pytest
from agents import RunConfig, Runner, add_trace_processor, function_tool, set_tracing_disabled, trace
from agents.tracing import Span, Trace, TracingProcessor
from openai import APIStatusError

from session_lifecycle import SessionDatabase
from session_lifecycle.integrations.openai_agents import SessionHooks
from support import books
from support.books import RunRow
from support.model_apis.dialect import ANSWER
from support.model_server import ModelServer
from support.runtimes.openai_agents import KINDS, STREAMS, Kind, MakeModel, agent_of, hooks_of, run
from support.transcripts import rows
from support.usage import A


class ListProcessor(TracingProcessor):
    """A processor of the host's."""

    def __init__(self) -> None:
        self.traces: list[str] = []

    def on_trace_start(self, trace: Trace) -> None:
        self.traces.append(trace.trace_id)

    def on_trace_end(self, trace: Trace) -> None: ...

    def on_span_start(self, span: Span[Any]) -> None: ...

    def on_span_end(self, span: Span[Any]) -> None: ...

    def shutdown(self) -> None: ...

    def force_flush(self) -> None: ...


@KINDS
@STREAMS
async def test_a_plain_run_and_one_with_tools(
    session_database: SessionDatabase, server: ModelServer, make_model: MakeModel, kind: Kind, streams: bool
) -> None:
    async with session_database.recorder() as recorder:
        hooks, agent = hooks_of(recorder), agent_of(make_model(kind))
        await run(agent, "Hello", hooks, streams=streams)
        await run(agent, "[[tools]] weather", hooks, streams=streams)
    assert recorder.snapshot().failures == 0
    assert [one.counts for one in (await books.events(session_database)).values()] == [
        (one.tokens_in, one.tokens_out) for one in server.answered
    ]
    if kind == "responses":
        assert await books.measured(session_database) == books.served(server)
    else:
        # Chat does not name the model that answered. The key is the id of the response, or of a stream's request.
        ids = {(one.request_id, one.response_id)[0] for one in server.answered}
        assert set(await books.measured(session_database)) == ids
    first, second = await books.runs(session_database)
    assert set((await books.runs(session_database)).values()) == {RunRow("chat-1", "main", "completed")}
    calls = [call for one in server.served for call in one.tool_calls]
    assert await books.steps(session_database) == {(second, call_id): (name, "completed") for call_id, name in calls}
    assert {one.run for one in (await books.events(session_database)).values()} == {first, second}
    assert recorder.snapshot().items == await books.items_needed(session_database)


@pytest.mark.parametrize("with_hooks", [True, False])
@STREAMS
async def test_an_agent_as_a_tool_is_counted_once(
    session_database: SessionDatabase, server: ModelServer, make_model: MakeModel, with_hooks: bool, streams: bool
) -> None:
    async with session_database.recorder() as recorder:
        hooks, model = hooks_of(recorder), make_model("responses")
        hooks.install()
        add_trace_processor(hooks)  # again, and it records once
        child = agent_of(model, "child")
        tool = child.as_tool("ask_child", "Asks the child.", hooks=hooks if with_hooks else None)
        await run(agent_of(model, "parent", tools=[tool]), "[[tools:ask_child]] {{tools}} x", hooks, streams=streams)
    assert recorder.snapshot().failures == 0
    assert await books.measured(session_database) == books.served(server)
    assert len(server.answered) == 5
    [called] = [call_id for one in server.served for call_id, name in one.tool_calls if name == "ask_child"]
    runs = await books.runs(session_database)
    [parent_run] = [run_id for run_id, one in runs.items() if one.agent == "parent"]
    [child_run] = [run_id for run_id, one in runs.items() if one.agent == "child"]
    assert runs == {
        parent_run: RunRow("chat-1", "parent", "completed"),
        child_run: RunRow("chat-1", "child", "completed", parent_run, called),
    }
    assert child_run.startswith("span_")
    events = (await books.events(session_database)).values()
    assert Counter(one.agent for one in events) == {"child": 3, "parent": 2}


@pytest.mark.parametrize("with_hooks", [True, False])
@pytest.mark.parametrize("off", ["everywhere", "in the run", "processor"])
async def test_without_spans(
    session_database: SessionDatabase, server: ModelServer, make_model: MakeModel, with_hooks: bool, off: str
) -> None:
    async with session_database.recorder() as recorder:
        hooks, model = SessionHooks(recorder, user_id=A), make_model("responses")
        if off != "processor":
            hooks.install()
            set_tracing_disabled(off == "everywhere")
        child = agent_of(model, "child")
        tool = child.as_tool("ask_child", "Asks the child.", hooks=hooks if with_hooks else None)
        parent = agent_of(model, "parent", tools=[tool])
        await asyncio.gather(
            *(
                run(parent, "[[tools:ask_child]] {{tools}} x", hooks, tracing_disabled=off == "in the run")
                for _ in range(2)
            )
        )
    assert recorder.snapshot().failures == 0
    assert len(server.answered) == 10
    events = (await books.events(session_database)).values()
    for counted in (0, 1):
        expected = sum((one.tokens_in, one.tokens_out)[counted] for one in server.answered)
        assert sum(one.counts[counted] for one in events) == expected
    assert sum(one.parts[0] for one in events) == sum(one.cache_read_tokens for one in server.answered)
    runs = await books.runs(session_database)
    assert Counter((one.agent, one.status, one.parent is not None) for one in runs.values()) == Counter(
        {("parent", "completed", False): 2} | ({("child", "completed", True): 2} if with_hooks else {})
    )
    # Without hooks the child's three responses are one event, of which only the sum is known.
    assert len(events) == (10 if with_hooks else 6)
    assert {end for _, end in (await books.steps(session_database)).values()} == {"completed"}


async def test_two_adapters_in_one_process(
    session_database: SessionDatabase, server: ModelServer, make_model: MakeModel
) -> None:
    async with session_database.recorder() as recorder:
        model = make_model("responses")
        one, other, all_runs = (
            hooks_of(recorder),
            hooks_of(recorder),
            hooks_of(recorder, every_run=True, provider="all"),
        )
        hidden = agent_of(model, "hidden").as_tool("ask_hidden", "Asks.", hooks=None)
        child = agent_of(model, "child", tools=[hidden]).as_tool("ask_child", "Asks.", hooks=other)
        parent = agent_of(model, "parent", tools=[child])
        await run(parent, "[[tools:ask_child]] {{tools:ask_hidden}} x", one)
        await run(agent_of(model, "unhooked"), "[[tools]] x", None)
    assert all_runs is not one
    assert recorder.snapshot().failures == 0
    assert await books.measured(session_database) == books.served(server)
    agents = Counter((one.agent, one.provider) for one in (await books.events(session_database)).values())
    assert agents == {
        ("parent", "openai"): 2,
        ("child", "openai"): 2,
        ("hidden", "openai"): 1,
        ("unhooked", "all"): 3,
    }
    assert {one.status for one in (await books.runs(session_database)).values()} == {"completed"}


async def test_runs_of_others_are_not_recorded(
    session_database: SessionDatabase, server: ModelServer, make_model: MakeModel
) -> None:
    kept = ListProcessor()
    add_trace_processor(kept)
    async with session_database.recorder() as recorder:
        hooks_of(recorder)
        await run(agent_of(make_model("responses")), "Hello", None)
        await run(agent_of(make_model("responses")), "Hello", SessionHooks(recorder, user_id=A))
    assert len(server.answered) == 2
    assert len(await books.events(session_database)) == 1
    assert len(kept.traces) == 2


async def test_a_handoff_stays_in_the_run(
    session_database: SessionDatabase, server: ModelServer, make_model: MakeModel
) -> None:
    async with session_database.recorder() as recorder:
        model = make_model("responses")
        other = agent_of(model, "other")
        await run(agent_of(model, "triage", tools=[], handoffs=[other]), "[[tools]] x", hooks_of(recorder))
    assert await books.measured(session_database) == books.served(server)
    assert [(one.agent, one.status) for one in (await books.runs(session_database)).values()] == [
        ("triage", "completed")
    ]
    assert list((await books.steps(session_database, "handoff")).values()) == [("other", "completed")]


async def test_runs_inside_a_session_block_and_many_at_once(
    session_database: SessionDatabase, server: ModelServer, make_model: MakeModel
) -> None:
    owner: ContextVar[UUID] = ContextVar("owner")
    users = {name: uuid4() for name in "abc"}
    guest = uuid4()
    async with session_database.recorder() as recorder:
        hooks = hooks_of(recorder, user_id=owner.get)
        agent = agent_of(make_model("responses"))

        async def visit(name: str) -> None:
            owner.set(users[name])
            await run(agent, "[[tools]] weather", hooks, group_id=name, streams=name == "a")

        await asyncio.gather(*(visit(name) for name in users))
        async with recorder.session("visit", guest):
            await run(agent, "Hello", hooks_of(recorder, user_id=None), group_id=None)
        found = hooks_of(recorder, user_id=guest, find_session=lambda context: context and context["chat"])
        await Runner.run(agent, "Hello", hooks=found, context={"chat": "found"}, run_config=RunConfig(group_id="not"))
        alone = await run(agent, "Hello", hooks_of(recorder, user_id=guest), group_id=None)
    assert alone.final_output == ANSWER
    assert recorder.snapshot().failures == 0
    assert await books.measured(session_database) == books.served(server)
    rows_of = await rows(session_database, "SELECT session_id, user_id FROM session_lifecycle.session_records")
    sessions = dict(rows_of)
    [own] = [name for name in sessions if name.startswith("trace_")]
    assert sessions == users | {"visit": guest, "found": guest, own: guest}
    events = (await books.events(session_database)).values()
    assert Counter(one.session for one in events) == Counter({"a": 3, "b": 3, "c": 3, "visit": 1, "found": 1, own: 1})


@pytest.mark.parametrize("with_hooks", [True, False])
async def test_the_runtime_makes_no_spans_of_tasks(
    session_database: SessionDatabase, server: ModelServer, make_model: MakeModel, with_hooks: bool
) -> None:
    async with session_database.recorder() as recorder:
        hooks, model = hooks_of(recorder), make_model("responses")
        tool = agent_of(model, "child").as_tool("ask_child", "Asks.", hooks=hooks if with_hooks else None)
        parent = agent_of(model, "parent", tools=[tool])
        await run(parent, "[[tools:ask_child]] {{tools}} x", hooks, tracing={"include_task_and_turn_spans": False})
    assert await books.measured(session_database) == books.served(server)
    runs = await books.runs(session_database)
    assert [(one.agent, one.status, one.parent is not None) for one in runs.values()] == [
        ("parent", "completed", False),
        ("child", "completed", True),
    ]
    events = (await books.events(session_database)).values()
    assert Counter(one.agent for one in events) == {"child": 3, "parent": 2}


async def test_many_runs_of_one_trace_are_one_run(
    session_database: SessionDatabase, server: ModelServer, make_model: MakeModel
) -> None:
    async with session_database.recorder() as recorder:
        hooks, agent = hooks_of(recorder), agent_of(make_model("chat"))
        with trace("day", group_id="chat-2") as day:
            with pytest.raises(APIStatusError):
                await run(agent, "[[err500]] x", hooks)
            await asyncio.gather(*(run(agent, "[[tools]] x", hooks, streams=streams) for streams in (True, False)))
        with trace("night", group_id="chat-2"):
            await run(agent, "Hello", hooks)
            with pytest.raises(APIStatusError):
                await run(agent, "[[err500]] x", hooks)
    assert recorder.snapshot().failures == 0
    runs = await books.runs(session_database)
    assert runs[day.trace_id] == RunRow("chat-2", "main", "completed")
    assert [one.status for one in runs.values()] == ["completed", "failed"]
    events = (await books.events(session_database)).values()
    assert sorted(one.counts[0] for one in events) == [0, 0, 1200, 1200, 1200, 1300, 1300, 1400, 1400]
    assert sum(one.errored for one in events) == 2
    assert Counter(end for _, end in (await books.steps(session_database)).values()) == {"completed": 4}


async def test_a_run_in_a_tool_of_the_host(
    session_database: SessionDatabase, server: ModelServer, make_model: MakeModel
) -> None:
    async with session_database.recorder() as recorder:
        hooks, model = hooks_of(recorder), make_model("responses")
        child = agent_of(model, "child")

        @function_tool
        async def ask(request: str) -> str:
            """Asks."""
            return str((await Runner.run(child, request, hooks=hooks)).final_output)

        await run(agent_of(model, "parent", tools=[ask]), "[[tools:ask]] {{tools}} x", hooks)
    assert await books.measured(session_database) == books.served(server)
    parent_run, child_run = await books.runs(session_database)
    [called] = [call_id for one in server.served for call_id, name in one.tool_calls if name == "ask"]
    assert await books.runs(session_database) == {
        parent_run: RunRow("chat-1", "parent", "completed"),
        child_run: RunRow("chat-1", "child", "completed", parent_run, called),
    }
