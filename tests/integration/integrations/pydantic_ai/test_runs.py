"""Which runs of Pydantic AI are recorded, with which calls, tools and content."""

import asyncio
from contextvars import ContextVar
from typing import Any
from uuid import UUID, uuid4

import pytest
from pydantic_ai import ModelResponse, RunContext, exceptions
from pydantic_ai.messages import ModelMessage, TextPart, ToolCallPart
from pydantic_ai.models.function import FunctionModel

from session_lifecycle import SessionDatabase
from session_lifecycle.integrations.pydantic_ai import SessionCapability
from support import books
from support.books import RunRow
from support.model_apis.dialect import ANSWER
from support.model_server import ModelServer
from support.runtimes.pydantic_ai import KINDS, Kind, MakeModel, agent_of
from support.transcripts import rows
from support.usage import A


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
