"""Pydantic AI's runs in the books: logs of its hooks played again, and agents run against a stand-in."""

import asyncio
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextvars import ContextVar
from types import SimpleNamespace
from typing import Any, Literal, cast
from uuid import UUID, uuid4

import pytest
from anthropic import AsyncAnthropic
from openai import AsyncOpenAI
from pydantic_ai import Agent, ModelResponse, ModelRetry, RunContext, exceptions
from pydantic_ai.capabilities import AbstractCapability
from pydantic_ai.messages import ModelMessage, TextPart, ToolCallPart
from pydantic_ai.models import Model, ModelRequestContext
from pydantic_ai.models.anthropic import AnthropicModel
from pydantic_ai.models.fallback import FallbackModel
from pydantic_ai.models.function import FunctionModel
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.models.test import TestModel
from pydantic_ai.providers.anthropic import AnthropicProvider
from pydantic_ai.providers.openai import OpenAIProvider
from pydantic_ai.usage import RequestUsage

from session_lifecycle import SessionDatabase
from session_lifecycle.errors import BudgetExceededError
from session_lifecycle.integrations.budget_check import BudgetCheck
from session_lifecycle.integrations.pydantic_ai import BudgetRefusedError, SessionCapability
from support import books
from support.books import Event, RunRow
from support.budget_checks import assert_checked, assert_settled
from support.budgets import limit
from support.eventually import eventually
from support.model_server import ANSWER, ModelServer
from support.pydantic_ai_replay import play, read
from support.transcripts import SHARED, rows
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
    options: dict[str, Any] = {"name": "main", "tools": [get_weather, get_time], **more}
    return Agent(model, capabilities=capabilities, **options)


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
    assert recorder.snapshot().items == await books.items_needed(session_database)
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

        async def work() -> None:
            if not streams:
                await agent.run("[[err500]] Hello")
                return
            async with agent.run_stream("[[err500]] Hello") as stream:
                await stream.get_output()

        with pytest.raises(exceptions.ModelHTTPError):
            await work()
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


async def test_a_stream_of_responses_that_is_cancelled(
    session_database: SessionDatabase, server: ModelServer, make_model: MakeModel
) -> None:
    async with session_database.recorder() as recorder:
        agent = agent_of(SessionCapability(recorder, user_id=A), make_model("responses"))

        async def read_all() -> None:
            async with agent.run_stream("[[slow]] Hello") as stream:
                await stream.get_output()

        task = asyncio.create_task(read_all())
        await eventually(lambda: server.served)
        await asyncio.wait({task}, timeout=0.3)
        task.cancel()
        await asyncio.wait({task})
    [event] = (await books.events(session_database)).values()
    assert (event.measured, event.counts) == (False, (0, 0))


@pytest.mark.parametrize("same", [True, False])
async def test_two_adapters_of_one_recorder_record_a_run_once(
    session_database: SessionDatabase, server: ModelServer, make_model: MakeModel, same: bool
) -> None:
    async with session_database.recorder() as recorder:
        one = SessionCapability(recorder, user_id=A)
        other = one if same else SessionCapability(recorder, user_id=uuid4())
        agent = agent_of([one, other], make_model("chat"))
        await agent.run("[[tools]] weather")
        with pytest.raises(exceptions.ModelHTTPError):
            await agent.run("[[err500]] Hello")
        await agent_of([one, other], make_model("chat")).run("[[nousage]] Hello")
    assert recorder.snapshot().failures == 0
    events = await books.events(session_database)
    assert sorted((one.counts[0], one.measured, one.errored) for one in events.values()) == [
        (0, False, False),
        (0, True, True),
        (1200, True, False),
        (1300, True, False),
        (1400, True, False),
    ]
    assert len(await books.runs(session_database)) == 3
    assert len(await books.steps(session_database)) == 2
    assert await rows(session_database, "SELECT DISTINCT user_id FROM session_lifecycle.session_records") == [(A,)]


