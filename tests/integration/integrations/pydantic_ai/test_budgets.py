"""Budgets of the runs of Pydantic AI."""

from typing import Any, cast

import pytest
from pydantic_ai import Agent, RunContext, exceptions

from session_lifecycle import SessionDatabase
from session_lifecycle.errors import BudgetExceededError
from session_lifecycle.integrations.budget_check import BudgetCheck
from session_lifecycle.integrations.pydantic_ai import BudgetRefusedError, SessionCapability
from support import books
from support.budget_checks import assert_checked, assert_settled
from support.budgets import limit
from support.model_server import ModelServer
from support.runtimes.pydantic_ai import MakeModel, agent_of
from support.usage import A


async def test_a_call_that_a_budget_refuses_ends_the_run(
    session_database: SessionDatabase, server: ModelServer, make_model: MakeModel
) -> None:
    async with session_database.recorder() as recorder:

        def agent(budgets: Any, name: str) -> Agent[Any, Any]:
            model = cast("Any", make_model("chat"))
            model._model_name = name  # noqa: SLF001 - the fixture has the connections of the model
            return agent_of(SessionCapability(recorder, user_id=A, budgets=budgets), model)

        async def plain(budgets: Any, name: str) -> None:
            await agent(budgets, name).run("Hello")

        async def stream(budgets: Any, name: str) -> None:
            async with agent(budgets, name).run_stream("Hello") as told:
                assert await told.get_output()

        error = exceptions.UsageLimitExceeded
        await assert_checked(session_database, recorder, server, plain, error, others=[stream])
        await limit(session_database, limit_usd=None, limit_tokens=1)
        with pytest.raises(BudgetRefusedError) as caught:
            await plain(session_database.budgets, "gpt-5")
        assert isinstance(caught.value, BudgetExceededError)
        assert caught.value.budget_ids == ("b",)
    statuses = [one.status for one in (await books.runs(session_database)).values()]
    assert (statuses[-1], set(statuses)) == ("failed", {"completed", "failed"})


async def test_a_budget_counts_sub_agents_and_rejected_responses_once(
    session_database: SessionDatabase, server: ModelServer, make_model: MakeModel
) -> None:
    await limit(session_database, limit_usd=None, limit_tokens=100_000)
    async with session_database.recorder() as recorder:
        check = BudgetCheck(session_database.budgets, needs={"tokens_in": 1_500, "tokens_out": 100})
        # Another adapter of the recorder asks nothing for what the first one asks for.
        capability = SessionCapability(recorder, user_id=A, budgets=check)
        other = SessionCapability(
            recorder, user_id=A, budgets=BudgetCheck(session_database.budgets, on_unavailable="refuse")
        )
        child = agent_of([capability, other], make_model("responses"), name="child")

        async def ask_child(ctx: RunContext[Any], request: str) -> str:
            """Asks the child."""
            return str((await child.run(request, usage=ctx.usage)).output)

        parent = agent_of([capability, other], make_model("responses"), name="parent", tools=[ask_child])
        await parent.run("[[tools:ask_child]] {{tools}} x")
        assert len(server.answered) > 2
        spent = sum(one.tokens_in + one.tokens_out for one in server.answered)
        assert await assert_settled(session_database, recorder) == spent
        assert recorder.snapshot().failures == 0
