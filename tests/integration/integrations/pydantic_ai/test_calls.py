"""The usage of Pydantic AI's calls of models: streams, retries, failures, cancellations, partial usage."""

import asyncio
from typing import Any, cast

import pytest
from openai import AsyncOpenAI
from pydantic_ai import Agent, ModelResponse, ModelRetry, RunContext, exceptions
from pydantic_ai.capabilities import AbstractCapability
from pydantic_ai.messages import TextPart
from pydantic_ai.models import ModelRequestContext
from pydantic_ai.models.fallback import FallbackModel
from pydantic_ai.models.function import FunctionModel
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider
from pydantic_ai.usage import RequestUsage

from session_lifecycle import SessionDatabase
from session_lifecycle.integrations.pydantic_ai import SessionCapability
from support import books
from support.eventually import eventually
from support.model_server import ModelServer
from support.runtimes.pydantic_ai import KINDS, Kind, MakeModel, agent_of
from support.usage import A


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
    # The name of a fallback model is that of all its models.
    assert all(str(one.provider).partition(":")[0] != "fallback" for one in events.values() if one.errored)
