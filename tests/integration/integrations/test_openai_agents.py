"""OpenAI Agents' runs in the books: logs of hooks and spans played again, and agents run against a stand-in."""

import asyncio
import subprocess
import sys
import textwrap
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextvars import ContextVar
from typing import Any, Literal, cast
from uuid import UUID, uuid4

import pytest
from agents import (
    Agent,
    AgentsException,
    MaxTurnsExceeded,
    Model,
    ModelResponse,
    ModelRetrySettings,
    ModelSettings,
    OpenAIChatCompletionsModel,
    OpenAIResponsesModel,
    RunConfig,
    Runner,
    Usage,
    UserError,
    add_trace_processor,
    function_tool,
    retry_policies,
    set_trace_processors,
    set_tracing_disabled,
    trace,
)
from agents.testing import ScriptedModel, assistant_message, function_call
from agents.tracing import Span, Trace, TracingProcessor
from openai import APIStatusError, AsyncOpenAI
from openai.types.responses.response_usage import InputTokensDetails

from session_lifecycle import SessionDatabase, SessionRecorder
from session_lifecycle.errors import BudgetExceededError
from session_lifecycle.integrations.budget_check import BudgetCheck
from session_lifecycle.integrations.openai_agents import BudgetRefusedError, SessionHooks
from support import books
from support.books import Event, RunRow
from support.budget_checks import assert_checked, assert_settled
from support.budgets import limit
from support.eventually import eventually
from support.model_server import ANSWER, ModelServer
from support.openai_agents_replay import Spans, play, read
from support.transcripts import SHARED, rows
from support.usage import A

LOGS = pytest.mark.skipif(not SHARED.is_dir(), reason="the logs are not beside the project")
GPT, ASKED = ("openai", "gpt-5-2025-08-07"), ("openai", "gpt-5")
PARTS, NOTHING = (1024, 64, 0, 48), ((0, 0), (0, 0, 0, 0))


async def replay(db: SessionDatabase, name: str, spans: Spans = "all") -> None:
    """Plays a log that is kept beside the project, twice: the second time adds nothing."""
    lines = read(SHARED / "payloads" / f"openai-agents-{name}.jsonl")
    seen = []
    for _ in range(2):
        async with db.recorder() as recorder:
            await play(SessionHooks(recorder, user_id=A), lines, spans=spans)
        assert recorder.snapshot().failures == 0
        seen.append((await books.events(db), await books.runs(db), await books.steps(db)))
    assert seen[0] == seen[1]


@LOGS
async def test_H01_tools(session_database: SessionDatabase) -> None:
    await replay(session_database, "responses-tools")
    run = "trace_88a1943bff664f4c84f47fddf595de61"
    assert await books.events(session_database) == {
        "resp_local0056": Event("thread-1", run, "main", *GPT, (1200, 80), PARTS),
        "resp_local0057": Event("thread-1", run, "main", *GPT, (1300, 81), PARTS),
        "resp_local0058": Event("thread-1", run, "main", *GPT, (1400, 82), PARTS),
    }
    assert await books.runs(session_database) == {run: RunRow("thread-1", "main", "completed")}
    assert await books.steps(session_database) == {
        (run, "call_local0056"): ("get_weather", "completed"),
        (run, "call_local0057"): ("get_time", "completed"),
    }


@LOGS
async def test_H02_an_agent_that_is_a_tool(session_database: SessionDatabase) -> None:
    await replay(session_database, "responses-agent-as-tool")
    run, child = "trace_685f665de2364f4eb955e09638554cae", "de2bab"
    assert await books.events(session_database) == {
        "resp_local0062": Event("thread-1", run, "parent", *GPT, (1200, 80), PARTS),
        "resp_local0063": Event("thread-1", child, "child", *GPT, (1200, 80), PARTS),
        "resp_local0064": Event("thread-1", child, "child", *GPT, (1300, 81), PARTS),
        "resp_local0065": Event("thread-1", child, "child", *GPT, (1400, 82), PARTS),
        "resp_local0066": Event("thread-1", run, "parent", *GPT, (1300, 81), PARTS),
    }
    assert await books.runs(session_database) == {
        run: RunRow("thread-1", "parent", "completed"),
        child: RunRow("thread-1", "child", "completed", run, "call_local0062"),
    }
    assert await books.steps(session_database) == {
        (run, "call_local0062"): ("ask_child", "completed"),
        (child, "call_local0063"): ("get_time", "completed"),
        (child, "call_local0064"): ("get_weather", "completed"),
    }