async def test_runs_inside_a_session_block(
    session_database: SessionDatabase, server: ModelServer, make_model: MakeModel
) -> None:
    owner = uuid4()
    async with session_database.recorder() as recorder:
        agent = agent_of(SessionCapability(recorder), make_model("chat"))
        async with recorder.session("visit", owner) as session:
            await agent.run("Hello", conversation_id="c1")
            async with session.run("outer", run_id="outer"):
                await agent.run("Hello")
    runs = await books.runs(session_database)
    assert [(one.session, one.agent, one.parent) for one in runs.values()] == [
        ("visit", "main", None),
        ("visit", None, None),
        ("visit", "main", "outer"),
    ]
    assert {one.session for one in (await books.events(session_database)).values()} == {"visit"}
    assert len(server.answered) == 2


async def test_many_runs_at_once(session_database: SessionDatabase, server: ModelServer, make_model: MakeModel) -> None:
    owner: ContextVar[UUID] = ContextVar("owner")
    users = {name: uuid4() for name in "abcd"}
    async with session_database.recorder() as recorder:
        agent = agent_of(SessionCapability(recorder, user_id=owner.get), make_model("responses"))

        async def visit(name: str) -> None:
            owner.set(users[name])
            await agent.run("[[tools]] weather", conversation_id=name)

        await asyncio.gather(*(visit(name) for name in users))
    assert await books.measured(session_database) == books.served(server)
    events = (await books.events(session_database)).values()
    assert sorted(one.session for one in events) == sorted("abcd" * 3)
    found = await rows(session_database, "SELECT session_id, user_id FROM session_lifecycle.session_records")
    assert dict(found) == users


async def test_no_owner_is_a_loss_that_is_told(server: ModelServer, session_database: SessionDatabase) -> None:
    lost: list[str] = []
    async with session_database.recorder(on_lost=lambda _, error: lost.append(str(error))) as recorder:
        result = await agent_of(SessionCapability(recorder), TestModel()).run("Hello")
    assert result.output
    assert recorder.snapshot().failures == 1
    assert "user_id: got None" in lost[0]
    assert await books.events(session_database) == {}


class _Broken:
    """A value of the runtime that raises, whatever is asked of it."""

    def __getattribute__(self, name: str) -> Any:
        raise RuntimeError(f"the runtime has no {name} any more")


async def test_a_broken_value_of_the_runtime_disturbs_nobody(session_database: SessionDatabase) -> None:
    lost: list[str] = []
    async with session_database.recorder(on_lost=lambda _, error: lost.append(str(error))) as recorder:
        capability = SessionCapability(recorder, user_id=A)
        broken = cast(Any, _Broken())
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


@pytest.mark.parametrize("content", [True, False])
async def test_content_is_recorded_by_choice(
    session_database: SessionDatabase, server: ModelServer, make_model: MakeModel, content: bool
) -> None:
    def get_weather(city: str) -> str:
        """The weather of a city."""
        raise ValueError(f"no weather in {city}: secret-3")

    async with session_database.recorder() as recorder:
        capability = SessionCapability(recorder, user_id=A, content=content)
        model = make_model("chat")
        done = await agent_of(capability, model).run(["secret-1", "[[tools:get_time]]"])
        with pytest.raises(ValueError, match="secret-3"):
            await agent_of(capability, model, tools=[get_weather]).run("secret-1 [[tools]]")
    said = await books.texts(session_database)
    assert [word in said for word in ("secret-1", "12:00 in Tartu", ANSWER, "Tartu", "secret-3")] == [content] * 5
    assert "ValueError" in said
    if content:
        assert [one for one in await books.messages(session_database) if one[0] == done.run_id] == [
            (done.run_id, "user", "secret-1\n[[tools:get_time]]"),
            (done.run_id, "assistant", ANSWER),
        ]


