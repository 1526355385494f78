"""What does an adapter add to a model call: calls with it and without it, in turns, against a stand-in on loopback?"""

import argparse
import asyncio
import json
import os
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Generator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from importlib import import_module
from itertools import count
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple
from uuid import UUID

import support
from session_lifecycle import SessionDatabase
from support.databases import database, machine, scalar
from support.tables import table

os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # else LiteLLM fetches one when it is imported

USER = UUID(int=1)
PROMPT = "What is it?"
TOOLS = ("one", "two", "three", "four")
TOOLS_PROMPT = f"{PROMPT} [[tools:{','.join(TOOLS)}]]"
"""The stand-in calls one tool after another, and then answers."""
CALLS_OF_LONG_RUN = len(TOOLS) + 1
WARM_UP = 2
THINKING_SECONDS = 0.05
"""How long the model takes for an answer: longer than the recorder waits for more items and then writes them.

What is written while the agent waits for a model costs the agent no time.
"""

Call = Callable[[], Awaitable[object]]


async def think() -> None:
    """Waits as long as the model takes, and is woken as by a socket: asyncio rounds its own timers to milliseconds."""
    await asyncio.to_thread(time.sleep, THINKING_SECONDS)


async def nothing() -> None:
    """Waits for nothing."""


async def no_change(_: bool) -> None:
    """Changes nothing."""


def look(what: str = "") -> str:
    """A tool."""
    return f"It is {what or 7}."


class Side(NamedTuple):
    """A runtime's run without its adapter, and with it."""

    name: str
    bare: Call
    recorded: Call
    after: Call = nothing
    """Waits for what the runtime does after its answer."""
    before: Callable[[bool], Awaitable[object]] = no_change
    """Makes the runtime ready for calls with the adapter, or without."""
    calls: int = 1
    """How many calls of a model a run makes, with a tool between each two."""


class Spent(NamedTuple):
    """What a run takes by call of a model, in milliseconds."""

    wall: float
    """The time until the answer."""
    thread: float
    """The CPU time of the caller's thread until the answer."""
    in_a_row: float
    """The CPU time of the whole process until all is written, of a call in a row."""
    alone: float
    """The same of a call alone."""


def _serve(told: Connection) -> None:
    # The stand-in is that of the tests, whose folder `support` has the name of the one here.
    support.__path__.append(str(Path(__file__).parents[1] / "tests/support"))
    with import_module("support.model_server").ModelServer(thinking_seconds=THINKING_SECONDS) as server:
        told.send((server.url, server.openai))
        told.recv()


@contextmanager
def stand_in() -> Generator[tuple[str, str]]:
    """The addresses of the stand-in of the model APIs. It has a process of its own, so its work is in no figure."""
    context = get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_serve, args=(there,))
    process.start()
    there.close()  # else nobody would know that the process has ended
    try:
        yield here.recv()
    finally:
        here.send(None)
        process.join()


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
    """The runtimes of agents: runs of one call of a model, and runs of several calls with a tool between each two."""
    from agents import Agent, OpenAIChatCompletionsModel, Runner, function_tool, set_trace_processors
    from langchain_openai import ChatOpenAI
    from openai import AsyncOpenAI
    from pydantic_ai import Agent as PydanticAgent
    from pydantic_ai import Tool as PydanticTool
    from pydantic_ai.models.openai import OpenAIChatModel
    from pydantic_ai.providers.openai import OpenAIProvider

    from session_lifecycle.integrations.langchain import SessionCallbackHandler
    from session_lifecycle.integrations.openai_agents import SessionHooks
    from session_lifecycle.integrations.pydantic_ai import SessionCapability

    client = await stack.enter_async_context(AsyncOpenAI(base_url=openai_url, api_key="none"))
    set_trace_processors([])  # the runtime's own would send spans to OpenAI
    hooks = SessionHooks(recorder, user_id=USER).install()
    tools = [function_tool(look, name_override=name) for name in TOOLS]
    agent = Agent(name="main", model=OpenAIChatCompletionsModel("gpt-5", client), tools=[*tools])
    model = OpenAIChatModel("gpt-5", provider=OpenAIProvider(openai_client=client))
    pydantic_tools = [PydanticTool(look, name=name) for name in TOOLS]
    bare = PydanticAgent(model, tools=pydantic_tools)
    recorded = PydanticAgent(model, tools=pydantic_tools, capabilities=[SessionCapability(recorder, user_id=USER)])
    made: dict[str, Any] = {"model": "gpt-5", "base_url": openai_url, "api_key": "none"}
    chat = ChatOpenAI(**made)
    handler = SessionCallbackHandler(recorder, user_id=USER)

    def agents_run(prompt: str) -> tuple[Call, Call]:
        return lambda: Runner.run(agent, prompt), lambda: Runner.run(agent, prompt, hooks=hooks)

    def pydantic_run(prompt: str) -> tuple[Call, Call]:
        return lambda: bare.run(prompt), lambda: recorded.run(prompt)

    return [
        Side("OpenAI Agents", *agents_run(PROMPT)),
        Side("OpenAI Agents", *agents_run(TOOLS_PROMPT), calls=CALLS_OF_LONG_RUN),
        Side("Pydantic AI", *pydantic_run(PROMPT)),
        Side("Pydantic AI", *pydantic_run(TOOLS_PROMPT), calls=CALLS_OF_LONG_RUN),
        Side("LangChain", lambda: chat.ainvoke(PROMPT), lambda: chat.ainvoke(PROMPT, config={"callbacks": [handler]})),
        await adk(recorder, stack, 1),
        await adk(recorder, stack, CALLS_OF_LONG_RUN),
        litellm_calls(recorder, openai_url),
        claude_agent_sdk(recorder, 1),
        claude_agent_sdk(recorder, CALLS_OF_LONG_RUN),
        opentelemetry(recorder, 1),
        opentelemetry(recorder, CALLS_OF_LONG_RUN),
    ]