@LOGS
async def test_H03_a_usage_that_is_told_twice(session_database: SessionDatabase) -> None:
    await replay(session_database, "responses-rawusage")
    run = "trace_27bedb23a80e4702b849b69dddc9422e"
    assert await books.events(session_database) == {
        "resp_local0083": Event("thread-1", run, "main", *GPT, (1200, 80), PARTS)
    }
    assert await books.runs(session_database) == {run: RunRow("thread-1", "main", "completed")}


@LOGS
async def test_H04_zeros_are_no_usage(session_database: SessionDatabase) -> None:
    await replay(session_database, "responses-nousage")
    run = "trace_eafaf6c3b280457297bd2d591de7a59c"
    assert await books.events(session_database) == {
        "resp_local0076": Event("thread-1", run, "main", *GPT, *NOTHING, measured=False)
    }
    assert await books.runs(session_database) == {run: RunRow("thread-1", "main", "completed")}


@LOGS
async def test_H05_an_error_that_only_spans_tell(session_database: SessionDatabase) -> None:
    await replay(session_database, "responses-err500")
    run = "trace_afce1ba6512f4a8799bbe7448615f43d"
    assert await books.events(session_database) == {
        f"{run}:39d49c": Event("thread-1", run, "main", *ASKED, *NOTHING, errored=True)
    }
    assert await books.runs(session_database) == {run: RunRow("thread-1", "main", "failed")}


@LOGS
@pytest.mark.parametrize(
    ("log", "run", "turn"),
    [
        ("responses-cancel-stream", "trace_a8abfe3f14cc418d8b3cc744d9a9d993", "c87370"),
        ("chat-cancel-stream", "trace_4531cda7268648ee996a348ca99e0bc0", "bdc22d"),
    ],
)
async def test_H06_H07_cancelled_streams(session_database: SessionDatabase, log: str, run: str, turn: str) -> None:
    await replay(session_database, log)
    assert await books.events(session_database) == {
        f"{run}:{turn}": Event("thread-1", run, "main", *ASKED, *NOTHING, measured=False)
    }
    assert await books.runs(session_database) == {run: RunRow("thread-1", "main", "cancelled")}


@LOGS
async def test_H08_an_id_that_is_no_key(session_database: SessionDatabase) -> None:
    await replay(session_database, "chat-stream-include-usage")
    run = "trace_d067168727dc4badb2feb871df3bdc32"
    assert await books.events(session_database) == {
        "req_chat_0088": Event("thread-1", run, "main", *ASKED, (1200, 80), PARTS)
    }
    assert await books.runs(session_database) == {run: RunRow("thread-1", "main", "completed")}


@LOGS
async def test_H09_three_responses_without_usage(session_database: SessionDatabase) -> None:
    await replay(session_database, "chat-tools-stream")
    run = "trace_f0156d58e7244edb98197217bb6bdf40"
    assert await books.events(session_database) == {
        f"req_chat_00{number}": Event("thread-1", run, "main", *ASKED, *NOTHING, measured=False)
        for number in (78, 79, 80)
    }
    assert await books.runs(session_database) == {run: RunRow("thread-1", "main", "completed")}
    assert await books.steps(session_database) == {
        (run, "call_local0078"): ("get_weather", "completed"),
        (run, "call_local0079"): ("get_time", "completed"),
    }