async def test_a_part_that_is_larger_than_its_whole_is_cut(session_database: SessionDatabase) -> None:
    usage = RequestUsage(input_tokens=7, output_tokens=2, cache_read_tokens=5, cache_write_tokens=9)

    def answer(*_: Any) -> ModelResponse:
        return ModelResponse(parts=[TextPart("ok")], usage=usage)

    async with session_database.recorder() as recorder:
        await agent_of(SessionCapability(recorder, user_id=A), FunctionModel(answer)).run("Hello")
    assert recorder.snapshot().failures == 0
    [event] = (await books.events(session_database)).values()
    assert (event.counts, event.parts, event.measured) == ((7, 2), (5, 2, 0, 0), True)


async def test_a_model_without_ids_has_keys_of_its_own(session_database: SessionDatabase) -> None:
    def answer(*_: Any) -> ModelResponse:
        usage = RequestUsage(input_tokens=7, output_tokens=2)
        return ModelResponse(parts=[TextPart("ok")], usage=usage, provider_response_id=same)

    async with session_database.recorder() as recorder:
        capability = SessionCapability(recorder, user_id=A)
        for same in (None, "always"):
            agent = agent_of(capability, FunctionModel(answer))
            rejected = 0

            @agent.output_validator
            def again(output: str) -> str:
                nonlocal rejected
                rejected += 1
                if rejected == 1:
                    raise ModelRetry("once more")
                return output

            await agent.run("Hello", run_id=f"run-{same}")
    events = await books.events(session_database)
    assert set(events) == {"run-None:1", "run-None:2", "always", "run-always:2"}
    assert {one.counts for one in events.values()} == {(7, 2)}


class _Rejects(AbstractCapability[Any]):
    """Rejects the first response of each request."""

    async def after_model_request(
        self, ctx: RunContext[Any], *, request_context: ModelRequestContext, response: ModelResponse
    ) -> ModelResponse:
        if request_context.attempt == 1:
            raise exceptions.RetryModelRequest
        return response


async def test_a_response_that_another_capability_rejects_is_paid(
    session_database: SessionDatabase, server: ModelServer, make_model: MakeModel
) -> None:
    async with session_database.recorder() as recorder:
        agent = Agent(make_model("chat"), capabilities=[SessionCapability(recorder, user_id=A), _Rejects()])
        await agent.run("Hello")
    assert len(server.answered) == 2
    assert await books.measured(session_database) == books.served(server)
    assert len(await books.events(session_database)) == 2


@pytest.mark.parametrize("word", ["err500", "slow"])
async def test_models_that_a_fallback_model_moved_on_from(
    session_database: SessionDatabase, server: ModelServer, make_model: MakeModel, word: str
) -> None:
    first = OpenAIChatModel(
        "gpt-4o",
        provider=OpenAIProvider(
            openai_client=AsyncOpenAI(base_url="http://127.0.0.1:1/v1", api_key="none", max_retries=0)
        ),
    )
    if word == "err500":
        first = cast(OpenAIChatModel, make_model("chat"))

    def answer(*_: Any) -> ModelResponse:
        return ModelResponse(parts=[TextPart("ok")], usage=RequestUsage(input_tokens=7, output_tokens=2))

    async with session_database.recorder() as recorder:
        capability = SessionCapability(recorder, user_id=A)
        agent = Agent(FallbackModel(first, FunctionModel(answer)), capabilities=[capability])
        await agent.run(f"[[{word}]] Hello", run_id="r1")
        await Agent(FunctionModel(answer), capabilities=[capability]).run("Hello", run_id="r2")
        with pytest.raises(exceptions.FallbackExceptionGroup):
            await Agent(FallbackModel(first, first), capabilities=[capability]).run(f"[[{word}]] Hello", run_id="r3")
    assert recorder.snapshot().failures == 0
    events = await books.events(session_database)
    failed = (word != "slow", word == "err500", (0, 0))
    assert {key: (one.measured, one.errored, one.counts) for key, one in events.items()} == {
        "r1:1": (True, False, (7, 2)),
        "r1:1:0": failed,
        "r2:1": (True, False, (7, 2)),
        "r3:1": failed,
        "r3:1:0": failed,
    }


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


