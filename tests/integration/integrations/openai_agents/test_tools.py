"""Tools of OpenAI Agents: failures, approvals, cancellation, and content by choice."""

import asyncio
from collections import Counter

import pytest
from agents import MaxTurnsExceeded, RunConfig, Runner, UserError, function_tool

from session_lifecycle import SessionDatabase
from support import books
from support.model_apis.dialect import ANSWER
from support.model_server import ModelServer
from support.runtimes.openai_agents import MakeModel, agent_of, hooks_of, run


@function_tool
def breaks(city: str) -> str:
    """Breaks, and the model is told."""
    raise ValueError(f"secret-3 of {city}")


@function_tool(failure_error_function=None)
def breaks_all(city: str) -> str:
    """Breaks, and the run ends."""
    raise ValueError(f"secret-3 of {city}")


@pytest.mark.parametrize("content", [True, False])
async def test_tools_that_fail_and_content_by_choice(
    session_database: SessionDatabase, server: ModelServer, make_model: MakeModel, content: bool
) -> None:
    async with session_database.recorder() as recorder:
        hooks, model = hooks_of(recorder, content=content), make_model("responses")
        done = await run(agent_of(model), "secret-1 [[tools:get_time]]", hooks)
        await run(agent_of(model, tools=[breaks]), "secret-1 [[tools]]", hooks)
        with pytest.raises(UserError):
            await run(agent_of(model, tools=[breaks_all]), "secret-1 [[tools]]", hooks)
        hidden = agent_of(model, "child").as_tool("ask", "Asks.")
        await run(agent_of(model, "parent", tools=[hidden]), "secret-1 [[tools:ask]] {{x}}", hooks)
        with pytest.raises(MaxTurnsExceeded):
            await Runner.run(agent_of(model), "secret-1 [[tools]]", hooks=hooks, max_turns=1)
    assert done.final_output == ANSWER
    assert recorder.snapshot().failures == 0
    assert await books.measured(session_database) == books.served(server)
    said = await books.texts(session_database)
    assert [word in said for word in ("secret-1", "12:00 in Tartu", ANSWER, "Tartu", "secret-3", "[[x]]")] == [
        content
    ] * 6
    steps = (await books.steps(session_database)).values()
    assert Counter(steps) == {
        ("get_time", "completed"): 1,
        ("breaks", "failed"): 1,
        ("breaks_all", "failed"): 1,
        ("ask", "completed"): 1,
        ("get_weather", "completed"): 1,
    }
    statuses = Counter((one.agent, one.status) for one in (await books.runs(session_database)).values())
    assert statuses == {
        ("main", "completed"): 2,
        ("main", "failed"): 2,
        ("parent", "completed"): 1,
        ("child", "completed"): 1,
    }
    if content:
        first = next(iter(await books.runs(session_database)))
        assert [one for one in await books.messages(session_database) if one[0] == first] == [
            (first, "user", "secret-1 [[tools:get_time]]"),
            (first, "assistant", ANSWER),
        ]


async def test_an_approval_and_the_run_that_goes_on(
    session_database: SessionDatabase, server: ModelServer, make_model: MakeModel
) -> None:
    @function_tool(needs_approval=True)
    def launch(city: str) -> str:
        """Launches."""
        return city

    async with session_database.recorder() as recorder:
        hooks, agent = hooks_of(recorder), agent_of(make_model("responses"), tools=[launch])
        paused = await run(agent, "[[tools]] x", hooks)
        state = paused.to_state()
        state.approve(paused.interruptions[0])
        await Runner.run(agent, state, hooks=hooks, run_config=RunConfig(group_id="chat-1"))
    assert recorder.snapshot().failures == 0
    assert await books.measured(session_database) == books.served(server)
    assert {one.status for one in (await books.runs(session_database)).values()} == {"completed"}
    assert set((await books.steps(session_database)).values()) == {("launch", "completed")}


async def test_an_approval_inside_an_agent_that_is_a_tool(
    session_database: SessionDatabase, server: ModelServer, make_model: MakeModel
) -> None:
    @function_tool(needs_approval=True)
    def launch(city: str) -> str:
        """Launches."""
        return city

    async with session_database.recorder() as recorder:
        hooks, model = hooks_of(recorder), make_model("responses")
        child = agent_of(model, "child", tools=[launch]).as_tool("ask", "Asks.", hooks=hooks)
        agent = agent_of(model, "parent", tools=[child])
        paused = await run(agent, "[[tools:ask]] {{tools:launch}}", hooks)
        state = paused.to_state()
        state.approve(paused.interruptions[0])
        done = await Runner.run(agent, state, hooks=hooks, run_config=RunConfig(group_id="chat-1"))
    assert done.final_output == ANSWER
    assert recorder.snapshot().failures == 0
    assert await books.measured(session_database) == books.served(server)
    assert len(server.answered) == 4
    assert {one.status for one in (await books.runs(session_database)).values()} == {"completed"}
    assert set((await books.steps(session_database)).values()) == {("launch", "completed"), ("ask", "completed")}


async def test_a_tool_that_is_cancelled(
    session_database: SessionDatabase, server: ModelServer, make_model: MakeModel
) -> None:
    begun = asyncio.Event()

    @function_tool
    async def wait(city: str) -> str:
        """Waits."""
        begun.set()
        await asyncio.sleep(30)
        return city

    async with session_database.recorder() as recorder:
        hooks, model = hooks_of(recorder), make_model("responses")
        child = agent_of(model, "child", tools=[wait]).as_tool("ask", "Asks.")
        parent = agent_of(model, "parent", tools=[child])
        task = asyncio.create_task(run(parent, "[[tools:ask]] {{tools:wait}}", hooks))
        await begun.wait()
        task.cancel()
        await asyncio.wait({task})
        other = asyncio.create_task(run(agent_of(model, tools=[wait]), "[[tools:wait]]", hooks))
        begun.clear()
        await begun.wait()
        other.cancel()
        await asyncio.wait({other})
    assert recorder.snapshot().failures == 0
    assert await books.measured(session_database) == books.served(server)
    runs = await books.runs(session_database)
    assert [(one.agent, one.status) for one in runs.values()] == [
        ("parent", "cancelled"),
        ("child", "cancelled"),
        ("main", "cancelled"),
    ]
    assert {end for _, end in (await books.steps(session_database)).values()} == {"failed"}