async def adk(recorder: Any, stack: AsyncExitStack, calls: int) -> Side:
    """Google ADK, whose model answers in this process: its own clients take 40 times as long as the plugin."""
    from google.adk.agents import LlmAgent
    from google.adk.apps import App
    from google.adk.models import BaseLlm
    from google.adk.models.llm_response import LlmResponse
    from google.adk.runners import Runner
    from google.adk.sessions import InMemorySessionService
    from google.genai import types

    from session_lifecycle.integrations.google_adk import SessionPlugin

    class Answers(BaseLlm):  # type: ignore[misc]  # mypy does not follow the runtimes, so the base class is Any
        async def generate_content_async(self, llm_request: Any, *_: Any, **__: Any) -> AsyncGenerator[Any]:
            usage = types.GenerateContentResponseUsageMetadata(
                prompt_token_count=1200, candidates_token_count=80, total_token_count=1280
            )
            said = types.Part(text="It is 7.")
            turn = sum(content.role == "model" for content in llm_request.contents)
            if turn < calls - 1:
                said = types.Part(function_call=types.FunctionCall(id=f"call-{turn}", name="look", args={"what": "it"}))
            await think()
            yield LlmResponse(
                content=types.Content(role="model", parts=[said]),
                usage_metadata=usage,
                model_version="gemini-2.5-flash",
            )

    numbers = iter(range(10**9))
    agent = LlmAgent(name="main", model=Answers(model="gemini-2.5-flash"), tools=[look])

    async def call_of(plugins: list[Any]) -> Call:
        service = InMemorySessionService()
        app = App(name="app", root_agent=agent.model_copy(), plugins=plugins)
        runner = await stack.enter_async_context(Runner(app=app, session_service=service))
        message = types.Content(role="user", parts=[types.Part(text=PROMPT)])

        async def call() -> None:
            session_id = f"adk-{calls}-{next(numbers)}"
            await service.create_session(app_name="app", user_id="u", session_id=session_id)
            async for _ in runner.run_async(user_id="u", session_id=session_id, new_message=message):
                pass

        return call

    plugins = [SessionPlugin(recorder, user_id=USER)]
    return Side("Google ADK", await call_of([]), await call_of(plugins), calls=calls)


def litellm_calls(recorder: Any, openai_url: str) -> Side:
    """LiteLLM, which calls its callbacks some time after the answer."""
    import litellm
    from litellm.litellm_core_utils.logging_worker import GLOBAL_LOGGING_WORKER

    from session_lifecycle.integrations.litellm import SessionLogger

    logger = SessionLogger(recorder, user_id=USER)
    asked: dict[str, Any] = {"model": "openai/gpt-5", "messages": [{"role": "user", "content": PROMPT}]}
    asked |= {"api_base": openai_url, "api_key": "none"}
    lists = ("success_callback", "failure_callback", "_async_success_callback", "_async_failure_callback")

    async def before(with_it: bool) -> None:
        await asyncio.sleep(0.2)  # callbacks of earlier calls may still run
        # LiteLLM copies its callbacks into other lists with the first call, and looks there from then on.
        for name in (*lists, "input_callback", "_async_input_callback"):
            setattr(litellm, name, [])
        litellm.callbacks = [logger] if with_it else []

    async def call() -> None:
        await litellm.acompletion(**asked)

    return Side("LiteLLM", call, call, GLOBAL_LOGGING_WORKER.flush, before)