@LOGS
@pytest.mark.parametrize("spans", ["ends", "none"])
@pytest.mark.parametrize(
    ("log", "count"),
    [
        ("responses-tools", 3),
        ("responses-agent-as-tool", 5),
        ("responses-rawusage", 1),
        ("chat-stream-include-usage", 1),
    ],
)
async def test_H01_H02_H03_H08_less_is_told_of_spans(
    session_database: SessionDatabase, log: str, count: int, spans: Spans
) -> None:
    await replay(session_database, log, spans)
    events = (await books.events(session_database)).values()
    assert len(events) == count
    assert {one.parts for one in events} == {PARTS}
    expected = ASKED if spans == "none" or log.startswith("chat") else GPT
    assert {(one.provider, one.model) for one in events} == {expected}
    assert {one.status for one in (await books.runs(session_database)).values()} == {"completed"}
    assert {end for _, end in (await books.steps(session_database)).values()} <= {"completed"}
    agents = sorted(one.agent or "" for one in events)
    assert agents == (["main"] * count if count != 5 else [*["child"] * 3, *["parent"] * 2])


@LOGS
@pytest.mark.parametrize(
    ("log", "status", "flags"),
    [
        ("responses-err500", "failed", (True, True)),
        ("responses-cancel-stream", "cancelled", (False, False)),
        ("chat-cancel-stream", "cancelled", (False, False)),
    ],
)
async def test_H05_H06_H07_only_ends_of_spans_are_told(
    session_database: SessionDatabase, log: str, status: str, flags: tuple[bool, bool]
) -> None:
    await replay(session_database, log, "ends")
    [event] = (await books.events(session_database)).values()
    assert (event.measured, event.errored) == flags
    assert [one.status for one in (await books.runs(session_database)).values()] == [status]


@LOGS
@pytest.mark.parametrize("spans", ["all", "ends"])
async def test_H02_the_hooks_of_the_child_are_not_called(session_database: SessionDatabase, spans: Spans) -> None:
    lines = read(SHARED / "payloads" / "openai-agents-responses-agent-as-tool.jsonl")
    lines = [line for line in lines if line.get("agent") != "child"]
    async with session_database.recorder() as recorder:
        await play(SessionHooks(recorder, user_id=A), lines, spans=spans)
    assert recorder.snapshot().failures == 0
    events = await books.events(session_database)
    counts = [(1200, 80), (1200, 80), (1300, 81), (1400, 82), (1300, 81)]
    assert {key: (one.counts, one.parts) for key, one in events.items()} == {
        f"resp_local00{number}": (one, PARTS) for number, one in enumerate(counts, 62)
    }
    if spans == "all":
        run, child = await books.runs(session_database)
        assert (await books.runs(session_database))[child] == RunRow(
            "thread-1", "child", "completed", run, "call_local0062"
        )


# Runs against the stand-in


@pytest.fixture(scope="module")
def server() -> Iterator[ModelServer]:
    with ModelServer() as running:
        yield running


@pytest.fixture(autouse=True)
def _nothing_served(server: ModelServer) -> None:
    server.served.clear()


@pytest.fixture(autouse=True)
def _processors() -> Iterator[None]:
    """Processors are the process's: no test leaves its own behind, and nothing is exported."""
    set_trace_processors([])
    yield
    set_trace_processors([])
    set_tracing_disabled(False)


@function_tool
def get_weather(city: str) -> str:
    """The weather of a city."""
    return f"7 degrees in {city}"


@function_tool
def get_time(city: str) -> str:
    """The time in a city."""
    return f"12:00 in {city}"


Kind = Literal["responses", "chat"]
MakeModel = Callable[[Kind], Model]
KINDS = pytest.mark.parametrize("kind", ["responses", "chat"])


@pytest.fixture
async def make_model(server: ModelServer) -> AsyncIterator[MakeModel]:
    client = AsyncOpenAI(base_url=server.openai, api_key="none")

    def made(kind: Kind) -> Model:
        if kind == "responses":
            return OpenAIResponsesModel("gpt-5", openai_client=client)
        return OpenAIChatCompletionsModel("gpt-5", openai_client=client)

    yield made
    await client.close()


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


