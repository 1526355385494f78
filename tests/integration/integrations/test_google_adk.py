"""Google ADK: captured logs replayed, and real runs against a stand-in of the model APIs."""

import asyncio
import importlib
import json
import os
import sys
from types import SimpleNamespace
from typing import Any

import pytest
from google.adk.agents import (
    BaseAgent,
    LlmAgent,
    ParallelAgent,  # pyright: ignore[reportDeprecated] - what shall replace it cannot be a sub-agent yet
)
from google.adk.agents.run_config import RunConfig
from google.adk.apps import App
from google.adk.models.google_llm import Gemini
from google.adk.models.lite_llm import LiteLlm
from google.adk.models.llm_response import LlmResponse
from google.adk.runners import Runner
from google.adk.sessions import InMemorySessionService
from google.adk.tools.agent_tool import AgentTool
from google.genai import types

from session_lifecycle import SessionDatabase
from session_lifecycle.integrations.budget_check import BudgetCheck
from session_lifecycle.integrations.google_adk import BUDGET_EXCEEDED, SessionPlugin
from session_lifecycle.writing.recorder import SessionRecorder
from support.books import items_needed, open_parts
from support.broken import Broken
from support.budget_checks import assert_checked, assert_settled
from support.budgets import limit
from support.eventually import eventually
from support.model_apis.dialect import Served
from support.model_server import ModelServer
from support.transcripts import SHARED, events, everything, rows, runs, steps, written
from support.usage import A

os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
pytestmark = [
    # google-genai derives a class of its own from aiohttp's session when it is first called.
    pytest.mark.filterwarnings("ignore:Inheritance class AiohttpClientSession:DeprecationWarning"),
    # LiteLLM makes a model of types that Pydantic warns of when it first streams.
    pytest.mark.filterwarnings("ignore:Item .* on TypedDict class:UserWarning"),
    pytest.mark.filterwarnings("ignore:Accessing the 'model_:DeprecationWarning"),
    # ADK's own AgentTool uses what ADK has deprecated; and an agent with side-by-side agents has no other name yet.
    pytest.mark.filterwarnings("ignore:The `plugins` argument is deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:ParallelAgent is deprecated:DeprecationWarning"),
]
Fields = dict[str, Any]
LOGS = SHARED / "payloads"
needs_logs = pytest.mark.skipif(not SHARED.is_dir(), reason="the logs are not beside the project")
COUNTS = "tokens_in, tokens_out, cache_read_tokens, cache_write_tokens, reasoning_tokens"
NO_COUNTS = (0, 0, 0, 0, 0)
STREAMS = RunConfig.model_validate({"streaming_mode": "sse"})


class ServerError(Exception):
    status_code = 500


class Replay:
    """Hands the lines of a log to a plugin, as ADK does. Ids of invocations that the log shortens are made whole."""

    def __init__(self, plugin: SessionPlugin, log: list[Fields]) -> None:
        self.plugin = plugin
        self.whole = {line["event"]["invocation_id"] for line in log if "event" in line}
        self.response = SimpleNamespace()

    def invocation_id(self, shown: str) -> str:
        return next((whole for whole in self.whole if whole.endswith(shown)), shown)

    def context(self, line: Fields) -> Any:
        told = line.get("cc") or line.get("ic") or {}
        context = SimpleNamespace(invocation_id=self.invocation_id(told.get("invocation_id", "")))
        context.session = SimpleNamespace(id=told.get("session_id"))
        context.agent = SimpleNamespace(name=told.get("agent"))
        context.agent_name = told.get("agent_name")
        context.function_call_id = line.get("function_call_id")
        return context

    async def line(self, line: Fields) -> None:  # noqa: C901 - one case for each callback
        method, context = line["method"], self.context(line)
        tool: Any = {"tool": SimpleNamespace(name=line.get("tool")), "tool_args": line.get("args_")}
        match method:
            case "before_run_callback" | "after_run_callback":
                self.ic = context
                await getattr(self.plugin, method)(invocation_context=context)
            case "on_run_error_callback":
                await self.plugin.on_run_error_callback(invocation_context=context, error=ValueError("no transfer"))
            case "before_agent_callback":
                await self.plugin.before_agent_callback(agent=context.agent, callback_context=context)
            case "before_model_callback":
                request: Any = SimpleNamespace(model=line["model"])
                await self.plugin.before_model_callback(callback_context=context, llm_request=request)
            case "after_model_callback":
                told = line["resp"]
                self.response = SimpleNamespace(**told)
                self.response.usage_metadata = SimpleNamespace(**told["usage_metadata"])
                await self.plugin.after_model_callback(callback_context=context, llm_response=self.response)
            case "on_event_callback":
                event = SimpleNamespace(**line["event"], usage_metadata=None, model_version=None)
                if "usage" in line["event"]:
                    event.usage_metadata = self.response.usage_metadata
                    event.model_version = self.response.model_version
                await self.plugin.on_event_callback(invocation_context=self.ic, event=event)
            case "before_tool_callback":
                await self.plugin.before_tool_callback(**tool, tool_context=context)
            case "after_tool_callback":
                context.invocation_id = self.ic.invocation_id
                await self.plugin.after_tool_callback(**tool, tool_context=context, result=line.get("result"))
            case "raised" | "done":
                pass
            case _:
                raise AssertionError(method)