async def test_a_tool_call_id_that_is_used_again_is_another_step(session_database: SessionDatabase) -> None:
    def answer(messages: list[ModelMessage], _: Any) -> ModelResponse:
        if len(messages) > 4:
            return ModelResponse(parts=[TextPart("ok")])
        return ModelResponse(parts=[ToolCallPart("get_time", {"city": "Tartu"}, tool_call_id="call")])

    async with session_database.recorder() as recorder:
        capability = SessionCapability(recorder, user_id=A)
        await agent_of(capability, FunctionModel(answer)).run("Hello", run_id="r")
    found = await rows(session_database, "SELECT step_id, tool_call_id FROM session_lifecycle.session_steps ORDER BY 1")
    assert found == [("call", "call"), ("call:2", "call")]


def test_without_pydantic_ai_the_import_names_the_extra() -> None:
    program = """
        import sys
        sys.modules["pydantic_ai"] = None
        import session_lifecycle, session_lifecycle.integrations.adapter
        try:
            import session_lifecycle.integrations.pydantic_ai
        except ImportError as error:
            print(error)
    """
    ran = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, check=True)
    assert "pip install 'session-lifecycle[pydantic-ai]'" in ran.stdout


async def test_a_call_that_a_budget_refuses_ends_the_run(
    session_database: SessionDatabase, server: ModelServer, make_model: MakeModel
) -> None:
    async with session_database.recorder() as recorder:

        def agent(budgets: Any, name: str) -> Agent[Any, Any]:
            model = cast("Any", make_model("chat"))
            model._model_name = name  # noqa: SLF001 - the fixture has the connections of the model
            return agent_of(SessionCapability(recorder, user_id=A, budgets=budgets), model)

        async def plain(budgets: Any, name: str) -> None:
            await agent(budgets, name).run("Hello")

        async def stream(budgets: Any, name: str) -> None:
            async with agent(budgets, name).run_stream("Hello") as told:
                assert await told.get_output()

        error = exceptions.UsageLimitExceeded
        await assert_checked(session_database, recorder, server, plain, error, others=[stream])
        await limit(session_database, limit_usd=None, limit_tokens=1)
        with pytest.raises(BudgetRefusedError) as caught:
            await plain(session_database.budgets, "gpt-5")
        assert isinstance(caught.value, BudgetExceededError)
        assert caught.value.budget_ids == ("b",)
    statuses = [one.status for one in (await books.runs(session_database)).values()]
    assert (statuses[-1], set(statuses)) == ("failed", {"completed", "failed"})


async def test_a_budget_counts_sub_agents_and_rejected_responses_once(
    session_database: SessionDatabase, server: ModelServer, make_model: MakeModel
) -> None:
    await limit(session_database, limit_usd=None, limit_tokens=100_000)
    async with session_database.recorder() as recorder:
        check = BudgetCheck(session_database.budgets, needs={"tokens_in": 1_500, "tokens_out": 100})
        # Another adapter of the recorder asks nothing for what the first one asks for.
        capability = SessionCapability(recorder, user_id=A, budgets=check)
        other = SessionCapability(
            recorder, user_id=A, budgets=BudgetCheck(session_database.budgets, on_unavailable="refuse")
        )
        child = agent_of([capability, other], make_model("responses"), name="child")

        async def ask_child(ctx: RunContext[Any], request: str) -> str:
            """Asks the child."""
            return str((await child.run(request, usage=ctx.usage)).output)

        parent = agent_of([capability, other], make_model("responses"), name="parent", tools=[ask_child])
        await parent.run("[[tools:ask_child]] {{tools}} x")
        assert len(server.answered) > 2
        spent = sum(one.tokens_in + one.tokens_out for one in server.answered)
        assert await assert_settled(session_database, recorder) == spent
        assert recorder.snapshot().failures == 0