def hooks_of(recorder: SessionRecorder, **more: Any) -> SessionHooks:
    """The adapter, registered."""
    return SessionHooks(recorder, **{"user_id": A, **more}).install()


def agent_of(model: Model, name: str = "main", **more: Any) -> Agent[Any]:
    settings = ModelSettings(include_usage=True)
    return Agent(**{"name": name, "model": model, "tools": [get_weather, get_time], "model_settings": settings, **more})


async def run(agent: Agent[Any], prompt: str, hooks: SessionHooks | None, *, streams: bool = False, **more: Any) -> Any:
    config = RunConfig(**{"group_id": "chat-1", **more})
    if not streams:
        return await Runner.run(agent, prompt, hooks=hooks, run_config=config)
    result = Runner.run_streamed(agent, prompt, hooks=hooks, run_config=config)
    async for _ in result.stream_events():
        pass
    return result


STREAMS = pytest.mark.parametrize("streams", [False, True])


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
        # Chat tells no model that answered; the key is the response's id, or the request's where streaming.
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


@KINDS
@pytest.mark.parametrize("word", ["once429:a", "once500:b"])
async def test_a_request_that_is_tried_again_is_one_event(
    session_database: SessionDatabase, server: ModelServer, make_model: MakeModel, kind: Kind, word: str
) -> None:
    retry = ModelRetrySettings(max_retries=2, policy=retry_policies.http_status([429, 500]))
    async with session_database.recorder() as recorder:
        hooks = hooks_of(recorder)
        await run(agent_of(make_model(kind)), f"[[{word}{kind}]] Hello", hooks)
        settings = ModelSettings(include_usage=True, retry=retry)
        await run(agent_of(make_model(kind), model_settings=settings), f"[[{word}{kind}2]] Hello", hooks)
    assert [one.status for one in server.served] == [int(word[4:7]), 200] * 2
    events = await books.events(session_database)
    assert [(one.counts, one.measured, one.errored) for one in events.values()] == [((1200, 80), True, False)] * 2
    assert {one.status for one in (await books.runs(session_database)).values()} == {"completed"}


@KINDS
@STREAMS
async def test_no_usage(
    session_database: SessionDatabase, server: ModelServer, make_model: MakeModel, kind: Kind, streams: bool
) -> None:
    async with session_database.recorder() as recorder:
        await run(agent_of(make_model(kind)), "[[nousage]] Hello", hooks_of(recorder), streams=streams)
    [event] = (await books.events(session_database)).values()
    assert (event.measured, event.errored, event.counts) == (False, False, (0, 0))


@KINDS
@STREAMS
async def test_an_error(
    session_database: SessionDatabase, server: ModelServer, make_model: MakeModel, kind: Kind, streams: bool
) -> None:
    async with session_database.recorder() as recorder:
        hooks = hooks_of(recorder)
        with pytest.raises(APIStatusError):
            await run(agent_of(make_model(kind)), "[[err500]] Hello", hooks, streams=streams)
        hidden = agent_of(make_model(kind)).as_tool("ask", "Asks.", failure_error_function=None)
        parent = agent_of(make_model(kind), tools=[hidden], name="parent")
        prompt = "[[tools:ask]] {{err500}} Hello"
        with pytest.raises(UserError, match="Error running tool ask"):
            await run(parent, prompt, hooks, streams=streams, trace_include_sensitive_data=False)
    events = (await books.events(session_database)).values()
    assert Counter((one.agent, one.errored, one.counts[0]) for one in events) == {
        ("main", True, 0): 2,
        ("parent", False, 1200): 1,
    }
    assert {one.measured for one in events} == {True}
    assert {one.status for one in (await books.runs(session_database)).values()} == {"failed"}
    assert {end for _, end in (await books.steps(session_database)).values()} == {"failed"}


