"""Pydantic AI's runs in the books: logs of its hooks played again, and agents run against a stand-in of their models."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import Any, Literal

import pytest
from anthropic import AsyncAnthropic
from openai import AsyncOpenAI
from pydantic_ai import Agent, RunContext, exceptions
from pydantic_ai.models import Model
from pydantic_ai.models.anthropic import AnthropicModel
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.anthropic import AnthropicProvider
from pydantic_ai.providers.openai import OpenAIProvider

from session_lifecycle import SessionDatabase
from session_lifecycle.integrations.pydantic_ai import SessionCapability
from support import books
from support.books import Event, RunRow
from support.eventually import eventually
from support.model_server import ModelServer
from support.pydantic_ai_replay import play, read
from support.transcripts import SHARED
from support.usage import A

LOGS = pytest.mark.skipif(not SHARED.is_dir(), reason="the logs are not beside the project")
GPT, CLAUDE = ("openai", "gpt-5-2025-08-07"), ("anthropic", "claude-sonnet-4-5")
GPT_PARTS, CLAUDE_PARTS, NOTHING = (1024, 64, 0, 48), (5000, 2000, 500, 20), ((0, 0), (0, 0, 0, 0))


async def replay(db: SessionDatabase, name: str) -> None:
    """Plays a log that is kept beside the project, twice: the second time adds nothing."""
    lines = read(SHARED / "payloads" / f"pydantic-ai-{name}.jsonl")
    seen = []
    for _ in range(2):
        async with db.recorder() as recorder:
            await play(SessionCapability(recorder, user_id=A), lines)
        assert recorder.snapshot().failures == 0
        seen.append((await books.events(db), await books.runs(db), await books.steps(db)))
    assert seen[0] == seen[1]


@LOGS
async def test_H10_tools(session_database: SessionDatabase) -> None:
    await replay(session_database, "responses-tools")
    run = "01a1fbaa-8baa-736a-a053-a5908ded4431"
    assert await books.events(session_database) == {
        "resp_local0121": Event("conv-1", run, "main", *GPT, (1200, 80), GPT_PARTS),
        "resp_local0122": Event("conv-1", run, "main", *GPT, (1300, 81), GPT_PARTS),
        "resp_local0123": Event("conv-1", run, "main", *GPT, (1400, 82), GPT_PARTS),
    }
    assert await books.runs(session_database) == {run: RunRow("conv-1", "main", "completed")}
    assert await books.steps(session_database) == {
        (run, "call_local0121"): ("get_weather", "completed"),
        (run, "call_local0122"): ("get_time", "completed"),
    }


@LOGS
async def test_H11_inclusive_counts_of_anthropic(session_database: SessionDatabase) -> None:
    await replay(session_database, "anthropic-tools")
    run = "01a1fbaa-8c5c-7320-a551-49fac98822fb"
    assert await books.events(session_database) == {
        "msg_local0125": Event("conv-1", run, "main", *CLAUDE, (7120, 64), CLAUDE_PARTS),
        "msg_local0126": Event("conv-1", run, "main", *CLAUDE, (7121, 65), CLAUDE_PARTS),
        "msg_local0127": Event("conv-1", run, "main", *CLAUDE, (7122, 66), CLAUDE_PARTS),
    }
    assert await books.runs(session_database) == {run: RunRow("conv-1", "main", "completed")}
    assert set((await books.steps(session_database)).values()) == {
        ("get_weather", "completed"),
        ("get_time", "completed"),
    }


@LOGS
async def test_H12_a_conversation_of_its_own(session_database: SessionDatabase) -> None:
    await replay(session_database, "anthropic-stream")
    assert await books.events(session_database) == {
        "msg_local0128": Event("…9c2437a1", "…94980cdb", "main", *CLAUDE, (7120, 64), CLAUDE_PARTS)
    }
    assert await books.runs(session_database) == {"…94980cdb": RunRow("…9c2437a1", "main", "completed")}


@LOGS
async def test_H13_no_usage(session_database: SessionDatabase) -> None:
    await replay(session_database, "chat-nousage-stream")
    assert await books.events(session_database) == {
        "chatcmpl-local0118": Event("…3b3d4f21", "…6dfb7469", "main", *GPT, *NOTHING, measured=False)
    }
    assert await books.runs(session_database) == {"…6dfb7469": RunRow("…3b3d4f21", "main", "completed")}


@LOGS
async def test_H14_streams_that_were_cut_off(session_database: SessionDatabase) -> None:
    await replay(session_database, "anthropic-cancel-stream")
    counts = ((7120, 3), (5000, 2000, 500, 0))
    assert await books.events(session_database) == {
        "msg_local0130": Event("…28d6613f", "…4040e5e8", "main", *CLAUDE, *counts, partial=True),
        "msg_local0131": Event("…4571db40", "…087c5291", "main", *CLAUDE, *counts, partial=True),
    }
    assert await books.runs(session_database) == {
        "…4040e5e8": RunRow("…28d6613f", "main", "cancelled"),
        "…087c5291": RunRow("…4571db40", "main", "cancelled"),
    }


@LOGS
async def test_H15_a_cancelled_call(session_database: SessionDatabase) -> None:
    await replay(session_database, "responses-cancel")
    assert await books.events(session_database) == {
        "…1a184091:1": Event("…f410dc71", "…1a184091", "main", "openai", "gpt-5", *NOTHING, measured=False)
    }
    assert await books.runs(session_database) == {"…1a184091": RunRow("…f410dc71", "main", "cancelled")}


@LOGS
async def test_H16_a_tool_that_fails(session_database: SessionDatabase) -> None:
    await replay(session_database, "responses-tool-error")
    assert await books.events(session_database) == {
        "resp_local0144": Event("…223c1442", "…a19f0089", "bad", *GPT, (1200, 80), GPT_PARTS)
    }
    assert await books.runs(session_database) == {"…a19f0089": RunRow("…223c1442", "bad", "failed")}
    assert await books.steps(session_database) == {("…a19f0089", "call_local0144"): ("get_bad", "failed")}


# Runs against the stand-in


@pytest.fixture(scope="module")
def server() -> Iterator[ModelServer]:
    with ModelServer() as running:
        yield running


@pytest.fixture(autouse=True)
def _nothing_served(server: ModelServer) -> None:
    server.served.clear()


def get_weather(city: str) -> str:
    """The weather of a city."""
    return f"7 degrees in {city}"


def get_time(city: str) -> str:
    """The time in a city."""
    return f"12:00 in {city}"


Kind = Literal["responses", "chat", "anthropic"]
MakeModel = Callable[[Kind], Model]


@pytest.fixture
async def make_model(server: ModelServer) -> AsyncIterator[MakeModel]:
    """Makes models of a kind, whose clients are closed at the end of the test."""
    openai = AsyncOpenAI(base_url=server.openai, api_key="none")
    anthropic = AsyncAnthropic(base_url=server.url, api_key="none")

    def made(kind: Kind) -> Model:
        if kind == "anthropic":
            return AnthropicModel("claude-sonnet-4-6", provider=AnthropicProvider(anthropic_client=anthropic))
        provider = OpenAIProvider(openai_client=openai)
        return (
            OpenAIResponsesModel("gpt-5", provider=provider)
            if kind == "responses"
            else OpenAIChatModel("gpt-5", provider=provider)
        )

    yield made
    await openai.close()
    await anthropic.close()


def agent_of(capability: SessionCapability | Sequence[SessionCapability], model: Model, **more: Any) -> Agent[Any, Any]:
    capabilities = [capability] if isinstance(capability, SessionCapability) else list(capability)
    return Agent(model, capabilities=capabilities, **{"name": "main", "tools": [get_weather, get_time], **more})


KINDS = pytest.mark.parametrize("kind", ["responses", "chat", "anthropic"])


@KINDS
async def test_a_plain_run_and_one_with_tools(
    session_database: SessionDatabase, server: ModelServer, make_model: MakeModel, kind: Kind
) -> None:
    async with session_database.recorder() as recorder:
        agent = agent_of(SessionCapability(recorder, user_id=A), make_model(kind))
        plain = await agent.run("Hello", conversation_id="c1")
        with_tools = await agent.run("[[tools]] weather", conversation_id="c1")
    assert recorder.snapshot().failures == 0
    assert len(server.served) == 4
    assert await books.measured(session_database) == books.served(server)
    assert await books.runs(session_database) == {
        plain.run_id: RunRow("c1", "main", "completed"),
        with_tools.run_id: RunRow("c1", "main", "completed"),
    }
    calls = [call for one in server.served for call in one.tool_calls]
    assert await books.steps(session_database) == {
        (with_tools.run_id, call_id): (name, "completed") for call_id, name in calls
    }
    assert [name for _, name in calls] == ["get_weather", "get_time"]
    assert {one.agent for one in (await books.events(session_database)).values()} == {"main"}


@KINDS
async def test_a_stream(
    session_database: SessionDatabase, server: ModelServer, make_model: MakeModel, kind: Kind
) -> None:
    async with session_database.recorder() as recorder:
        agent = agent_of(SessionCapability(recorder, user_id=A), make_model(kind))
        async with agent.run_stream("[[tools]] weather") as stream:
            assert await stream.get_output()
    assert await books.measured(session_database) == books.served(server)
    assert len(server.answered) == 3
    assert [one.status for one in (await books.runs(session_database)).values()] == ["completed"]


@pytest.mark.parametrize("shares_usage", [True, False])
async def test_a_sub_agent_is_counted_once(
    session_database: SessionDatabase, server: ModelServer, make_model: MakeModel, shares_usage: bool
) -> None:
    async with session_database.recorder() as recorder:
        capability = SessionCapability(recorder, user_id=A)
        child = agent_of(capability, make_model("anthropic"), name="child")

        async def ask_child(ctx: RunContext[Any], request: str) -> str:
            """Asks the child."""
            return str((await child.run(request, usage=ctx.usage if shares_usage else None)).output)

        parent = agent_of(capability, make_model("responses"), name="parent", tools=[ask_child])
        result = await parent.run("[[tools:ask_child]] {{tools}} weather", conversation_id="c1")
    assert await books.measured(session_database) == books.served(server)
    assert len(server.answered) == 5
    [called] = [call_id for one in server.served for call_id, name in one.tool_calls if name == "ask_child"]
    runs = await books.runs(session_database)
    [child_run] = [run_id for run_id, one in runs.items() if one.agent == "child"]
    assert runs == {
        result.run_id: RunRow("c1", "parent", "completed"),
        child_run: RunRow("c1", "child", "completed", result.run_id, called),
    }
    assert sorted(one.agent or "" for one in (await books.events(session_database)).values()) == [
        *["child"] * 3,
        *["parent"] * 2,
    ]
    assert {one.session for one in (await books.events(session_database)).values()} == {"c1"}


@pytest.mark.parametrize("word", ["once429:a", "once500:b"])
async def test_a_request_that_is_tried_again_is_one_event(
    session_database: SessionDatabase, server: ModelServer, make_model: MakeModel, word: str
) -> None:
    async with session_database.recorder() as recorder:
        agent = agent_of(SessionCapability(recorder, user_id=A), make_model("chat"))
        await agent.run(f"[[{word}]] Hello")
    assert [one.status for one in server.served] == [int(word[4:7]), 200]
    assert await books.measured(session_database) == books.served(server)
    assert len(await books.events(session_database)) == 1


@KINDS
@pytest.mark.parametrize("streams", [True, False])
async def test_no_usage(
    session_database: SessionDatabase, server: ModelServer, make_model: MakeModel, kind: Kind, streams: bool
) -> None:
    async with session_database.recorder() as recorder:
        agent = agent_of(SessionCapability(recorder, user_id=A), make_model(kind))
        if streams:
            async with agent.run_stream("[[nousage]] Hello") as stream:
                await stream.get_output()
        else:
            await agent.run("[[nousage]] Hello")
    [(key, event)] = (await books.events(session_database)).items()
    assert (key, event.measured, event.errored, event.counts) == (server.served[0].response_id, False, False, (0, 0))


@KINDS
@pytest.mark.parametrize("streams", [True, False])
async def test_an_error(
    session_database: SessionDatabase, server: ModelServer, make_model: MakeModel, kind: Kind, streams: bool
) -> None:
    async with session_database.recorder() as recorder:
        agent = agent_of(SessionCapability(recorder, user_id=A), make_model(kind))
        with pytest.raises(exceptions.ModelHTTPError):
            if streams:
                async with agent.run_stream("[[err500]] Hello") as stream:
                    await stream.get_output()
            else:
                await agent.run("[[err500]] Hello")
    [event] = (await books.events(session_database)).values()
    assert (event.measured, event.errored, event.counts) == (True, True, (0, 0))
    assert [one.status for one in (await books.runs(session_database)).values()] == ["failed"]


@KINDS
async def test_a_cancelled_call(
    session_database: SessionDatabase, server: ModelServer, make_model: MakeModel, kind: Kind
) -> None:
    async with session_database.recorder() as recorder:
        agent = agent_of(SessionCapability(recorder, user_id=A), make_model(kind))
        task = asyncio.create_task(agent.run("[[slow]] Hello"))
        await eventually(lambda: server.served)
        task.cancel()
        await asyncio.wait({task})
    [event] = (await books.events(session_database)).values()
    assert (event.measured, event.errored, event.counts) == (False, False, (0, 0))
    assert [one.status for one in (await books.runs(session_database)).values()] == ["cancelled"]


@pytest.mark.parametrize("how", ["break", "cancel", "task", "error"])
@pytest.mark.parametrize("kind", ["chat", "anthropic"])
async def test_an_interrupted_stream(
    session_database: SessionDatabase, server: ModelServer, make_model: MakeModel, kind: Kind, how: str
) -> None:
    async def read_some(agent: Agent[Any, Any]) -> None:
        async with agent.run_stream("[[slow]] Hello") as stream:
            async for _ in stream.stream_text(debounce_by=None):
                if how == "cancel":
                    await stream.cancel()
                elif how == "task":
                    await asyncio.sleep(30)
                elif how == "error":
                    raise ValueError("the host's own")
                break

    async with session_database.recorder() as recorder:
        agent = agent_of(SessionCapability(recorder, user_id=A), make_model(kind))
        task = asyncio.create_task(read_some(agent))
        if how == "task":
            await eventually(lambda: server.served)
            await asyncio.wait({task}, timeout=0.5)
            task.cancel()
        await asyncio.wait({task}, timeout=20)
        assert task.done()
        if not task.cancelled():
            task.exception()
    assert recorder.snapshot().failures == 0
    [event] = (await books.events(session_database)).values()
    # Anthropic tells the input at the beginning: a lower bound. OpenAI tells nothing.
    if event.measured:
        assert (kind, event.counts[0], event.partial) == ("anthropic", 7120, True)
    else:
        assert event.counts == (0, 0)
    assert not event.errored
    [run] = (await books.runs(session_database)).values()
    assert run.status == ("failed" if how == "error" else "cancelled")