async def replay(db: SessionDatabase, name: str) -> None:
    log = [json.loads(line) for line in (LOGS / f"google-adk-{name}.jsonl").read_text().splitlines()]
    async with db.recorder() as recorder:
        replaying = Replay(SessionPlugin(recorder, user_id=A), log)
        for line in log:
            await replaying.line(line)
    assert recorder.snapshot().failures == 0


SERVED = "gpt-5-2025-08-07"
ROWS = [
    (
        "tools",
        ("e-b8662646-1af3-4028-aff7-2409db0f2e85", "completed", "main"),
        {
            "75e1353a-a0a3-4317-81a0-bf91d919201e": (SERVED, 1200, 80, 1024, 0, 48, True),
            "cbf9e776-34c0-4189-acc5-2df899c3af41": (SERVED, 1300, 81, 1024, 0, 48, True),
            "59bc8e65-bc5d-436d-8b2e-2e76ad431bdf": (SERVED, 1400, 82, 1024, 0, 48, True),
        },
        {"call_local0041": ("get_weather", "completed"), "call_local0042": ("get_time", "completed")},
    ),
    (
        "nousage",
        ("e-cadb67b8-0de6-4123-ad5e-6830f59ac911", "completed", "main"),
        {"164882ed-9964-419b-babf-2712d6de3fb7": (SERVED, *NO_COUNTS, False)},
        {},
    ),
    ("cancel", ("db5002", "cancelled", "main"), {"db5002:1": ("gpt-5", *NO_COUNTS, False)}, {}),
    (
        "transfer",
        ("e-48d7e4a6-5535-4e60-95c7-5a80d163b3bd", "failed", "triage"),
        {
            "7cbfe637-6958-4a80-acbf-06df904658e5": (SERVED, 1200, 80, 1024, 0, 48, True),
            "e4381baa-09e0-46cb-9945-8660d9234f1a": (SERVED, 1200, 80, 1024, 0, 48, True),
        },
        {"call_local0060": ("transfer_to_agent", "completed"), "call_local0061": ("transfer_to_agent", "completed")},
    ),
]


@needs_logs
@pytest.mark.parametrize("row", ROWS, ids=["H36", "H37", "H38", "H39"])
async def test_H36_H37_H38_H39_captured_invocations(session_database: SessionDatabase, row: tuple[Any, ...]) -> None:
    name, (run, status, agent), expected, expected_steps = row
    for _ in range(2):
        await replay(session_database, name)
        columns = f"model, {COUNTS}, measured, errored, provider, session_id, run_id"
        assert await events(session_database, columns) == {
            key: (*values, False, "openai", "adk-s1", run) for key, values in expected.items()
        }
        assert await runs(session_database, "status, agent_name, parent_run_id") == {run: (status, agent, None)}
        found = await steps(session_database)
        assert found == {(run, call): values for call, values in expected_steps.items()}


# Against the stand-in


