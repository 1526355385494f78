"""Anthropic's client, recorded, against a stand-in of its API: the books equal what the stand-in served."""

import asyncio
import json
import struct
import zlib
from base64 import b64encode
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from functools import partial
from typing import Any

import httpx2
import pytest
from anthropic import (
    Anthropic,
    APIConnectionError,
    APIStatusError,
    AsyncAnthropic,
)
from anthropic.lib.bedrock import AsyncAnthropicBedrock

from session_lifecycle import SessionDatabase
from session_lifecycle.errors import BudgetExceededError
from session_lifecycle.integrations.anthropic_client import recorded_anthropic
from support import books
from support.books import Event
from support.budget_checks import assert_checked
from support.model_server import ModelServer
from support.recorded_clients import RecordedClient, recorded_client
from support.scripts import refusal_without
from support.transcripts import rows
from support.usage import A

MODEL = "claude-opus-5"
PARTS, NO_PARTS = (5000, 2000, 500, 20), (0, 0, 0, 0)
ASKED: Any = {"model": MODEL, "max_tokens": 100}


def said(words: str) -> Any:
    return [{"role": "user", "content": words}]


def event(counts: tuple[int, int] = (7120, 64), parts: Any = PARTS, **more: Any) -> Event:
    return Event("s1", "r1", None, "anthropic", MODEL, counts, parts, **more)


UNKNOWN = event((0, 0), NO_PARTS, measured=False)
CUT = event((7120, 3), (5000, 2000, 500, 0), partial=True)


def opened(db: SessionDatabase) -> AbstractAsyncContextManager[RecordedClient[AsyncAnthropic]]:
    return recorded_client(
        db,
        lambda server: AsyncAnthropic(base_url=server.url, api_key="none"),
        partial(recorded_anthropic, provider="anthropic"),
        AsyncAnthropic.close,
    )


async def test_plain_calls_streams_and_helpers(session_database: SessionDatabase) -> None:
    async with opened(session_database) as made:
        client = made.client
        message = await client.messages.create(**ASKED, messages=said("hello"))
        assert message.usage.input_tokens == 120
        assert [one.type async for one in await client.messages.create(**ASKED, messages=said("hello"), stream=True)]
        async with client.messages.stream(**ASKED, messages=said("hello")) as stream:
            assert "".join([text async for text in stream.text_stream]) == made.server.answer
        async with client.beta.messages.stream(**ASKED, messages=said("hello")) as beta:
            assert (await beta.get_final_message()).usage.output_tokens == 64
        raw = await client.messages.with_raw_response.create(**ASKED, messages=said("hello"))
        assert raw.http_response.json()["id"]
        async with client.messages.with_streaming_response.create(**ASKED, messages=said("hello")) as streamed:
            assert (await streamed.json())["id"]
        await made.equal_what_was_served()
        assert await made.events() == [event()] * 6
        assert await client.messages.count_tokens(model=MODEL, messages=said("hello"))
        assert len(await made.events()) == 6, "counting tokens is no call of a model"


async def test_tools_in_several_turns(session_database: SessionDatabase) -> None:
    async with opened(session_database) as made:
        tools: Any = [{"name": name, "input_schema": {"type": "object"}} for name in ("get_weather", "get_time")]
        messages = said("[[tools]] weather?")
        for _ in range(3):
            answer = await made.client.messages.create(**ASKED, messages=messages, tools=tools)
            calls = [block.id for block in answer.content if block.type == "tool_use"]
            messages.append({"role": "assistant", "content": [block.to_dict() for block in answer.content]})
            results = [{"type": "tool_result", "tool_use_id": call, "content": "7"} for call in calls]
            messages.append({"role": "user", "content": results})
        await made.equal_what_was_served()
        assert [one.counts for one in await made.events()] == [(7120, 64), (7121, 65), (7122, 66)]


async def leave(stream: Any, way: str) -> None:
    """Leaves a stream after its first event."""
    async for _ in stream:
        if way == "raise":
            raise KeyError
        break
    if way == "close":
        await stream.close()


