"""The usage of calls of models by LangChain: streams, retries, failures, cancellations, the cache, partial usage."""

import asyncio
import gc
from typing import Any
from uuid import uuid4

import pytest
from langchain_core.caches import InMemoryCache
from langchain_core.messages import HumanMessage
from langchain_core.outputs import Generation, LLMResult
from pydantic import BaseModel

from session_lifecycle import SessionDatabase
from session_lifecycle.integrations.langchain import SessionCallbackHandler
from session_lifecycle.writing.recorder import SessionRecorder
from support.books import items_needed
from support.eventually import eventually
from support.model_server import ModelServer
from support.runtimes.langchain import COUNTS, KINDS, NO_COUNTS, Fields, answered, books, counts_of, model_of, run_chain
from support.transcripts import events, rows, runs
from support.usage import A


class City(BaseModel):
    """A city."""

    name: str


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


async def test_an_answer_that_the_client_cannot_use_is_no_error_of_the_provider(
    session_database: SessionDatabase, recorder: SessionRecorder, server: ModelServer
) -> None:
    """It was billed. Where the client gives it with its error, its usage is known."""

    def cut(body: dict[str, Any]) -> dict[str, Any]:
        body["choices"][0]["finish_reason"] = "length"
        return body

    def no_json(body: dict[str, Any]) -> dict[str, Any]:
        body["choices"][0]["message"]["content"] = "no JSON"
        return body

    handler = SessionCallbackHandler(recorder, user_id=A, session_id="s1")
    model = model_of("chat", server, max_retries=0).with_structured_output(City, method="json_schema")
    for change, refusal in ((cut, "length limit"), (no_json, "validation error")):
        server.changed = change
        with pytest.raises(Exception, match=refusal):
            await model.ainvoke("Where is it?", config={"callbacks": [handler]})
    found = await books(session_database, recorder, f"model, measured, errored, partial, {COUNTS}")
    served = server.served[0]
    assert sorted(found) == [
        (served.model, False, False, False, *NO_COUNTS),
        (served.served_model, True, False, False, *counts_of(served)),
    ]
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