def model_of(kind: str, server: ModelServer) -> Any:
    if kind == "google":
        return Gemini(
            model="gemini-2.5-flash",
            client_kwargs={"api_key": "none", "http_options": {"base_url": server.url}},
        )
    if kind == "anthropic":
        return LiteLlm(model="anthropic/claude-sonnet-4-6", api_base=server.url, api_key="none", num_retries=2)
    return LiteLlm(model="openai/gpt-5", api_base=server.openai, api_key="none", num_retries=2)


def get_weather(city: str) -> str:
    """Tells the weather."""
    return f"7 degrees in {city}"


def get_time(city: str) -> str:
    """Fails."""
    raise ValueError(f"no clock in {city}")


async def ask(
    plugin: Any, agent: Any, words: str, *, session_id: str = "s1", streams: bool = False, service: Any = None
) -> list[Any]:
    """The events of an invocation."""
    service = service or InMemorySessionService()
    if await service.get_session(app_name="app", user_id="u", session_id=session_id) is None:
        await service.create_session(app_name="app", user_id="u", session_id=session_id)
    plugins = plugin if isinstance(plugin, list) else [plugin]
    app = App(name="app", root_agent=agent, plugins=plugins)
    async with Runner(app=app, session_service=service) as runner:
        message = types.Content(role="user", parts=[types.Part(text=words)])
        config = STREAMS if streams else RunConfig()
        return [
            event
            async for event in runner.run_async(
                user_id="u", session_id=session_id, new_message=message, run_config=config
            )
        ]


def counts_of(served: Served, *, writes: bool = True) -> tuple[int, ...]:
    written = served.cache_write_tokens if writes else 0
    return (served.tokens_in, served.tokens_out, served.cache_read_tokens, written, served.reasoning_tokens)


async def books(db: SessionDatabase, recorder: SessionRecorder, columns: str = COUNTS) -> list[tuple[Any, ...]]:
    """The events in the order in which they were recorded, without their keys."""
    return list((await written(db, recorder, columns)).values())


KINDS = pytest.mark.parametrize("kind", ["openai", "anthropic", "google"])


@KINDS
@pytest.mark.parametrize("streams", [False, True], ids=["plain", "stream"])
async def test_calls_with_tools(
    session_database: SessionDatabase, recorder: SessionRecorder, server: ModelServer, kind: str, streams: bool
) -> None:
    plugin = SessionPlugin(recorder, user_id=A, content=True)
    agent = LlmAgent(name="main", model=model_of(kind, server), tools=[get_weather])
    told = await ask(plugin, agent, "[[tools:get_weather]]", streams=streams)
    # LiteLLM keeps the cache writes of Anthropic only.
    expected = [counts_of(one, writes=kind == "anthropic") for one in server.served]
    assert await books(session_database, recorder) == expected
    keys = set(await events(session_database, "model"))
    assert keys == {event.id for event in told if event.usage_metadata and not event.partial}
    served = {one.model if streams and kind != "google" else one.served_model for one in server.served}
    columns = "session_id, provider, measured, model"
    assert set(await books(session_database, recorder, columns)) == {("s1", kind, True, model) for model in served}
    assert list((await steps(session_database)).values()) == [("get_weather", "completed")]
    assert list((await runs(session_database, "status, agent_name")).values()) == [("completed", "main")]
    said = await rows(
        session_database, "SELECT role, content FROM session_lifecycle.session_messages ORDER BY created_at"
    )
    assert said == [("user", "[[tools:get_weather]]"), ("assistant", server.answer)]
    assert recorder.snapshot().items == await items_needed(session_database)


async def test_an_answer_without_usage_is_unmeasured(
    session_database: SessionDatabase, recorder: SessionRecorder, server: ModelServer
) -> None:
    plugin = SessionPlugin(recorder, user_id=A)
    for kind in ("openai", "google"):
        agent = LlmAgent(name="main", model=model_of(kind, server))
        told = await ask(plugin, agent, "[[nousage]]")
        await recorder.flush()
        found = await events(session_database, f"measured, errored, {COUNTS}")
        assert found[told[-1].id] == (False, False, *NO_COUNTS)
    assert len(found) == 2
    assert set((await runs(session_database)).values()) == {"completed"}