@KINDS
@pytest.mark.parametrize("how", ["task", "cancel", "break"])
async def test_a_cancelled_call(
    session_database: SessionDatabase, server: ModelServer, make_model: MakeModel, kind: Kind, how: str
) -> None:
    async with session_database.recorder() as recorder:
        agent, hooks = agent_of(make_model(kind)), hooks_of(recorder)

        async def work() -> None:
            if how == "task":
                await run(agent, "[[slow]] Hello", hooks)
                return
            result = Runner.run_streamed(agent, "[[slow]] Hello", hooks=hooks)
            async for event in result.stream_events():
                if event.type == "raw_response_event":
                    break
            result.cancel()

        task = asyncio.create_task(work())
        if how == "task":
            await eventually(lambda: server.served)
            task.cancel()
        await asyncio.wait({task})
        await eventually(lambda: not recorder.snapshot().pending)
        await asyncio.sleep(0.1)
    assert recorder.snapshot().failures == 0
    [event] = (await books.events(session_database)).values()
    assert (event.measured, event.errored, event.counts) == (False, False, (0, 0))
    assert [one.status for one in (await books.runs(session_database)).values()] == ["cancelled"]


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


@function_tool
def breaks(city: str) -> str:
    """Breaks, and the model is told."""
    raise ValueError(f"secret-3 of {city}")


@function_tool(failure_error_function=None)
def breaks_all(city: str) -> str:
    """Breaks, and the run ends."""
    raise ValueError(f"secret-3 of {city}")


@pytest.mark.parametrize("content", [True, False])
async def test_tools_that_fail_and_content_by_choice(
    session_database: SessionDatabase, server: ModelServer, make_model: MakeModel, content: bool
) -> None:
    async with session_database.recorder() as recorder:
        hooks, model = hooks_of(recorder, content=content), make_model("responses")
        done = await run(agent_of(model), "secret-1 [[tools:get_time]]", hooks)
        await run(agent_of(model, tools=[breaks]), "secret-1 [[tools]]", hooks)
        with pytest.raises(UserError):
            await run(agent_of(model, tools=[breaks_all]), "secret-1 [[tools]]", hooks)
        hidden = agent_of(model, "child").as_tool("ask", "Asks.")
        await run(agent_of(model, "parent", tools=[hidden]), "secret-1 [[tools:ask]] {{x}}", hooks)
        with pytest.raises(MaxTurnsExceeded):
            await Runner.run(agent_of(model), "secret-1 [[tools]]", hooks=hooks, max_turns=1)
    assert done.final_output == ANSWER
    assert recorder.snapshot().failures == 0
    assert await books.measured(session_database) == books.served(server)
    said = await books.texts(session_database)
    assert [word in said for word in ("secret-1", "12:00 in Tartu", ANSWER, "Tartu", "secret-3", "[[x]]")] == [
        content
    ] * 6
    steps = (await books.steps(session_database)).values()
    assert Counter(steps) == {
        ("get_time", "completed"): 1,
        ("breaks", "failed"): 1,
        ("breaks_all", "failed"): 1,
        ("ask", "completed"): 1,
        ("get_weather", "completed"): 1,
    }
    statuses = Counter((one.agent, one.status) for one in (await books.runs(session_database)).values())
    assert statuses == {
        ("main", "completed"): 2,
        ("main", "failed"): 2,
        ("parent", "completed"): 1,
        ("child", "completed"): 1,
    }
    if content:
        first = next(iter(await books.runs(session_database)))
        assert [one for one in await books.messages(session_database) if one[0] == first] == [
            (first, "user", "secret-1 [[tools:get_time]]"),
            (first, "assistant", ANSWER),
        ]


