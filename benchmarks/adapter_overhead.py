"""What does an adapter add to a model call: calls with it and without it, in turns, against a stand-in on loopback?"""

import argparse
import asyncio
import os
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from importlib import import_module
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple
from uuid import UUID

import support
from session_lifecycle import SessionDatabase
from session_lifecycle.writing.synchronous import SynchronousRecorder
from support.databases import database, machine, scalar
from support.tables import table

os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # else LiteLLM fetches one when it is imported

USER = UUID(int=1)
PROMPT = "What is it?"
WARM_UP = 2

Call = Callable[[], Awaitable[object]]


class Side(NamedTuple):
    """A runtime's call without its adapter, and with it."""

    name: str
    bare: Call
    recorded: Call


class Spent(NamedTuple):
    """What a call takes, in milliseconds."""

    wall: float
    thread: float
    """The CPU time of the thread that makes the call."""
    process: float
    """The CPU time of all threads."""


def stand_in() -> Any:
    """The stand-in of the model APIs; it serves in a thread of its own."""
    # It is that of the tests, whose folder `support` has the name of the one here.
    support.__path__.append(str(Path(__file__).parents[1] / "tests/support"))
    return import_module("support.model_server").ModelServer()


async def clients(recorder: Any, url: str, openai_url: str, stack: AsyncExitStack) -> list[Side]:
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


async def runtimes(recorder: Any, openai_url: str, stack: AsyncExitStack) -> list[Side]:
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
        await adk(recorder, stack),
        await litellm_calls(recorder, openai_url),
    ]


async def adk(recorder: Any, stack: AsyncExitStack) -> Side:
    """Google ADK, whose model answers in this process: its own clients take 40 times as long as the plugin."""
    from google.adk.agents import LlmAgent
    from google.adk.apps import App
    from google.adk.models import BaseLlm
    from google.adk.models.llm_response import LlmResponse
    from google.adk.runners import Runner
    from google.adk.sessions import InMemorySessionService
    from google.genai import types

    from session_lifecycle.integrations.google_adk import SessionPlugin

    class Answers(BaseLlm):  # type: ignore[misc]  # ADK is too large for mypy to follow
        async def generate_content_async(self, *_: Any, **__: Any) -> AsyncGenerator[Any]:
            usage = types.GenerateContentResponseUsageMetadata(
                prompt_token_count=1200, candidates_token_count=80, total_token_count=1280
            )
            said = types.Content(role="model", parts=[types.Part(text="It is 7.")])
            yield LlmResponse(content=said, usage_metadata=usage, model_version="gemini-2.5-flash")

    numbers = iter(range(10**9))
    agent = LlmAgent(name="main", model=Answers(model="gemini-2.5-flash"))

    async def call_of(plugins: list[Any]) -> Call:
        service = InMemorySessionService()
        app = App(name="app", root_agent=agent.model_copy(), plugins=plugins)
        runner = await stack.enter_async_context(Runner(app=app, session_service=service))
        message = types.Content(role="user", parts=[types.Part(text=PROMPT)])

        async def call() -> None:
            session_id = f"adk-{next(numbers)}"
            await service.create_session(app_name="app", user_id="u", session_id=session_id)
            async for _ in runner.run_async(user_id="u", session_id=session_id, new_message=message):
                pass

        return call

    return Side("Google ADK", await call_of([]), await call_of([SessionPlugin(recorder, user_id=USER)]))


async def litellm_calls(recorder: Any, openai_url: str) -> Side:
    """LiteLLM. It calls its callbacks some time after the answer. Both sides wait for the callbacks."""
    import litellm
    from litellm.litellm_core_utils.logging_worker import GLOBAL_LOGGING_WORKER

    from session_lifecycle.integrations.litellm import SessionLogger

    logger = SessionLogger(recorder, user_id=USER)
    asked: dict[str, Any] = {"model": "openai/gpt-5", "messages": [{"role": "user", "content": PROMPT}]}
    asked |= {"api_base": openai_url, "api_key": "none"}
    lists = ("callbacks", "success_callback", "failure_callback", "_async_success_callback", "_async_failure_callback")

    now_called = [False]

    async def call(callbacks: list[Any]) -> None:
        if now_called[0] != bool(callbacks):
            await asyncio.sleep(0.2)  # callbacks of earlier calls may still run
            # LiteLLM copies its callbacks into other lists with the first call, and looks there from then on.
            for name in (*lists, "input_callback", "_async_input_callback"):
                setattr(litellm, name, [])
            litellm.callbacks, now_called[0] = callbacks, bool(callbacks)
        await litellm.acompletion(**asked)
        await GLOBAL_LOGGING_WORKER.flush()

    return Side("LiteLLM", lambda: call([]), lambda: call([logger]))