async def test_retries_of_the_client_are_one_event(
    session_database: SessionDatabase, recorder: SessionRecorder, server: ModelServer
) -> None:
    agent = LlmAgent(name="main", model=model_of("anthropic", server))
    await ask(SessionPlugin(recorder, user_id=A), agent, "[[once429:a]] [[once500:b]]")
    assert [one.status for one in server.served] == [429, 500, 200]
    assert await books(session_database, recorder) == [counts_of(server.served[-1])]


async def test_H39_one_error_that_several_callbacks_tell(
    session_database: SessionDatabase, recorder: SessionRecorder, server: ModelServer
) -> None:
    agent = LlmAgent(name="main", model=LiteLlm(model="openai/gpt-5", api_base=server.openai, api_key="none"))
    with pytest.raises(Exception, match="had an error"):
        await ask(SessionPlugin(recorder, user_id=A), agent, "[[err500]]")
    assert await books(session_database, recorder, f"measured, errored, {COUNTS}") == [(True, True, *NO_COUNTS)]
    assert list((await runs(session_database)).values()) == ["failed"]
    tool_fails = LlmAgent(name="main", model=model_of("anthropic", server), tools=[get_time])
    with pytest.raises(ValueError, match="no clock"):
        await ask(SessionPlugin(recorder, user_id=A), tool_fails, "[[tools]]")
    assert len(await books(session_database, recorder)) == 2
    assert list((await steps(session_database)).values()) == [("get_time", "failed")]
    assert list((await runs(session_database)).values()) == ["failed"] * 2
    assert "no clock" not in str(await everything(session_database))


@pytest.mark.parametrize("streams", [False, True], ids=["plain", "stream"])
async def test_H38_a_cancelled_invocation(
    session_database: SessionDatabase, recorder: SessionRecorder, server: ModelServer, streams: bool
) -> None:
    agent = LlmAgent(name="main", model=model_of("google", server), tools=[get_weather])
    plugin = SessionPlugin(recorder, user_id=A)
    task = asyncio.create_task(ask(plugin, agent, "[[tools]] [[slow@1]]", streams=streams))
    await eventually(lambda: len(server.served) == 2)
    await asyncio.sleep(0.1)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    found = await books(session_database, recorder, f"measured, {COUNTS}")
    assert found == [(True, *counts_of(server.served[0])), (False, *NO_COUNTS)]
    assert list((await runs(session_database)).values()) == ["cancelled"]


async def test_a_stream_that_is_left(
    session_database: SessionDatabase, recorder: SessionRecorder, server: ModelServer
) -> None:
    agent = LlmAgent(name="main", model=model_of("google", server))
    service = InMemorySessionService()
    await service.create_session(app_name="app", user_id="u", session_id="s1")
    app = App(name="app", root_agent=agent, plugins=[SessionPlugin(recorder, user_id=A)])
    async with Runner(app=app, session_service=service) as runner:
        message = types.Content(role="user", parts=[types.Part(text="[[slow]]")])
        config = STREAMS
        reading = runner.run_async(user_id="u", session_id="s1", new_message=message, run_config=config)
        async for _ in reading:
            break
        await reading.aclose()
    assert await books(session_database, recorder, f"measured, {COUNTS}") == [(False, *NO_COUNTS)]
    assert list((await runs(session_database)).values()) == ["cancelled"]


async def test_an_agent_as_a_tool_is_a_run_below_and_counted_once(
    session_database: SessionDatabase, recorder: SessionRecorder, server: ModelServer
) -> None:
    child = LlmAgent(name="child", model=model_of("anthropic", server), tools=[get_weather], description="Knows.")
    agent = LlmAgent(name="main", model=model_of("anthropic", server), tools=[AgentTool(child)])
    await ask(SessionPlugin(recorder, user_id=A), agent, "[[tools:child]] {{tools:get_weather}}")
    await recorder.flush()
    told = await runs(session_database, "agent_name, parent_run_id, parent_tool_call_id, status, session_id")
    [outer] = [run for run, values in told.items() if values[0] == "main"]
    [inner] = [run for run, values in told.items() if values[0] == "child"]
    call = server.served[0].tool_calls[0][0]
    assert told == {
        outer: ("main", None, None, "completed", "s1"),
        inner: ("child", outer, call, "completed", "s1"),
    }
    found = await books(session_database, recorder, f"run_id, {COUNTS}")
    calls = [outer, inner, inner, outer]
    assert found == [(run, *counts_of(one)) for run, one in zip(calls, server.served, strict=True)]