async def test_a_part_that_is_larger_than_its_whole_is_cut(session_database: SessionDatabase) -> None:
    details = InputTokensDetails(cached_tokens=5, cache_write_tokens=9)
    usage = Usage(requests=1, input_tokens=7, output_tokens=2, total_tokens=9, input_tokens_details=details)
    async with session_database.recorder() as recorder:
        model = ScriptedModel([ModelResponse([assistant_message("ok")], usage, None)])
        await run(agent_of(model), "Hello", hooks_of(recorder))
    assert recorder.snapshot().failures == 0
    [event] = (await books.events(session_database)).values()
    assert (event.counts, event.parts, event.measured) == ((7, 2), (5, 2, 0, 0), True)


async def test_a_model_without_ids_has_keys_of_its_own(session_database: SessionDatabase) -> None:
    usage = Usage(requests=1, input_tokens=7, output_tokens=2, total_tokens=9)

    def answers(response_id: str | None) -> ScriptedModel:
        call = ModelResponse([function_call("get_time", {"city": "x"}, call_id="c")], usage, response_id)
        return ScriptedModel([call, ModelResponse([assistant_message("ok")], usage, response_id)])

    async with session_database.recorder() as recorder:
        hooks = hooks_of(recorder)
        for response_id in (None, "always"):
            await run(agent_of(answers(response_id)), "Hello", hooks)
        set_tracing_disabled(True)
        await run(agent_of(answers(None)), "Hello", hooks)
    events = await books.events(session_database)
    assert len(events) == 6
    assert {one.counts for one in events.values()} == {(7, 2)}
    assert "always" in events
    assert "no-op" not in await books.texts(session_database)


async def test_an_approval_and_the_run_that_goes_on(
    session_database: SessionDatabase, server: ModelServer, make_model: MakeModel
) -> None:
    @function_tool(needs_approval=True)
    def launch(city: str) -> str:
        """Launches."""
        return city

    async with session_database.recorder() as recorder:
        hooks, agent = hooks_of(recorder), agent_of(make_model("responses"), tools=[launch])
        paused = await run(agent, "[[tools]] x", hooks)
        state = paused.to_state()
        state.approve(paused.interruptions[0])
        await Runner.run(agent, state, hooks=hooks, run_config=RunConfig(group_id="chat-1"))
    assert recorder.snapshot().failures == 0
    assert await books.measured(session_database) == books.served(server)
    assert {one.status for one in (await books.runs(session_database)).values()} == {"completed"}
    assert set((await books.steps(session_database)).values()) == {("launch", "completed")}


async def test_an_approval_inside_an_agent_that_is_a_tool(
    session_database: SessionDatabase, server: ModelServer, make_model: MakeModel
) -> None:
    @function_tool(needs_approval=True)
    def launch(city: str) -> str:
        """Launches."""
        return city

    async with session_database.recorder() as recorder:
        hooks, model = hooks_of(recorder), make_model("responses")
        child = agent_of(model, "child", tools=[launch]).as_tool("ask", "Asks.", hooks=hooks)
        agent = agent_of(model, "parent", tools=[child])
        paused = await run(agent, "[[tools:ask]] {{tools:launch}}", hooks)
        state = paused.to_state()
        state.approve(paused.interruptions[0])
        done = await Runner.run(agent, state, hooks=hooks, run_config=RunConfig(group_id="chat-1"))
    assert done.final_output == ANSWER
    assert recorder.snapshot().failures == 0
    assert await books.measured(session_database) == books.served(server)
    assert len(server.answered) == 4
    assert {one.status for one in (await books.runs(session_database)).values()} == {"completed"}
    assert set((await books.steps(session_database)).values()) == {("launch", "completed"), ("ask", "completed")}


