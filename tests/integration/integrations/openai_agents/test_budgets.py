"""Budgets of the runs of OpenAI Agents."""

from typing import Any, cast

import pytest
from agents import AgentsException

from session_lifecycle import SessionDatabase
from session_lifecycle.errors import BudgetExceededError
from session_lifecycle.integrations.budget_check import BudgetCheck
from session_lifecycle.integrations.openai_agents import BudgetRefusedError
from support import books
from support.budget_checks import assert_checked, assert_settled
from support.budgets import limit
from support.model_server import ModelServer
from support.runtimes.openai_agents import MakeModel, agent_of, hooks_of, run


async def test_a_call_that_a_budget_refuses_ends_the_run(
    session_database: SessionDatabase, server: ModelServer, make_model: MakeModel
) -> None:
    async with session_database.recorder() as recorder:

        async def plain(budgets: Any, name: str, *, streams: bool = False) -> None:
            model = cast("Any", make_model("chat"))
            model.model = name
            await run(agent_of(model), "Hello", hooks_of(recorder, budgets=budgets), streams=streams)

        async def stream(budgets: Any, name: str) -> None:
            await plain(budgets, name, streams=True)

        await assert_checked(session_database, recorder, server, plain, AgentsException, others=[stream])
        await limit(session_database, limit_usd=None, limit_tokens=1)
        with pytest.raises(BudgetRefusedError) as caught:
            await plain(session_database.budgets, "gpt-5")
        assert isinstance(caught.value, BudgetExceededError)
        assert caught.value.budget_ids == ("b",)
        assert caught.value.run_data is not None
    statuses = [one.status for one in (await books.runs(session_database)).values()]
    assert (statuses[-1], set(statuses)) == ("failed", {"completed", "failed"})


@pytest.mark.parametrize("with_hooks", [True, False])
async def test_a_budget_counts_an_agent_that_is_a_tool_once(
    session_database: SessionDatabase, server: ModelServer, make_model: MakeModel, with_hooks: bool
) -> None:
    await limit(session_database, limit_usd=None, limit_tokens=100_000)
    async with session_database.recorder() as recorder:
        needs: Any = {"tokens_in": 1_500, "tokens_out": 100}
        hooks = hooks_of(recorder, budgets=BudgetCheck(session_database.budgets, needs=needs))
        model = make_model("responses")
        tool = agent_of(model, "child").as_tool("ask_child", "Asks the child.", hooks=hooks if with_hooks else None)
        await run(agent_of(model, "parent", tools=[tool]), "[[tools:ask_child]] {{tools}} x", hooks)
        assert len(server.answered) == 5
        spent = sum(one.tokens_in + one.tokens_out for one in server.answered)
        assert await assert_settled(session_database, recorder) == spent