async def test_H39_a_transfer_stays_in_the_run(
    session_database: SessionDatabase, recorder: SessionRecorder, server: ModelServer
) -> None:
    child = LlmAgent(name="child", model=model_of("google", server), description="Knows.")
    agent = LlmAgent(name="triage", model=model_of("google", server), sub_agents=[child])
    await ask(SessionPlugin(recorder, user_id=A), agent, "[[tools:transfer_to_agent@0]]")
    await recorder.flush()
    found = await runs(session_database, "agent_name, status, metadata")
    assert list(found.values()) == [("triage", "completed", {"agents": ["triage", "child"]})]
    assert await books(session_database, recorder) == [counts_of(one) for one in server.served]
    assert len(server.served) == 2


async def test_agents_side_by_side_and_two_invocations_at_once(
    session_database: SessionDatabase, recorder: SessionRecorder, server: ModelServer
) -> None:
    plugin = SessionPlugin(recorder, user_id=A)

    def team() -> BaseAgent:
        agents: list[Any] = [
            LlmAgent(name=name, model=model_of("google", server), tools=[get_weather]) for name in ("left", "right")
        ]
        # Its replacement cannot be a sub-agent yet.
        return ParallelAgent(name="both", sub_agents=agents)  # pyright: ignore[reportDeprecated]

    await asyncio.gather(*(ask(plugin, team(), "[[tools]]", session_id=f"t{one}") for one in range(2)))
    await recorder.flush()
    sums = (
        "SELECT session_id, tokens_in, tokens_out, unmeasured_events FROM session_lifecycle.session_records ORDER BY 1"
    )
    assert await rows(session_database, sums) == [("t0", 6020, 322, 0), ("t1", 6020, 322, 0)]
    assert list((await runs(session_database)).values()) == ["completed"] * 2
    assert open_parts(plugin) == 0
    assert recorder.quiet.open == set()


# Traps, made here


def context(**more: Any) -> Any:
    session = SimpleNamespace(id="s1")
    agent = SimpleNamespace(name="main")
    return SimpleNamespace(invocation_id="i1", session=session, agent=agent, agent_name="main", branch=None, **more)


def usage_of(prompt: int, candidates: int, total: int, **more: Any) -> types.GenerateContentResponseUsageMetadata:
    return types.GenerateContentResponseUsageMetadata(
        prompt_token_count=prompt, candidates_token_count=candidates, total_token_count=total, **more
    )


def event_of(event_id: str, usage: Any, **more: Any) -> Any:
    told = {"partial": None, "branch": None, "model_version": "gemini-2.5-flash", "content": None} | more
    return SimpleNamespace(id=event_id, author="main", usage_metadata=usage, **told)


async def call(plugin: SessionPlugin, *given: Any, answered: bool = True) -> None:
    """A model call and its events."""
    request: Any = SimpleNamespace(model="gemini-2.5-flash")
    await plugin.before_model_callback(callback_context=context(), llm_request=request)
    if answered:
        await plugin.after_model_callback(callback_context=context(), llm_response=LlmResponse(partial=False))
    for event in given:
        await plugin.on_event_callback(invocation_context=context(), event=event)


