"""What does an adapter add to a model call: calls with it and without it, in turns, against a stand-in on loopback?"""

import argparse
import asyncio
import sys
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple
from uuid import UUID

from session_lifecycle import SessionDatabase, SessionRecorder
from support.databases import database, machine, scalar
from support.tables import table

USER = UUID(int=1)
PROMPT = "What is it?"
WARM_UP = 5
# The stand-in is that of the tests, whose folder `support` has the name of the one here.
STAND_IN = Path(__file__).parents[1] / "tests/support/model_server.py"

Call = Callable[[], Awaitable[object]]


class Side(NamedTuple):
    """A runtime's call without its adapter, and with it."""

    name: str
    bare: Call
    recorded: Call


def stand_in() -> Any:
    """The stand-in of the model APIs; it serves in a thread of its own."""
    spec = spec_from_file_location("model_server", STAND_IN)
    if spec is None or spec.loader is None:
        raise ImportError(f"{STAND_IN}: expected the stand-in of the tests")
    module = module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclasses look for it there
    spec.loader.exec_module(module)
    return module.ModelServer()


async def clients(recorder: SessionRecorder, url: str, openai_url: str, stack: AsyncExitStack) -> list[Side]:
    """The clients of the model APIs."""
    from anthropic import AsyncAnthropic
    from google.genai import Client, types
    from openai import AsyncOpenAI

    from session_lifecycle.integrations.anthropic_client import recorded_anthropic
    from session_lifecycle.integrations.google_genai import recorded_genai
    from session_lifecycle.integrations.openai_client import recorded_openai

    openai = await stack.enter_async_context(AsyncOpenAI(base_url=openai_url, api_key="none"))
    anthropic = await stack.enter_async_context(AsyncAnthropic(base_url=url, api_key="none"))
    options = types.HttpOptions(base_url=url)
    genai, other = (Client(api_key="none", http_options=options) for _ in range(2))
    stack.push_async_callback(genai.aio.aclose)
    stack.push_async_callback(other.aio.aclose)

    def chat(client: Any) -> Call:
        return lambda: client.chat.completions.create(model="gpt-5", messages=[{"role": "user", "content": PROMPT}])

    def message(client: Any) -> Call:
        told = [{"role": "user", "content": PROMPT}]
        return lambda: client.messages.create(model="claude-sonnet-4-6", max_tokens=100, messages=told)

    def content(client: Any) -> Call:
        return lambda: client.aio.models.generate_content(model="gemini-2.5-flash", contents=PROMPT)

    return [
        Side("OpenAI", chat(openai), chat(recorded_openai(openai, recorder, user_id=USER))),
        Side("Anthropic", message(anthropic), message(recorded_anthropic(anthropic, recorder, user_id=USER))),
        Side("Google GenAI", content(genai), content(recorded_genai(other, recorder, user_id=USER))),
    ]


async def runtimes(recorder: SessionRecorder, openai_url: str, stack: AsyncExitStack) -> list[Side]:
    """The runtimes of agents. Each call is a whole run, of one model call."""
    from agents import Agent, OpenAIChatCompletionsModel, Runner, set_trace_processors
    from langchain_openai import ChatOpenAI
    from openai import AsyncOpenAI
    from pydantic_ai import Agent as PydanticAgent
    from pydantic_ai.models.openai import OpenAIChatModel
    from pydantic_ai.providers.openai import OpenAIProvider

    from session_lifecycle.integrations.langchain import SessionCallbackHandler
    from session_lifecycle.integrations.openai_agents import SessionHooks
    from session_lifecycle.integrations.pydantic_ai import SessionCapability

    client = await stack.enter_async_context(AsyncOpenAI(base_url=openai_url, api_key="none"))
    set_trace_processors([])  # the runtime's own would send spans to OpenAI
    hooks = SessionHooks(recorder, user_id=USER).install()
    agent = Agent(name="main", model=OpenAIChatCompletionsModel("gpt-5", client))
    model = OpenAIChatModel("gpt-5", provider=OpenAIProvider(openai_client=client))
    bare = PydanticAgent(model)
    recorded = PydanticAgent(model, capabilities=[SessionCapability(recorder, user_id=USER)])
    made: dict[str, Any] = {"model": "gpt-5", "base_url": openai_url, "api_key": "none"}
    chat = ChatOpenAI(**made)
    handler = SessionCallbackHandler(recorder, user_id=USER)
    return [
        Side("OpenAI Agents", lambda: Runner.run(agent, PROMPT), lambda: Runner.run(agent, PROMPT, hooks=hooks)),
        Side("Pydantic AI", lambda: bare.run(PROMPT), lambda: recorded.run(PROMPT)),
        Side("LangChain", lambda: chat.ainvoke(PROMPT), lambda: chat.ainvoke(PROMPT, config={"callbacks": [handler]})),
    ]


@asynccontextmanager
async def sides(db: SessionDatabase, server: Any) -> AsyncGenerator[tuple[SessionRecorder, list[Side]]]:
    """All sides, and the recorder that their adapters share."""
    async with db.recorder() as recorder, AsyncExitStack() as stack:
        yield (
            recorder,
            [
                *await clients(recorder, server.url, server.openai, stack),
                *await runtimes(recorder, server.openai, stack),
            ],
        )


async def timed(call: Call) -> float:
    """The milliseconds of a call."""
    began = time.perf_counter()
    await call()
    return (time.perf_counter() - began) * 1e3


async def compare(side: Side, turns: int) -> tuple[float, float, float]:
    """The medians without and with the adapter, and of the difference within a turn, in milliseconds."""
    times: list[tuple[float, float]] = []
    for number in range(WARM_UP + turns):
        # Which one goes first changes from turn to turn.
        if number % 2:
            with_it = await timed(side.recorded)
            without = await timed(side.bare)
        else:
            without = await timed(side.bare)
            with_it = await timed(side.recorded)
        times.append((without, with_it))
    kept: Sequence[tuple[float, float]] = times[WARM_UP:]
    return (
        median(without for without, _ in kept),
        median(with_it for _, with_it in kept),
        median(with_it - without for without, with_it in kept),
    )


async def main(turns: int) -> None:
    async with database() as (server, db):
        print(machine(server), end="\n\n")
        lines: list[list[str]] = []
        with stand_in() as models:
            async with sides(db, models) as (recorder, all_sides):
                for side in all_sides:
                    figures = await compare(side, turns)
                    lines.append([side.name, *(f"{one:.2f}" for one in figures)])
                await recorder.flush()
                failures = recorder.snapshot().failures
        events = await scalar(db, "SELECT count(*) FROM session_lifecycle.session_usage_events")
        expected = len(all_sides) * (WARM_UP + turns)
        if (events, failures) != (expected, 0):
            raise SystemExit(f"{events} events and {failures} failures, expected {expected} and 0")
        print(table("", ["runtime", "without, ms", "with, ms", "difference, ms"], lines))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=200, help="calls of each side")
    asyncio.run(main(parser.parse_args().turns))