@pytest.mark.parametrize("way", ["drop", "close", "raise"])
async def test_a_stream_that_is_left_early_is_a_lower_bound(session_database: SessionDatabase, way: str) -> None:
    async with opened(session_database) as made:
        stream: Any = await made.client.messages.create(**ASKED, messages=said("hello"), stream=True)
        try:
            await leave(stream, way)
        except KeyError:
            await stream.close()
        if way != "drop":
            assert await made.events() == [CUT], "recorded at once"
        del stream
        await asyncio.sleep(0.1)
        async with made.client.messages.stream(**ASKED, messages=said("hello")) as helper:
            async for _ in helper:
                break
        assert await made.events() == [CUT, CUT]
        assert made.recorder.snapshot().failures == 0


async def test_cut_connections_and_cancelled_calls(session_database: SessionDatabase) -> None:
    async with opened(session_database) as made:
        client = made.client.with_options(max_retries=0)

        async def heard(words: str) -> None:
            async for _ in await client.messages.create(**ASKED, messages=said(words), stream=True):
                pass

        with pytest.raises((APIConnectionError, httpx2.RemoteProtocolError)):
            await heard("[[broken]]")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(heard("[[slow]]"), 0.3)
        with pytest.raises(APIConnectionError):
            await client.messages.create(**ASKED, messages=said("[[broken]]"))
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(client.messages.create(**ASKED, messages=said("[[slow]]")), 0.3)
        assert sorted(await made.events()) == sorted([CUT, CUT, UNKNOWN, UNKNOWN])


async def test_errors_and_retries(session_database: SessionDatabase) -> None:
    async with opened(session_database) as made:
        await made.client.messages.create(**ASKED, messages=said("[[once429:a]]"))
        with pytest.raises(APIStatusError):
            await made.client.messages.create(**ASKED, messages=said("[[err500]]"))
        with pytest.raises(APIStatusError):
            async for _ in await made.client.messages.create(**ASKED, messages=said("[[midfail]]"), stream=True):
                pass
        assert sorted(await made.events()) == [
            event((0, 0), NO_PARTS, errored=True),
            event((7120, 3), (5000, 2000, 500, 0), errored=True, partial=True),
            event(),
        ]


async def test_zeros_are_no_usage(session_database: SessionDatabase) -> None:
    async with opened(session_database) as made:
        message = await made.client.messages.create(**ASKED, messages=said("[[nousage]]"))
        async for _ in await made.client.messages.create(**ASKED, messages=said("[[nousage]]"), stream=True):
            pass
        await made.recorder.flush()
        found = await books.events(made.db)
        assert found[message.id] == UNKNOWN
        assert list(found.values()) == [UNKNOWN, UNKNOWN]


async def test_tier_and_searches(session_database: SessionDatabase) -> None:
    async with opened(session_database) as made:
        await made.client.messages.create(**ASKED, messages=said("[[priority]] [[search]]"))
        async for _ in await made.client.messages.create(
            **ASKED, messages=said("[[priority]] [[search]]"), stream=True
        ):
            pass
        await made.events()
        sql = "SELECT service_tier, parts->>'web_searches' FROM session_lifecycle.session_usage_events"
        assert await rows(made.db, sql) == [("priority", "2")] * 2


async def test_content_by_choice(session_database: SessionDatabase) -> None:
    async with opened(session_database) as made:
        for client in (made.client, recorded_anthropic(made.bare, made.recorder, content=True)):
            await client.messages.create(**ASKED, messages=said("apricot"))
            async for _ in await client.messages.create(**ASKED, messages=said("apricot"), stream=True):
                pass
            await made.recorder.flush()
            if client is made.client:
                told = await books.texts(made.db)
                assert "apricot" not in told
                assert "Tartu" not in told
        pair = [("r1", "user", "apricot"), ("r1", "assistant", made.server.answer)]
        assert await books.messages(made.db) == pair * 2