EVENTS = [
    # Where the parts add up to more than the total, and where they do not.
    ([("e1", usage_of(1200, 80, 1280, thoughts_token_count=48))], {"e1": (1200, 80, 48, True)}),
    ([("e1", usage_of(1200, 32, 1280, thoughts_token_count=48))], {"e1": (1200, 80, 48, True)}),
    ([("e1", usage_of(1000, 80, 1280, tool_use_prompt_token_count=200))], {"e1": (1200, 80, 0, True)}),
    # An answer of several events: the usage comes with the last, with the first, or grows.
    ([("e1", None), ("e2", usage_of(10, 2, 12))], {"e1": (10, 2, 0, True)}),
    ([("e1", usage_of(10, 2, 12)), ("e2", None)], {"e1": (10, 2, 0, True)}),
    ([("e1", usage_of(10, 1, 11)), ("e2", usage_of(10, 2, 12))], {"e1": (10, 2, 0, True)}),
    ([("e1", usage_of(10, 2, 12)), ("e2", usage_of(10, 2, 12))], {"e1": (10, 2, 0, True)}),
    ([("e1", None)], {"e1": (0, 0, 0, False)}),
    ([("e1", usage_of(0, 0, 0))], {"e1": (0, 0, 0, False)}),
]


@pytest.mark.parametrize(("given", "expected"), EVENTS)
async def test_H36_events_of_one_answer_are_one_usage_event(
    session_database: SessionDatabase, recorder: SessionRecorder, given: list[tuple[str, Any]], expected: Fields
) -> None:
    plugin = SessionPlugin(recorder, user_id=A)
    await plugin.before_run_callback(invocation_context=context())
    await call(plugin, *(event_of(event_id, usage) for event_id, usage in given))
    await plugin.after_run_callback(invocation_context=context())
    await recorder.flush()
    assert await events(session_database, "tokens_in, tokens_out, reasoning_tokens, measured") == expected
    assert await runs(session_database) == {"i1": "completed"}


async def test_a_callback_that_answers_in_the_models_place_is_no_call(
    session_database: SessionDatabase, recorder: SessionRecorder
) -> None:
    plugin = SessionPlugin(recorder, user_id=A)
    await plugin.before_run_callback(invocation_context=context())
    await call(plugin, event_of("e1", None), answered=False)
    await plugin.after_run_callback(invocation_context=context())
    assert await books(session_database, recorder) == []
    assert await runs(session_database) == {"i1": "completed"}


async def test_partial_events_share_the_id_and_are_not_booked(
    session_database: SessionDatabase, recorder: SessionRecorder
) -> None:
    plugin = SessionPlugin(recorder, user_id=A)
    await plugin.before_run_callback(invocation_context=context())
    await call(plugin, event_of("e1", usage_of(10, 1, 11), partial=True), event_of("e1", usage_of(10, 2, 12)))
    assert await books(session_database, recorder, "tokens_out, revision") == [(2, 0)]


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ("openai/gpt-5", ("openai", "gpt-5")),
        ("openrouter/anthropic/claude-sonnet-4-6", ("openrouter", "anthropic/claude-sonnet-4-6")),
        ("gemini-2.5-flash", ("google", "gemini-2.5-flash")),
        ("models/gemini-2.5-flash", ("google", "models/gemini-2.5-flash")),
        (
            "projects/p/locations/l/publishers/google/models/gemini-2.5-flash",
            ("google", "projects/p/locations/l/publishers/google/models/gemini-2.5-flash"),
        ),
        ("claude-sonnet-4-6", (None, "claude-sonnet-4-6")),
        (None, (None, None)),
    ],
)
async def test_H38_provider_and_model_of_the_model_that_is_asked(
    session_database: SessionDatabase, recorder: SessionRecorder, asked: Any, expected: tuple[str | None, str | None]
) -> None:
    plugin = SessionPlugin(recorder, user_id=A)
    await plugin.before_model_callback(callback_context=context(), llm_request=SimpleNamespace(model=asked))
    await plugin.after_run_callback(invocation_context=context())
    assert await books(session_database, recorder, "provider, model") == [expected]


async def test_what_is_open_when_the_recorder_closes_is_cancelled(session_database: SessionDatabase) -> None:
    async with session_database.recorder() as recorder:
        plugin = SessionPlugin(recorder, user_id=A)
        await plugin.before_run_callback(invocation_context=context())
        await call(plugin, answered=False)
    assert await events(session_database, "measured") == {"i1:1": (False,)}
    assert await runs(session_database) == {"i1": "cancelled"}


