"""Calls OpenAI's client as instrumentations of OpenTelemetry see it. Prints what the model server served in each case.

A program of its own, as what `opentelemetry-instrumentation-openai` 0.62.4 wraps stays wrapped.

Arguments: the database's URL, and the instrumentations by commas.
"""

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable
from contextlib import suppress
from importlib import import_module
from typing import Any
from uuid import UUID

from openai import AsyncOpenAI, InternalServerError
from opentelemetry.sdk.trace import TracerProvider

from session_lifecycle import SessionDatabase
from session_lifecycle.integrations.opentelemetry import SessionSpanProcessor
from support.eventually import eventually
from support.model_server import ModelServer

MODULES = {
    "openinference": "openinference.instrumentation.openai",
    "openllmetry": "opentelemetry.instrumentation.openai",
}
TOOLS: list[Any] = [
    {"type": "function", "function": {"name": name, "parameters": {"type": "object", "properties": {}}}}
    for name in ("get_weather", "get_time")
]
Case = Callable[[AsyncOpenAI, ModelServer], Awaitable[None]]


async def chat(client: AsyncOpenAI, words: str, **more: Any) -> None:
    messages: list[Any] = [{"role": "user", "content": words}]
    while True:
        answer = await client.chat.completions.create(model="gpt-5", messages=messages, **more)
        message = answer.choices[0].message
        if not message.tool_calls:
            return
        messages += [message, {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "seven"}]


async def plain(client: AsyncOpenAI, _: ModelServer) -> None:
    await chat(client, "Hello")


async def tools(client: AsyncOpenAI, _: ModelServer) -> None:
    await chat(client, "[[tools]]", tools=TOOLS)


async def stream(client: AsyncOpenAI, _: ModelServer) -> None:
    messages: list[Any] = [{"role": "user", "content": "Hello"}]
    answer = await client.chat.completions.create(
        model="gpt-5", messages=messages, stream=True, stream_options={"include_usage": True}
    )
    async for _chunk in answer:
        pass


async def retry(client: AsyncOpenAI, _: ModelServer) -> None:
    await chat(client, "[[once429:a]] [[once500:b]]")


async def no_usage(client: AsyncOpenAI, _: ModelServer) -> None:
    await chat(client, "[[nousage]]")


async def error(client: AsyncOpenAI, _: ModelServer) -> None:
    with suppress(InternalServerError):
        await chat(client, "[[err500]]")


async def responses(client: AsyncOpenAI, _: ModelServer) -> None:
    await client.responses.create(model="gpt-5", input="Hello")


async def cancelled(client: AsyncOpenAI, server: ModelServer) -> None:
    before = len(server.served)
    task = asyncio.ensure_future(chat(client, "[[slow]]"))
    await eventually(lambda: len(server.served) > before)
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


async def two_at_once(client: AsyncOpenAI, _: ModelServer) -> None:
    await asyncio.gather(chat(client, "Hello"), chat(client, "[[tools]]", tools=TOOLS))


CASES: tuple[Case, ...] = (plain, tools, stream, retry, no_usage, error, responses, cancelled, two_at_once)


async def main(url: str, names: str) -> None:
    provider = TracerProvider()
    for name in names.split(","):
        import_module(MODULES[name]).OpenAIInstrumentor().instrument(tracer_provider=provider)
    printed: dict[str, Any] = {}
    async with SessionDatabase.connect(url) as db, db.recorder() as recorder, ModelServer() as server:
        provider.add_span_processor(SessionSpanProcessor(recorder, user_id=UUID(int=1)))
        tracer = provider.get_tracer("host")
        async with AsyncOpenAI(base_url=server.openai, api_key="none") as client:
            for case in CASES:
                before = len(server.served)
                with tracer.start_as_current_span("POST /ask", attributes={"session.id": case.__name__}):
                    await case(client, server)
                printed[case.__name__] = [
                    (
                        one.tokens_in,
                        one.tokens_out,
                        one.cache_read_tokens,
                        one.cache_write_tokens,
                        one.reasoning_tokens,
                        one.response_id,
                    )
                    for one in server.served[before:]
                    if one.is_whole and one.tells_usage and one.status == 200
                ]
        await recorder.flush()
        printed["failures"] = recorder.snapshot().failures
    print(json.dumps(printed))  # noqa: T201 - the test reads it


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