def test_a_synchronous_client_outside_every_run(session_database_url: str) -> None:
    with ModelServer() as server, SessionDatabase.connect(session_database_url).synchronous_recorder() as recorder:
        bare = Anthropic(base_url=server.url, api_key="none")
        client = recorded_anthropic(bare, recorder, user_id=A, session_id="s1", agent_name="helper")
        client.messages.create(**ASKED, messages=said("hello"))
        with client.messages.stream(**ASKED, messages=said("hello")) as stream:
            assert stream.get_final_text() == server.answer
        with client.messages.stream(**ASKED, messages=said("hello")) as cut:
            next(iter(cut))
        recorder.flush()
        assert recorder.snapshot().failures == 0

        async def look() -> tuple[Any, Any]:
            async with SessionDatabase.connect(session_database_url) as db:
                return await books.events(db), await books.runs(db)

        found, runs = asyncio.run(look())
        assert [(one.counts, one.provider, one.partial) for one in found.values()] == [
            ((7120, 64), None, False),
            ((7120, 64), None, False),
            ((7120, 3), None, True),
        ]
        assert [(one.session, one.agent, one.status) for one in runs.values()] == [
            ("s1", "helper", "completed"),
            ("s1", "helper", "completed"),
            ("s1", "helper", "cancelled"),
        ]
        bare.close()


def frame(event: dict[str, Any]) -> bytes:
    """An event as Bedrock sends it: a frame of AWS's event streams."""
    headers = b""
    for name, value in ((":event-type", "chunk"), (":content-type", "application/json"), (":message-type", "event")):
        headers += bytes([len(name)]) + name.encode() + b"\x07" + struct.pack(">H", len(value)) + value.encode()
    payload = json.dumps({"bytes": b64encode(json.dumps(event).encode()).decode()}).encode()
    prelude = struct.pack(">II", 16 + len(headers) + len(payload), len(headers))
    prelude += struct.pack(">I", zlib.crc32(prelude))
    whole = prelude + headers + payload
    return whole + struct.pack(">I", zlib.crc32(whole))


async def test_streams_of_bedrock(session_database: SessionDatabase) -> None:
    usage = {"input_tokens": 120, "cache_read_input_tokens": 5000, "output_tokens": 3}
    message = {"id": "msg_bdrk_1a2b", "type": "message", "role": "assistant", "model": MODEL, "content": []}
    frames = b"".join(
        [
            frame({"type": "message_start", "message": {**message, "usage": usage}}),
            frame({"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 64}}),
            frame({"type": "message_stop"}),
        ]
    )

    async def pieces() -> AsyncIterator[bytes]:
        for start in range(0, len(frames), 50):
            yield frames[start : start + 50]

    def answer(request: httpx2.Request) -> httpx2.Response:
        headers = {"content-type": "application/vnd.amazon.eventstream"}
        return httpx2.Response(200, headers=headers, content=pieces(), request=request)

    async with (
        session_database.recorder() as recorder,
        httpx2.AsyncClient(transport=httpx2.MockTransport(answer)) as http_client,
    ):
        bare = AsyncAnthropicBedrock(
            aws_access_key="none", aws_secret_key="none", aws_region="eu-north-1", http_client=http_client
        )
        client = recorded_anthropic(bare, recorder, user_id=A, session_id="s1")
        stream = await client.messages.create(**ASKED, messages=said("hello"), stream=True)
        assert [one.type async for one in stream] == ["message_start", "message_delta", "message_stop"]
        await recorder.flush()
        [(key, found)] = (await books.events(session_database)).items()
        assert (key, found.provider, found.counts, found.parts) == ("msg_bdrk_1a2b", "aws", (5120, 64), (5000, 0, 0, 0))


def test_without_the_package_the_import_names_the_extra() -> None:
    refusal = refusal_without("anthropic", "anthropic_client")
    assert "pip install 'session-lifecycle[anthropic]'" in refusal


async def test_a_call_that_a_budget_refuses_is_not_sent(session_database: SessionDatabase) -> None:
    async with opened(session_database) as made:
        bare = Anthropic(base_url=made.server.url, api_key="none")

        def asked(model: str) -> Any:
            return {"model": model, "max_tokens": 100, "messages": said("hello")}

        async def stream(budgets: Any, model: str) -> None:
            client = made.recorded(budgets=budgets)
            async with client.messages.stream(**asked(model)) as told:
                await told.get_final_message()

        async def in_a_thread(budgets: Any, model: str) -> None:
            client = recorded_anthropic(bare, made.recorder, provider="anthropic", budgets=budgets)
            await asyncio.to_thread(lambda: client.messages.create(**asked(model)))

        with bare:
            error = BudgetExceededError
            await assert_checked(made.db, made.recorder, made.server, stream, error, MODEL, [in_a_thread])
