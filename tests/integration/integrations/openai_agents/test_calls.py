"""The usage of OpenAI Agents' calls of models: retries, failures, cancellations, partial usage."""

import asyncio
from collections import Counter

import pytest
from agents import (
    ModelResponse,
    ModelRetrySettings,
    ModelSettings,
    Runner,
    Usage,
    UserError,
    retry_policies,
    set_tracing_disabled,
)
from agents.testing import ScriptedModel, assistant_message, function_call
from openai import APIStatusError
from openai.types.responses.response_usage import InputTokensDetails

from session_lifecycle import SessionDatabase
from support import books
from support.eventually import eventually
from support.model_server import ModelServer
from support.runtimes.openai_agents import KINDS, STREAMS, Kind, MakeModel, agent_of, hooks_of, run


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