def claude_lines(data: str, number: int, calls: int) -> list[dict[str, Any] | None]:
    """What the program of the Claude Agent SDK says to a line: to a prompt the answers of a model, and then the end."""
    told = json.loads(data)
    if told["type"] == "control_request":
        response = {"subtype": "success", "request_id": told["request_id"], "response": {}}
        return [{"type": "control_response", "response": response}]
    model = "claude-sonnet-4-6"
    name = f"{calls}-{number}"  # no run of another length has it
    said = {"session_id": f"claude-{name}", "uuid": f"run-{name}"}
    lines: list[dict[str, Any] | None] = [{"type": "system", "subtype": "init", "model": model, **said}]
    usage = {"input_tokens": 1200, "output_tokens": 80}
    for turn in range(calls):
        tool_id = f"tool-{name}-{turn}"
        answer: dict[str, Any] = {"id": f"message-{name}-{turn}", "model": model, "role": "assistant", "usage": usage}
        answer["content"] = [{"type": "text", "text": "It is 7."}]
        is_last = turn == calls - 1
        if not is_last:
            answer["content"] = [{"type": "tool_use", "id": tool_id, "name": "Bash", "input": {"command": "true"}}]
        lines.append({"type": "assistant", "message": answer, "parent_tool_use_id": None, **said})
        if not is_last:
            result = {"type": "tool_result", "tool_use_id": tool_id, "content": "7"}
            told_back = {"role": "user", "content": [result]}
            lines.append({"type": "user", "message": told_back, "parent_tool_use_id": None, **said})
    totals = {model: {"inputTokens": 1200 * calls, "outputTokens": 80 * calls}}
    ended = {"subtype": "success", "is_error": False, "duration_ms": 1, "duration_api_ms": 1, "num_turns": calls}
    return [*lines, {"type": "result", "modelUsage": totals, **ended, **said}, None]


def scripted_transport(calls: int) -> type[Any]:
    """A transport that speaks in place of the program of the Claude Agent SDK, which takes seconds."""
    from claude_agent_sdk import Transport

    numbers = count()

    class Scripted(Transport):  # type: ignore[misc]  # mypy does not follow the runtimes, so the base class is Any
        def __init__(self) -> None:
            self.lines: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()

        async def connect(self) -> None:
            """There is nothing to connect to."""

        async def write(self, data: str) -> None:
            for line in claude_lines(data, next(numbers), calls):
                self.lines.put_nowait(line)

        async def read_messages(self) -> AsyncIterator[dict[str, Any]]:
            while (line := await self.lines.get()) is not None:
                yield line

        async def close(self) -> None:
            """There is nothing to close."""

        def is_ready(self) -> bool:
            return True

        async def end_input(self) -> None:
            """The script has an end of its own."""

    return Scripted


def claude_agent_sdk(recorder: Any, calls: int) -> Side:
    """The Claude Agent SDK."""
    from claude_agent_sdk import ClaudeAgentOptions, query

    from session_lifecycle.integrations.claude_agent_sdk import SessionSdk

    options = ClaudeAgentOptions(env={"CLAUDE_CONFIG_DIR": "/nowhere"})  # there are no transcripts to be read
    transport = scripted_transport(calls)

    async def call(asks: Any) -> None:
        async for _ in asks(prompt=PROMPT, options=options, transport=transport()):
            await think()  # the program writes its lines one by one

    sdk = SessionSdk(recorder, user_id=USER)
    return Side("Claude Agent SDK", lambda: call(query), lambda: call(sdk.query), calls=calls)


def opentelemetry(recorder: Any, calls: int) -> Side:
    """OpenTelemetry. A run is the span of an agent with the spans of the calls of a model in it, and those of tools."""
    from opentelemetry.sdk.trace import TracerProvider

    from session_lifecycle.integrations.opentelemetry import SessionSpanProcessor

    agent = {"gen_ai.operation.name": "invoke_agent", "gen_ai.agent.name": "main"}
    asked = {"gen_ai.operation.name": "chat", "gen_ai.provider.name": "openai", "gen_ai.request.model": "gpt-5"}
    tool = {"gen_ai.operation.name": "execute_tool", "gen_ai.tool.name": "look"}
    used = {"gen_ai.usage.input_tokens": 1200, "gen_ai.usage.output_tokens": 80}

    def call_of(provider: TracerProvider) -> Call:
        tracer = provider.get_tracer("benchmark")

        async def call() -> None:
            with tracer.start_as_current_span("agent", attributes=agent):
                for turn in range(calls):
                    with tracer.start_as_current_span("chat", attributes=asked) as span:
                        await think()
                        span.set_attributes(used)
                    if turn < calls - 1:
                        with tracer.start_as_current_span("look", attributes=tool):
                            look()

        return call

    provider = TracerProvider()
    provider.add_span_processor(SessionSpanProcessor(recorder, user_id=USER))
    return Side("OpenTelemetry", call_of(TracerProvider()), call_of(provider), calls=calls)