async def test_a_tool_that_is_cancelled(
    session_database: SessionDatabase, server: ModelServer, make_model: MakeModel
) -> None:
    begun = asyncio.Event()

    @function_tool
    async def wait(city: str) -> str:
        """Waits."""
        begun.set()
        await asyncio.sleep(30)
        return city

    async with session_database.recorder() as recorder:
        hooks, model = hooks_of(recorder), make_model("responses")
        child = agent_of(model, "child", tools=[wait]).as_tool("ask", "Asks.")
        parent = agent_of(model, "parent", tools=[child])
        task = asyncio.create_task(run(parent, "[[tools:ask]] {{tools:wait}}", hooks))
        await begun.wait()
        task.cancel()
        await asyncio.wait({task})
        other = asyncio.create_task(run(agent_of(model, tools=[wait]), "[[tools:wait]]", hooks))
        begun.clear()
        await begun.wait()
        other.cancel()
        await asyncio.wait({other})
    assert recorder.snapshot().failures == 0
    assert await books.measured(session_database) == books.served(server)
    runs = await books.runs(session_database)
    assert [(one.agent, one.status) for one in runs.values()] == [
        ("parent", "cancelled"),
        ("child", "cancelled"),
        ("main", "cancelled"),
    ]
    assert {end for _, end in (await books.steps(session_database)).values()} == {"failed"}


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


class _Broken:
    """A value of the runtime that raises, whatever is asked of it."""

    def __getattribute__(self, name: str) -> Any:
        raise RuntimeError(f"the runtime has no {name} any more")


async def test_a_broken_value_of_the_runtime_disturbs_nobody(session_database: SessionDatabase) -> None:
    lost: list[str] = []
    async with session_database.recorder(on_lost=lambda _, error: lost.append(str(error))) as recorder:
        hooks, broken = hooks_of(recorder), cast(Any, _Broken())
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
    program = """
        import sys
        sys.modules["agents"] = None
        import session_lifecycle, session_lifecycle.integrations.adapter
        try:
            import session_lifecycle.integrations.openai_agents
        except ImportError as error:
            print(error)
    """
    ran = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, check=True)
    assert "pip install 'session-lifecycle[openai-agents]'" in ran.stdout


async def test_a_call_that_a_budget_refuses_ends_the_run(
    session_database: SessionDatabase, server: ModelServer, make_model: MakeModel
) -> None:
    async with session_database.recorder() as recorder:

        async def plain(budgets: Any, name: str, *, streams: bool = False) -> None:
            model = cast("Any", make_model("chat"))
            model.model = name
            await run(agent_of(model), "Hello", hooks_of(recorder, budgets=budgets), streams=streams)

        async def stream(budgets: Any, name: str) -> None:
            await plain(budgets, name, streams=True)

        await assert_checked(session_database, recorder, server, plain, AgentsException, others=[stream])
        await limit(session_database, limit_usd=None, limit_tokens=1)
        with pytest.raises(BudgetRefusedError) as caught:
            await plain(session_database.budgets, "gpt-5")
        assert isinstance(caught.value, BudgetExceededError)
        assert caught.value.budget_ids == ("b",)
        assert caught.value.run_data is not None
    statuses = [one.status for one in (await books.runs(session_database)).values()]
    assert (statuses[-1], set(statuses)) == ("failed", {"completed", "failed"})


@pytest.mark.parametrize("with_hooks", [True, False])
async def test_a_budget_counts_an_agent_that_is_a_tool_once(
    session_database: SessionDatabase, server: ModelServer, make_model: MakeModel, with_hooks: bool
) -> None:
    await limit(session_database, limit_usd=None, limit_tokens=100_000)
    async with session_database.recorder() as recorder:
        needs: Any = {"tokens_in": 1_500, "tokens_out": 100}
        hooks = hooks_of(recorder, budgets=BudgetCheck(session_database.budgets, needs=needs))
        model = make_model("responses")
        tool = agent_of(model, "child").as_tool("ask_child", "Asks the child.", hooks=hooks if with_hooks else None)
        await run(agent_of(model, "parent", tools=[tool]), "[[tools:ask_child]] {{tools}} x", hooks)
        assert len(server.answered) == 5
        spent = sum(one.tokens_in + one.tokens_out for one in server.answered)
        assert await assert_settled(session_database, recorder) == spent