async def test_a_callback_awaits_nothing_of_the_database() -> None:
    """Nothing listens at the address, and the runtime's calls go on."""
    url = "postgresql://nobody@127.0.0.1:9/nothing"
    async with SessionDatabase.connect(url) as db, db.recorder(drain_within=0.1) as recorder:
        plugin = SessionPlugin(recorder, user_id=A)
        await plugin.before_run_callback(invocation_context=context())
        await call(plugin, event_of("e1", usage_of(10, 2, 12)))
        await plugin.after_run_callback(invocation_context=context())
        assert recorder.snapshot().pending > 0


async def test_the_owner_and_a_broken_object(session_database: SessionDatabase, recorder: SessionRecorder) -> None:
    unknown = SessionPlugin(recorder)
    await unknown.before_run_callback(invocation_context=context())
    await eventually(lambda: recorder.snapshot().failures == 1)
    async with recorder.session("host", A):
        await unknown.before_run_callback(invocation_context=context())
    plugin = SessionPlugin(recorder, user_id=A)
    broken: Any = Broken()
    await plugin.on_event_callback(invocation_context=context(), event=broken)
    await plugin.after_model_callback(callback_context=broken, llm_response=broken)
    await eventually(lambda: recorder.snapshot().failures == 3)
    await recorder.flush()
    assert await runs(session_database, "session_id") == {"i1": "s1"}


async def test_without_content_no_text_is_recorded(
    session_database: SessionDatabase, recorder: SessionRecorder, server: ModelServer
) -> None:
    agent = LlmAgent(name="main", model=model_of("google", server), tools=[get_weather])
    await ask(SessionPlugin(recorder, user_id=A), agent, "[[tools]] sesame")
    await recorder.flush()
    text = str(await everything(session_database))
    assert [word for word in ("sesame", "Tartu", "degrees") if word in text] == []


class RefusedError(Exception):
    """An event says that a budget refuses a call."""


async def test_a_call_that_a_budget_refuses_is_answered_with_an_error(
    session_database: SessionDatabase, recorder: SessionRecorder, server: ModelServer
) -> None:
    async def plain(budgets: Any, name: str, *, streams: bool = False) -> None:
        model = Gemini(model=name, client_kwargs={"api_key": "none", "http_options": {"base_url": server.url}})
        agent = LlmAgent(name="main", model=model)
        told = await ask(SessionPlugin(recorder, user_id=A, budgets=budgets), agent, "Hello", streams=streams)
        if told[-1].error_code is not None:
            assert (len(told), told[-1].error_code) == (1, BUDGET_EXCEEDED)
            raise RefusedError(told[-1].error_message)

    async def stream(budgets: Any, name: str) -> None:
        await plain(budgets, name, streams=True)

    model = "gemini-2.5-flash"
    await assert_checked(session_database, recorder, server, plain, RefusedError, model, [stream])
    statuses = list((await runs(session_database)).values())
    assert (statuses[-1], set(statuses)) == ("failed", {"completed", "failed"})
    assert len(await events(session_database, COUNTS)) == len(server.served)


async def test_a_budget_counts_an_agent_as_a_tool_once(
    session_database: SessionDatabase, recorder: SessionRecorder, server: ModelServer
) -> None:
    await limit(session_database, limit_usd=None, limit_tokens=100_000)
    check = BudgetCheck(session_database.budgets, needs={"tokens_in": 1_600, "tokens_out": 100})
    child = LlmAgent(name="child", model=model_of("google", server), tools=[get_weather], description="Knows.")
    agent = LlmAgent(name="main", model=model_of("google", server), tools=[AgentTool(child)])
    plugin = SessionPlugin(recorder, user_id=A, budgets=check)
    await ask(plugin, agent, "[[tools:child]] {{tools:get_weather}}")
    assert len(server.served) == 4
    spent = sum(one.tokens_in + one.tokens_out for one in server.served)
    assert await assert_settled(session_database, recorder) == spent
    assert open_parts(plugin) == 0


def test_without_adk_the_import_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "google.adk.plugins.base_plugin", None)
    monkeypatch.delitem(sys.modules, SessionPlugin.__module__)
    with pytest.raises(ImportError, match=r"pip install 'session-lifecycle\[google-adk\]'"):
        importlib.import_module(SessionPlugin.__module__)
