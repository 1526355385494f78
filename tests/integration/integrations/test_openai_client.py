"""OpenAI's client, recorded, against a stand-in of its API: the books equal what the stand-in served."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from functools import partial
from typing import Any
from uuid import UUID

import httpx
import httpx2
import pytest
from openai import (
    APIConnectionError,
    APIError,
    APIResponseValidationError,
    APIStatusError,
    AsyncAzureOpenAI,
    AsyncOpenAI,
    OpenAI,
)
from pydantic import BaseModel

from session_lifecycle import SessionDatabase
from session_lifecycle.errors import BudgetExceededError, ConfigurationError
from session_lifecycle.integrations.budget_check import BudgetCheck
from session_lifecycle.integrations.counts import value_at
from session_lifecycle.integrations.openai_client import recorded_openai
from support import books
from support.books import Event
from support.budget_checks import assert_checked, assert_settled
from support.budgets import limit, used
from support.eventually import eventually
from support.model_server import ModelServer
from support.recorded_clients import RecordedClient, recorded_client
from support.scripts import refusal_without
from support.transcripts import rows
from support.usage import A

SERVED = "gpt-5-2025-08-07"
PARTS, NO_PARTS = (1024, 64, 0, 48), (0, 0, 0, 0)
WEATHER: Any = {
    "name": "get_weather",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}


def said(words: str) -> Any:
    return [{"role": "user", "content": words}]


def event(counts: tuple[int, int] = (1200, 80), parts: Any = PARTS, model: str = SERVED, **more: Any) -> Event:
    return Event("s1", "r1", None, "openai", model, counts, parts, **more)


async def aislice(stream: AsyncIterator[Any], count: int) -> AsyncIterator[Any]:
    """The first pieces of a stream."""
    for _ in range(count):
        yield await anext(stream)


UNKNOWN = event((0, 0), NO_PARTS, "gpt-5", measured=False)


def opened(db: SessionDatabase) -> AbstractAsyncContextManager[RecordedClient[AsyncOpenAI]]:
    return recorded_client(
        db,
        lambda server: AsyncOpenAI(base_url=server.openai, api_key="none"),
        partial(recorded_openai, provider="openai"),
        AsyncOpenAI.close,
    )


async def test_plain_calls(session_database: SessionDatabase) -> None:
    async with opened(session_database) as made:
        client = made.client
        chat = await client.chat.completions.create(model="gpt-5", messages=said("hello"))
        response = await client.responses.create(model="gpt-5", input="hello")
        vector = await client.embeddings.create(model="text-embedding-3-small", input="hello")
        image = await client.images.generate(model="gpt-image-1", prompt="hello")
        assert all(one.usage is not None for one in (chat, response, vector, image))
        await made.recorder.flush()
        found = await books.events(made.db)
        assert found.pop(chat.id) == event()
        assert found.pop(response.id) == event()
        assert sorted(found.values()) == [
            event((50, 1056), NO_PARTS, "gpt-image-1"),
            event((8, 0), NO_PARTS, "text-embedding-3-small"),
        ]
        [[kind, images_in, images_out]] = await rows(
            made.db,
            "SELECT min(kind) FILTER (WHERE model LIKE 'text%'), max(parts->>'image_tokens_in'),"
            " max(parts->>'image_tokens_out') FROM session_lifecycle.session_usage_events",
        )
        assert (kind, images_in, images_out) == ("embedding", "40", "1056")
        assert made.recorder.snapshot().items == await books.items_needed(made.db)


async def test_tools_in_several_turns_and_no_step_is_made_up(session_database: SessionDatabase) -> None:
    async with opened(session_database) as made:
        messages = said("[[tools]] weather?")
        for _ in range(2):
            answer = await made.client.chat.completions.create(
                model="gpt-5", messages=messages, tools=[{"type": "function", "function": WEATHER}]
            )
            messages.append(answer.choices[0].message.to_dict())
            for call in answer.choices[0].message.tool_calls or []:
                messages.append({"role": "tool", "tool_call_id": call.id, "content": "7"})
        tools: Any = [{"type": "function", "strict": True, **WEATHER}]
        first = await made.client.responses.create(model="gpt-5", input="[[tools]] weather?", tools=tools)
        await made.client.responses.create(model="gpt-5", previous_response_id=first.id, input="go on")
        await made.equal_what_was_served()
        assert [one.counts for one in await made.events()] == [(1200, 80), (1300, 81), (1200, 80), (1300, 81)]
        assert await books.steps(made.db) == {}


async def test_streams_to_their_end(session_database: SessionDatabase) -> None:
    async with opened(session_database) as made:
        client = made.client
        words = ""
        async for chunk in await client.chat.completions.create(
            model="gpt-5", messages=said("hello"), stream=True, stream_options={"include_usage": True}
        ):
            words += (chunk.choices[0].delta.content or "") if chunk.choices else ""
        assert words == made.server.answer
        kinds = [one.type async for one in await client.responses.create(model="gpt-5", input="hello", stream=True)]
        assert kinds[-1] == "response.completed"
        async with client.responses.stream(model="gpt-5", input="hello") as stream:
            assert (await stream.get_final_response()).output_text == made.server.answer
        async with client.chat.completions.stream(
            model="gpt-5", messages=said("hello"), stream_options={"include_usage": True}
        ) as chunks:
            assert (await chunks.get_final_completion()).usage is not None
        await made.equal_what_was_served()
        assert await made.events() == [event()] * 4


async def test_streams_that_an_event_hook_has_read(session_database: SessionDatabase) -> None:
    async def read(response: httpx2.Response) -> None:
        await response.aread()

    async with opened(session_database) as made, httpx2.AsyncClient(event_hooks={"response": [read]}) as http_client:
        client = made.recorded().with_options(http_client=http_client)
        chat = await client.chat.completions.create(
            model="gpt-5", messages=said("hello"), stream=True, stream_options={"include_usage": True}
        )
        assert [chunk async for chunk in chat]
        assert [one async for one in await client.responses.create(model="gpt-5", input="hello", stream=True)]
        assert await made.events() == [event(), event()]
        await made.equal_what_was_served()


async def test_a_chat_stream_is_asked_for_no_usage_unless_the_host_wants_it(session_database: SessionDatabase) -> None:
    async with opened(session_database) as made:
        for client in (made.client, made.recorded(include_usage=True)):
            stream = await client.chat.completions.create(model="gpt-5", messages=said("hello"), stream=True)
            assert [chunk async for chunk in stream]
        assert [one.body.get("stream_options") for one in made.server.served] == [None, {"include_usage": True}]
        without = event((0, 0), NO_PARTS, measured=False)
        assert await made.events() == [without, event()]
        asked: Any = {"include_usage": False}
        stream = await client.chat.completions.create(
            model="gpt-5", messages=said("hello"), stream=True, stream_options=asked
        )
        assert [chunk async for chunk in stream]
        await client.chat.completions.create(model="gpt-5", messages=said("hello"))
        assert [one.body.get("stream_options") for one in made.server.served[2:]] == [asked, None]


async def fail_inside(stream: Any) -> None:
    async with stream:
        async for _ in stream:
            raise KeyError


@pytest.mark.parametrize("way", ["drop", "close", "raise"])
async def test_a_stream_that_is_closed_early_is_unmeasured(session_database: SessionDatabase, way: str) -> None:
    async with opened(session_database) as made:
        for ask in (
            lambda: made.client.responses.create(model="gpt-5", input="hello", stream=True),
            lambda: made.client.chat.completions.create(model="gpt-5", messages=said("hello"), stream=True),
        ):
            stream: Any = await ask()
            if way == "raise":
                with pytest.raises(KeyError):
                    await fail_inside(stream)
            else:
                async for _ in stream:
                    break
            if way == "close":
                await stream.close()
                assert await made.events(), "recorded at once"
            del stream
    # A stream that is only dropped is closed by the garbage collector, or else at the end of the run.
    assert list((await books.events(session_database)).values()) == [UNKNOWN, UNKNOWN]
    assert made.recorder.snapshot().failures == 0


async def test_a_connection_that_is_cut_is_unmeasured(session_database: SessionDatabase) -> None:
    async with opened(session_database) as made:
        client = made.client.with_options(max_retries=0)
        # Version 2 of the client lets the error of its own client through.
        with pytest.raises((APIConnectionError, httpx.TransportError)):
            async for _ in await client.responses.create(model="gpt-5", input="[[broken]]", stream=True):
                pass
        with pytest.raises(APIConnectionError):
            await client.chat.completions.create(model="gpt-5", messages=said("[[broken]]"))
        assert await made.events() == [UNKNOWN, UNKNOWN]


async def test_a_cancelled_call_is_unmeasured(session_database: SessionDatabase) -> None:
    async with opened(session_database) as made:

        async def heard() -> None:
            async for _ in await made.client.responses.create(model="gpt-5", input="[[slow]]", stream=True):
                pass

        plain = made.client.responses.create(model="gpt-5", input="[[slow]]")
        for coroutine in (plain, heard()):
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(coroutine, 0.3)
        assert await made.events() == [UNKNOWN, UNKNOWN]


async def test_errors(session_database: SessionDatabase) -> None:
    async with opened(session_database) as made:
        with pytest.raises(APIStatusError) as caught:
            await made.client.responses.create(model="gpt-5", input="[[err500]] [[private]]")
        assert caught.value.status_code == 500
        assert len(made.server.served) == 3
        with pytest.raises(APIError):
            async for _ in await made.client.chat.completions.create(
                model="gpt-5", messages=said("[[midfail]]"), stream=True
            ):
                pass
        with pytest.raises(APIConnectionError):
            await made.client.with_options(base_url="http://127.0.0.1:9", max_retries=0).responses.create(
                model="gpt-5", input="nobody is there"
            )
        failed = event((0, 0), NO_PARTS, "gpt-5", errored=True)
        assert await made.events() == [failed] * 3, "one event for a call, and not for each try of it"


async def test_a_failed_response_in_a_stream_is_an_error(session_database: SessionDatabase) -> None:
    async with opened(session_database) as made:
        stream = await made.client.responses.create(model="gpt-5", input="[[midfail]]", stream=True)
        assert [one.type async for one in stream][-1] == "response.failed"
        assert await made.events() == [event((0, 0), NO_PARTS, errored=True)]


async def test_retries_are_one_event(session_database: SessionDatabase) -> None:
    async with opened(session_database) as made:
        await made.client.responses.create(model="gpt-5", input="[[once429:a]]")
        await made.client.chat.completions.create(model="gpt-5", messages=said("[[once500:b]]"))
        assert len(made.server.served) == 4
        await made.equal_what_was_served()
        assert await made.events() == [event(), event()]


async def test_no_usage_is_unmeasured_under_the_responses_id(session_database: SessionDatabase) -> None:
    async with opened(session_database) as made:
        response = await made.client.responses.create(model="gpt-5", input="[[nousage]]")
        await made.recorder.flush()
        assert await books.events(made.db) == {response.id: event((0, 0), NO_PARTS, measured=False)}


class City(BaseModel):
    name: str
    degrees: int


async def test_helpers_and_raw_responses(session_database: SessionDatabase) -> None:
    async with opened(session_database) as made:
        client, hello = made.client, said("hello")
        assert (await client.chat.completions.parse(model="gpt-5", messages=hello, response_format=City)).id
        assert (await client.responses.parse(model="gpt-5", input="hello", text_format=City)).output_parsed
        raw = await client.responses.with_raw_response.create(model="gpt-5", input="hello")
        assert raw.parse().output_text == made.server.answer
        raw_parsed = await client.with_raw_response.chat.completions.parse(
            model="gpt-5", messages=hello, response_format=City
        )
        assert raw_parsed.parse().choices[0].message.parsed is not None
        raw_stream = await client.responses.with_raw_response.create(model="gpt-5", input="hello", stream=True)
        assert len([one async for one in raw_stream.parse()]) > 3
        for read in ("parse", "json", "read", "iter_lines"):
            async with client.responses.with_streaming_response.create(model="gpt-5", input="hello") as streamed:
                got: Any = getattr(streamed, read)()
                assert [line async for line in got] if read == "iter_lines" else await got
        async with client.responses.with_streaming_response.create(
            model="gpt-5", input="hello", stream=True
        ) as streamed:
            assert [line async for line in streamed.iter_lines()]
        assert await client.post("/responses", cast_to=object, body={"model": "gpt-5", "input": "hello"})
        await made.equal_what_was_served()
        assert await made.events() == [event()] * 11


async def test_a_parser_that_refuses_the_answer_does_not_hide_its_usage(session_database: SessionDatabase) -> None:
    async with opened(session_database) as made:
        made.server.answer = "no JSON"
        schema: Any = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"const": "seven"}}}
        with pytest.raises(ValueError, match="validation error"):
            await made.client.responses.parse(
                model="gpt-5", input="hello", text_format=City, extra_body={"text": {"format": {"type": "text"}}}
            )
        with pytest.raises(ValueError, match="validation error"):
            await made.client.chat.completions.parse(
                model="gpt-5", messages=said("hello"), response_format=City, extra_body={"response_format": schema}
            )
        await made.equal_what_was_served()
        assert await made.events() == [event(), event()]


async def test_copies_are_recorded_and_the_hosts_client_is_not(session_database: SessionDatabase) -> None:
    async with opened(session_database) as made:
        await made.bare.responses.create(model="gpt-5", input="not recorded")
        await made.client.with_options(timeout=20).copy(max_retries=1).responses.create(model="gpt-5", input="hello")
        again = recorded_openai(made.client, made.recorder, provider="openrouter")
        await again.responses.create(model="gpt-5", input="hello")
        assert isinstance(made.client, AsyncOpenAI)
        assert type(made.bare) is AsyncOpenAI
        assert [one.provider for one in await made.events()] == ["openai", "openrouter"]


async def test_a_response_that_is_made_in_the_background(session_database: SessionDatabase) -> None:
    async with opened(session_database) as made:
        response = await made.client.responses.create(model="gpt-5", input="hello", background=True)
        assert (response.status, response.usage) == ("queued", None)
        assert await made.events() == []
        assert (await made.client.responses.retrieve(response.id)).status == "completed"
        await made.client.responses.retrieve(response.id)
        assert await made.events() == [event()]


@pytest.mark.parametrize("asked", ["plain", "raw", "streamed", "stream"])
@pytest.mark.parametrize("looked", ["plain", "raw", "streamed", "stream", "beta"])
async def test_the_background_in_every_way_to_ask_and_to_look(
    session_database: SessionDatabase, asked: str, looked: str
) -> None:
    async with opened(session_database) as made:
        responses = made.client.responses
        wanted: Any = {"model": "gpt-5", "input": "hello", "background": True}
        if asked == "raw":
            found = (await responses.with_raw_response.create(**wanted)).parse().id
        elif asked == "streamed":
            async with responses.with_streaming_response.create(**wanted) as streamed:
                found = (await streamed.parse()).id
        elif asked == "stream":
            async with await responses.create(**wanted, stream=True) as stream:
                found = [one.response.id async for one in aislice(stream, 2)][-1]
        else:
            found = (await responses.create(**wanted)).id
        assert await made.events() == []
        if looked == "raw":
            assert (await responses.with_raw_response.retrieve(found)).parse().usage is not None
        elif looked == "streamed":
            async with responses.with_streaming_response.retrieve(found) as streamed:
                assert (await streamed.parse()).usage is not None
        elif looked == "stream":
            assert [one.type async for one in await responses.retrieve(found, stream=True)] == ["response.completed"]
        elif looked == "beta":
            assert (await made.client.beta.responses.retrieve(found)).usage is not None
        else:
            assert (await responses.retrieve(found)).usage is not None
        await made.equal_what_was_served()
        assert await made.events() == [event()]


async def test_a_response_in_the_background_that_nobody_reads_waits_for_the_next_look(
    session_database: SessionDatabase,
) -> None:
    async with opened(session_database) as made:
        responses = made.client.responses
        found = (await responses.create(model="gpt-5", input="hello", background=True)).id
        async with responses.with_streaming_response.retrieve(found):
            pass
        with pytest.raises(APIStatusError):
            await responses.retrieve("resp_unknown")
        assert await made.events() == []
        await responses.retrieve(found)
        assert await made.events() == [event()]


async def test_betas_and_decisions(session_database: SessionDatabase) -> None:
    async with opened(session_database) as made:
        await made.client.beta.responses.create(model="gpt-5", input="hello")
        async for _ in await made.client.beta.responses.create(model="gpt-5", input="hello", stream=True):
            pass
        await made.equal_what_was_served()
        await made.client.decisions.create(
            model="gpt-5", input="hello", questions=[{"type": "predicate", "text": "Is it a greeting?"}]
        )
        assert await made.events() == [event()] * 3


async def test_a_transcription(session_database: SessionDatabase) -> None:
    usage = {"type": "tokens", "input_tokens": 30, "output_tokens": 9, "total_tokens": 39}
    usage |= {"input_token_details": {"audio_tokens": 25, "text_tokens": 5}}
    done = {"type": "transcript.text.done", "text": "seven", "usage": usage}

    def answer(request: httpx2.Request) -> httpx2.Response:
        if b'name="stream"' in request.content:
            headers = {"content-type": "text/event-stream"}
            return httpx2.Response(200, headers=headers, content=f"data: {json.dumps(done)}\n\n")
        if b"whisper-1" in request.content:
            return httpx2.Response(200, json={"text": "seven", "usage": {"type": "duration", "seconds": 3}})
        return httpx2.Response(200, json={"text": "seven", "usage": usage})

    async with opened(session_database) as made:
        transport = httpx2.MockTransport(answer)
        made.bare = AsyncOpenAI(api_key="none", http_client=httpx2.AsyncClient(transport=transport))
        transcriptions = made.recorded().audio.transcriptions
        file = ("a.wav", b"RIFF")
        await transcriptions.create(model="gpt-4o-transcribe", file=file)
        async for _ in await transcriptions.create(model="gpt-4o-transcribe", file=file, stream=True):
            pass
        await transcriptions.create(model="whisper-1", file=file)
        assert sorted((one.model, one.counts, one.measured) for one in await made.events()) == [
            ("gpt-4o-transcribe", (30, 9), True),
            ("gpt-4o-transcribe", (30, 9), True),
            ("whisper-1", (0, 0), False),
        ]


async def test_an_answer_that_the_client_refuses_is_unmeasured_and_no_error_of_the_provider(
    session_database: SessionDatabase,
) -> None:
    async with opened(session_database) as made:
        transport = httpx2.MockTransport(lambda _: httpx2.Response(200, text="no JSON"))
        http_client = httpx2.AsyncClient(transport=transport)
        made.bare = AsyncOpenAI(api_key="none", http_client=http_client)
        client = made.recorded()
        vars(client)["_strict_response_validation"] = True
        with pytest.raises(APIResponseValidationError):
            await client.responses.create(model="gpt-5", input="hello")
        assert await made.events() == [UNKNOWN]


async def test_what_is_no_call_of_a_model_is_not_recorded(session_database: SessionDatabase) -> None:
    async with opened(session_database) as made:
        with pytest.raises(APIStatusError):
            await made.client.moderations.create(input="hello")
        with pytest.raises(APIStatusError):
            await made.client.models.list()
        assert await made.events() == []


async def test_ids_that_are_no_keys(session_database: SessionDatabase) -> None:
    """Servers of this API send ids that are always the same, or drawn from a few hundred."""
    async with opened(session_database) as made:
        for made_up in ("chatcmpl-554", "chatcmpl-554", "", "always-the-same", "always-the-same"):
            made.server.fixed_id = made_up
            await made.client.chat.completions.create(model="gpt-5", messages=said("hello"))
        assert await made.events() == [event()] * 5
        assert [key for key in await books.events(made.db) if not key.startswith("attempt-")] == ["always-the-same"]


async def test_service_tier_and_searches(session_database: SessionDatabase) -> None:
    async with opened(session_database) as made:
        await made.client.responses.create(model="gpt-5", input="[[priority]] [[search]]")
        async for _ in await made.client.responses.create(model="gpt-5", input="[[priority]] [[search]]", stream=True):
            pass
        await made.events()
        sql = "SELECT service_tier, parts->>'web_searches' FROM session_lifecycle.session_usage_events"
        assert await rows(made.db, sql) == [("priority", "2")] * 2


async def test_azure(session_database: SessionDatabase) -> None:
    async with opened(session_database) as made:
        bare = AsyncAzureOpenAI(azure_endpoint=made.server.url, api_key="none", api_version="2025-04-01-preview")
        azure = recorded_openai(bare, made.recorder)
        await azure.chat.completions.create(model="gpt-5", messages=said("hello"))
        await azure.with_options(timeout=20).responses.create(model="gpt-5", input="hello")
        assert [(one.provider, one.counts) for one in await made.events()] == [("azure", (1200, 80))] * 2
        assert isinstance(azure, AsyncAzureOpenAI)
        await bare.close()


def test_the_provider_is_known_by_the_address_or_not_at_all() -> None:
    from session_lifecycle.integrations.openai_client import _provider  # pyright: ignore[reportPrivateUsage]

    for address, provider in (
        ("https://api.openai.com/v1", "openai"),
        ("https://eu.api.openai.com/v1", "openai"),
        ("https://me.openai.azure.com/openai/v1", "azure"),
        ("https://openrouter.ai/api/v1", None),
        ("https://notopenai.com/v1", None),
    ):
        assert _provider(OpenAI(base_url=address, api_key="none")) == provider


async def test_calls_outside_every_run(session_database: SessionDatabase) -> None:
    async with ModelServer() as server, session_database.recorder() as recorder:
        client = recorded_openai(
            AsyncOpenAI(base_url=server.openai, api_key="none"), recorder, user_id=A, agent_name="helper"
        )
        async with recorder.session("s1", A, quiet=True):
            await client.responses.create(model="gpt-5", input="hello")
            with pytest.raises(APIStatusError):
                await client.responses.create(model="gpt-5", input="[[err400]]")
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(client.responses.create(model="gpt-5", input="[[slow]]"), 0.3)
        await client.responses.create(model="gpt-5", input="hello")
        await recorder.flush()
        runs = await books.runs(session_database)
        assert [(one.agent, one.status) for one in runs.values()] == [
            ("helper", "completed"),
            ("helper", "failed"),
            ("helper", "cancelled"),
            ("helper", "completed"),
        ]
        alone = list(runs)[-1]
        assert [one.session for one in runs.values()] == ["s1", "s1", "s1", alone], "with no session around, its own"
        assert {one.run for one in (await books.events(session_database)).values()} == set(runs)
        assert recorder.snapshot().failures == 0
        await client.close()


async def test_calls_at_once_stay_apart(session_database: SessionDatabase) -> None:
    async with ModelServer() as server, session_database.recorder() as recorder:
        client = recorded_openai(AsyncOpenAI(base_url=server.openai, api_key="none"), recorder)

        async def work(number: int) -> str:
            async with recorder.session(f"s{number}", A, quiet=True) as session:
                with session.run(run_id=f"r{number}"):
                    response = await client.responses.create(model="gpt-5", input="hello")
                    stream = await client.responses.create(model="gpt-5", input="hello", stream=True)
                    last = [one async for one in stream][-1]
                    return f"{response.id},{value_at(last, 'response', 'id')}"

        ids = await asyncio.gather(*(work(number) for number in range(8)))
        await recorder.flush()
        found = await books.events(session_database)
        for number, pair in enumerate(ids):
            for one in pair.split(","):
                assert (found[one].session, found[one].run) == (f"s{number}", f"r{number}")
        assert len(found) == 16
        await client.close()


async def test_no_owner_is_a_loss_that_is_told_and_the_host_goes_on(session_database: SessionDatabase) -> None:
    async with ModelServer() as server, session_database.recorder() as recorder:
        client = recorded_openai(AsyncOpenAI(base_url=server.openai, api_key="none"), recorder)
        response = await client.responses.create(model="gpt-5", input="hello")
        stream = await client.responses.create(model="gpt-5", input="hello", stream=True)
        assert response.output_text
        assert [one async for one in stream]
        await asyncio.sleep(0)
        assert recorder.snapshot().failures == 2
        await recorder.flush()
        assert await books.events(session_database) == {}
        await client.close()


async def test_an_answer_that_is_not_as_expected_is_counted_and_the_host_goes_on(
    session_database: SessionDatabase,
) -> None:
    async with opened(session_database) as made:
        made.server.changed = lambda body: {**body, "output": [{"type": "message", "content": 7}], "usage": "none"}
        assert await made.client.responses.create(model="gpt-5", input="hello")
        made.server.changed = lambda body: {**body, "output": 7}
        assert await made.client.responses.create(model="gpt-5", input="hello")
        await asyncio.sleep(0)
        found = await made.events()
        assert [one.counts for one in found][:1] == [(0, 0)]
        assert made.recorder.snapshot().failures == 1
    assert [one.measured for one in (await books.events(session_database)).values()] == [False, False]


async def test_nothing_of_what_was_said_is_recorded_unless_it_is_wanted(session_database: SessionDatabase) -> None:
    async with opened(session_database) as made:

        async def say_all(client: AsyncOpenAI, words: str) -> None:
            await client.responses.create(model="gpt-5", input=words)
            await client.chat.completions.create(model="gpt-5", messages=[*said("before"), *said(words)])
            async for _ in await client.chat.completions.create(model="gpt-5", messages=said(words), stream=True):
                pass
            async for _ in await client.responses.create(model="gpt-5", input=said(words), stream=True):
                pass
            with pytest.raises(APIStatusError):
                await client.responses.create(model="gpt-5", input=f"{words} [[err400]]")

        await say_all(made.client, "apricot")
        await made.recorder.flush()
        told = await books.texts(made.db)
        assert "apricot" not in told
        assert "Tartu" not in told
        assert await books.messages(made.db) == []
        await say_all(made.recorded(content=True), "apricot")
        await made.recorder.flush()
        pairs = [("r1", "user", "apricot"), ("r1", "assistant", made.server.answer)]
        assert sorted(await books.messages(made.db)) == sorted([*(pairs * 4), ("r1", "user", "apricot [[err400]]")])


def test_a_synchronous_client(session_database_url: str) -> None:
    with ModelServer() as server, SessionDatabase.connect(session_database_url).synchronous_recorder() as recorder:
        bare = OpenAI(base_url=server.openai, api_key="none")
        client = recorded_openai(bare, recorder, user_id=A, session_id="s1", provider="openai")
        client.responses.create(model="gpt-5", input="hello")
        assert list(client.responses.create(model="gpt-5", input="hello", stream=True))
        with client.responses.stream(model="gpt-5", input="hello") as stream:
            assert stream.get_final_response().output_text
        assert client.chat.completions.parse(model="gpt-5", messages=said("hello"), response_format=City).id
        with client.responses.with_streaming_response.create(model="gpt-5", input="hello") as streamed:
            assert streamed.json()
        assert client.responses.with_raw_response.create(model="gpt-5", input="hello").parse()
        with client.responses.create(model="gpt-5", input="hello", stream=True) as cut:
            next(iter(cut))
        with pytest.raises(APIStatusError):
            client.with_options(max_retries=0).responses.create(model="gpt-5", input="[[err500]]")
        recorder.flush()
        assert recorder.snapshot().failures == 0

        async def look() -> tuple[Any, Any]:
            async with SessionDatabase.connect(session_database_url) as db:
                return await books.events(db), await books.runs(db)

        found, runs = asyncio.run(look())
        assert {one.session for one in found.values()} == {"s1"}
        assert {key: value for key, value in found.items() if value.measured and not value.errored}.keys() == {
            one.response_id for one in server.served[:6]
        }
        assert [one.status for one in runs.values()] == [*["completed"] * 6, "cancelled", "failed"]
        bare.close()


def test_without_the_package_the_import_names_the_extra() -> None:
    refusal = refusal_without("openai", "openai_client")
    assert "pip install 'session-lifecycle[openai]'" in refusal


# Budgets


async def test_a_call_that_a_budget_refuses_is_not_sent(session_database: SessionDatabase) -> None:
    async with opened(session_database) as made:
        bare = OpenAI(base_url=made.server.openai, api_key="none")

        async def chat(budgets: Any, model: str) -> None:
            await made.recorded(budgets=budgets).chat.completions.create(model=model, messages=said("hello"))

        async def stream(budgets: Any, model: str) -> None:
            async with made.recorded(budgets=budgets).responses.stream(model=model, input="hello") as told:
                await told.until_done()

        async def in_a_thread(budgets: Any, model: str) -> None:
            client = recorded_openai(bare, made.recorder, provider="openai", budgets=budgets)
            await asyncio.to_thread(lambda: client.chat.completions.create(model=model, messages=said("hello")))

        with bare:
            others = [stream, in_a_thread]
            await assert_checked(made.db, made.recorder, made.server, chat, BudgetExceededError, others=others)
            # An adapter that is given no budgets asks for nothing.
            served = len(made.server.served)
            await made.client.chat.completions.create(model="gpt-5", messages=said("hello"))
            assert len(made.server.served) == served + 1


async def test_a_reservation_lasts_until_the_call_is_recorded(session_database: SessionDatabase) -> None:
    """Failed, cancelled and repeated calls, too: each is recorded once, with the key that was reserved."""
    async with opened(session_database) as made:
        await limit(made.db, limit_usd=None, limit_tokens=10_000)
        client = made.recorded(budgets=BudgetCheck(made.db.budgets, needs={"tokens_in": 9_000}))
        with pytest.raises(APIStatusError):
            await client.chat.completions.create(model="gpt-5", messages=said("[[err400]]"))
        await assert_settled(made.db, made.recorder)
        await client.chat.completions.create(model="gpt-5", messages=said("[[once429:a]]"))
        assert await assert_settled(made.db, made.recorder) == 1280

        client = made.recorded(budgets=BudgetCheck(made.db.budgets, needs={"tokens_in": 8_000}))
        slow = asyncio.create_task(client.chat.completions.create(model="gpt-5", messages=said("[[slow]]")))
        await eventually(lambda: made.server.served[-1].case == ("slow",))
        assert (await used(made.db)).reserved_tokens == 8_000
        with pytest.raises(BudgetExceededError):
            await client.chat.completions.create(model="gpt-5", messages=said("hello"))
        slow.cancel()
        with pytest.raises(asyncio.CancelledError):
            await slow
        assert await assert_settled(made.db, made.recorder) == 1280
        assert UNKNOWN in await made.events()


async def test_calls_at_once_never_pass_the_limit(session_database: SessionDatabase) -> None:
    async with opened(session_database) as made:
        await limit(made.db, limit_usd=None, limit_tokens=10 * 1280)
        needs: Any = {"tokens_in": 1200, "tokens_out": 80}
        client = made.recorded(budgets=BudgetCheck(made.db.budgets, needs=needs))
        bare = OpenAI(base_url=made.server.openai, api_key="none")
        in_threads = recorded_openai(
            bare, made.recorder, provider="openai", budgets=BudgetCheck(made.db.budgets, needs=needs)
        )
        with bare:
            answers = await asyncio.gather(
                *(client.chat.completions.create(model="gpt-5", messages=said("hello")) for _ in range(12)),
                *(
                    asyncio.to_thread(lambda: in_threads.chat.completions.create(model="gpt-5", messages=said("hello")))
                    for _ in range(12)
                ),
                return_exceptions=True,
            )
        refused = [one for one in answers if isinstance(one, BudgetExceededError)]
        assert (len(made.server.served), len(refused)) == (10, 14)
        assert await assert_settled(made.db, made.recorder) == 10 * 1280


async def test_a_budget_of_an_agent_or_a_dataset_counts_a_session_that_is_not_written_yet(
    session_database: SessionDatabase,
) -> None:
    dataset = UUID(int=7)
    await limit(session_database, "agent", user_id=None, agent_name="coder", limit_tokens=10)
    await limit(session_database, "dataset", user_id=None, dataset_id=dataset, limit_tokens=10)
    async with ModelServer() as server, session_database.recorder() as recorder:
        bare = AsyncOpenAI(base_url=server.openai, api_key="none")

        async def refused(**more: Any) -> tuple[str, ...]:
            check = BudgetCheck(session_database.budgets, needs={"tokens_in": 11, "cost_usd": 0})
            client = recorded_openai(bare, recorder, budgets=check, **more)
            with pytest.raises(BudgetExceededError) as caught:
                await client.chat.completions.create(model="gpt-5", messages=said("hello"))
            return caught.value.budget_ids

        assert await refused(user_id=A, agent_name="coder", session_id="s1") == ("agent",)
        async with recorder.session("s2", A, dataset, quiet=True) as session:
            with session.run(agent_name="coder"):
                assert await refused() == ("agent", "dataset")
        assert server.served == []
        await bare.close()


async def test_a_call_that_is_cancelled_while_it_asks_reserves_nothing(session_database: SessionDatabase) -> None:
    async with opened(session_database) as made:
        await limit(made.db, limit_usd=None, limit_tokens=100_000)
        client = made.recorded(budgets=BudgetCheck(made.db.budgets, needs={"tokens_in": 9_000}))
        cancelled = 0
        for turns in range(8):
            asking = asyncio.create_task(client.chat.completions.create(model="gpt-5", messages=said("hello")))
            for _ in range(turns):
                await asyncio.sleep(0.001)
            asking.cancel()
            await asyncio.wait([asking])
            cancelled += asking.cancelled()  # the later ones may have had their answer
        assert cancelled
        await made.recorder.flush()

        async def is_free() -> bool:
            return (await used(made.db)).reserved_tokens == 0

        await eventually(is_free)
        assert made.recorder.snapshot().failures == 0


async def test_a_check_that_cannot_ask_is_told(session_database: SessionDatabase) -> None:
    async with opened(session_database) as made:

        def broken(_model: str | None, _request: Any) -> Any:
            raise LookupError("no figures")

        client = made.recorded(budgets=BudgetCheck(made.db.budgets, needs=broken))
        await client.chat.completions.create(model="gpt-5", messages=said("hello"))
        client = made.recorded(budgets=BudgetCheck(made.db.budgets, needs=broken, on_unavailable="refuse"))
        with pytest.raises(BudgetExceededError, match="cannot be asked") as caught:
            await client.chat.completions.create(model="gpt-5", messages=said("hello"))
        assert caught.value.budget_ids == ()
        assert len(made.server.served) == 1
        await made.recorder.flush()
        assert made.recorder.snapshot().failures == 2
    for refused in ({"within": 0}, {"on_unavailable": "wait"}, {"budgets": made.db}):
        with pytest.raises(ConfigurationError):
            BudgetCheck(**{"budgets": made.db.budgets, **refused})  # type: ignore[arg-type] # that is refused