@asynccontextmanager
async def sides(recorder: Any, url: str, openai_url: str) -> AsyncGenerator[list[Side]]:
    """All sides, whose adapters share the recorder."""
    async with AsyncExitStack() as stack:
        yield [*await clients(recorder, url, openai_url, stack), *await runtimes(recorder, openai_url, stack)]


async def spent(side: Side, with_it: bool, calls: int, finish: Call) -> Spent:
    """What a run takes: medians of the runs alone, and a mean of the runs in a row."""
    call = side.recorded if with_it else side.bare
    await side.before(with_it)
    alone: list[tuple[float, float, float]] = []
    for _ in range(calls):
        began = time.perf_counter(), time.thread_time(), time.process_time()
        await call()
        wall, thread = time.perf_counter() - began[0], time.thread_time() - began[1]
        await side.after()
        await finish()
        alone.append((wall, thread, time.process_time() - began[2]))
    began_row = time.process_time()
    for _ in range(calls):
        await call()
    await side.after()
    await finish()
    in_a_row = (time.process_time() - began_row) / calls
    wall, thread, process = (median(figures) for figures in zip(*alone, strict=True))
    return Spent(*(1e3 * one / side.calls for one in (wall, thread, in_a_row, process)))


async def compare(side: Side, turns: int, calls: int, finish: Call) -> tuple[Spent, Spent]:
    """The medians of a bare call, and of the difference within a turn."""
    bare: list[Spent] = []
    more: list[Spent] = []
    for number in range(WARM_UP + turns):
        # Which one goes first changes from turn to turn.
        first = bool(number % 2)
        both = {with_it: await spent(side, with_it, calls, finish) for with_it in (first, not first)}
        bare.append(both[False])
        more.append(Spent(*(one - other for one, other in zip(both[True], both[False], strict=True))))
    return Spent(*map(median, zip(*bare[WARM_UP:], strict=True))), Spent(
        *map(median, zip(*more[WARM_UP:], strict=True))
    )


async def measure(
    db: SessionDatabase, addresses: tuple[str, str], turns: int, calls: int, only: list[str]
) -> AsyncGenerator[tuple[Side, Spent, Spent]]:
    """The figures of each side."""
    async with db.recorder() as recorder, sides(recorder, *addresses) as all_sides:
        for side in all_sides:
            if only and side.name not in only:
                continue
            before = await events_of(db)
            yield side, *await compare(side, turns, calls, recorder.flush)
            await asyncio.sleep(0.3)  # the callbacks of the last call
            await recorder.flush()
            events, failures = await events_of(db) - before, recorder.snapshot().failures
            expected = (WARM_UP + turns) * calls * 2 * side.calls
            if (events, failures) != (expected, 0):
                raise SystemExit(f"{side.name}: {events} events and {failures} failures, expected {expected} and 0")


async def events_of(db: SessionDatabase) -> int:
    """How many usage events the database has."""
    return int(await scalar(db, "SELECT count(*) FROM session_lifecycle.session_usage_events"))


async def main(turns: int, calls: int, only: list[str]) -> None:
    async with database() as (server, db):
        print(f"{machine(server)}, load {os.getloadavg()[0]:.1f}", end="\n\n")
        lines: list[list[str]] = []
        with stand_in() as addresses:
            async for side, bare, more in measure(db, addresses, turns, calls, only):
                figures = (bare.wall, bare.thread, *more)
                lines.append([side.name, str(side.calls), *(f"{figure:.2f}" for figure in figures)])
        head = [
            "runtime",
            "calls of a run",
            "bare: wall",
            "caller's CPU",
            "added: wall",
            "caller's CPU",
            "process, in a row",
            "process, alone",
        ]
        print(table("", head, lines))
        print(f"\nload {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=20, help="turns of each side")
    parser.add_argument("--calls", type=int, default=20, help="runs of a turn, once alone and once in a row")
    parser.add_argument("--only", action="append", default=[], help="a runtime, by its name in the table")
    given = parser.parse_args()
    asyncio.run(main(given.turns, given.calls, given.only))