@asynccontextmanager
async def sides(recorder: Any, server: Any) -> AsyncGenerator[list[Side]]:
    """All sides, whose adapters share the recorder."""
    async with AsyncExitStack() as stack:
        yield [
            *await clients(recorder, server.url, server.openai, stack),
            *await runtimes(recorder, server.openai, stack),
        ]


async def spent(call: Call, calls: int, finish: Call) -> Spent:
    """What each of so many calls takes. What the recorder does for them is part of it."""
    began = time.perf_counter(), time.thread_time(), time.process_time()
    for _ in range(calls):
        await call()
    await finish()
    ended = time.perf_counter(), time.thread_time(), time.process_time()
    return Spent(*((end - begin) * 1e3 / calls for begin, end in zip(began, ended, strict=True)))


async def compare(side: Side, turns: int, calls: int, finish: Call) -> tuple[Spent, Spent]:
    """The medians of a bare call, and of the difference within a turn."""
    times: list[tuple[Spent, Spent]] = []
    for number in range(WARM_UP + turns):
        # Which one goes first changes from turn to turn.
        if number % 2:
            with_it = await spent(side.recorded, calls, finish)
            without = await spent(side.bare, calls, finish)
        else:
            without = await spent(side.bare, calls, finish)
            with_it = await spent(side.recorded, calls, finish)
        times.append((without, with_it))
    kept = times[WARM_UP:]
    bare = Spent(*(median(without[place] for without, _ in kept) for place in range(3)))
    return bare, Spent(*(median(both[1][place] - both[0][place] for both in kept) for place in range(3)))


async def measure(
    db: SessionDatabase, models: Any, recorder: Any, finish: Call, turns: int, calls: int, only: list[str]
) -> dict[str, tuple[Spent, Spent]]:
    """The figures of each side by its name, through this recorder."""
    before = await scalar(db, "SELECT count(*) FROM session_lifecycle.session_usage_events")
    async with sides(recorder, models) as all_sides:
        chosen = [side for side in all_sides if not only or side.name in only]
        found = {side.name: await compare(side, turns, calls, finish) for side in chosen}
        await asyncio.sleep(0.3)  # the callbacks of the last call
        await asyncio.to_thread(recorder.flush) if isinstance(recorder, SynchronousRecorder) else await recorder.flush()
    failures = recorder.snapshot().failures
    events = await scalar(db, "SELECT count(*) FROM session_lifecycle.session_usage_events") - before
    expected = len(chosen) * (WARM_UP + turns) * calls
    if (events, failures) != (expected, 0):
        raise SystemExit(f"{events} events and {failures} failures, expected {expected} and 0")
    return found


async def nothing() -> None:
    """Waits for nothing."""


async def main(turns: int, calls: int, only: list[str]) -> None:
    async with database() as (server, db):
        print(f"{machine(server)}, load {os.getloadavg()[0]:.1f}", end="\n\n")
        with stand_in() as models:
            with db.synchronous_recorder() as apart:
                alone = await measure(db, models, apart, nothing, turns * calls, 1, only)
            async with db.recorder() as recorder:
                together = await measure(db, models, recorder, recorder.flush, turns, calls, only)
        lines: list[list[str]] = []
        for name, (bare, more) in alone.items():
            figures = (bare.thread, more.thread, more.wall, together[name][1].process)
            lines.append([name, *(f"{one:.2f}" for one in figures)])
        head = ["runtime", "bare call, caller's thread", "caller's thread", "wall", "process"]
        print(table("", head, lines))
        print(f"\nload {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=20, help="turns of each side")
    parser.add_argument("--calls", type=int, default=20, help="calls of a turn")
    parser.add_argument("--only", action="append", default=[], help="a runtime, by its name in the table")
    given = parser.parse_args()
    asyncio.run(main(given.turns, given.calls, given.only))
