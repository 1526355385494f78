"""What the budget check of every adapter must hold: the same cases, against a stand-in of the model's API."""

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import pytest

from session_lifecycle import SessionDatabase, SessionRecorder, Settings
from session_lifecycle.integrations.budget_check import BudgetCheck
from support.budgets import limit, used
from support.model_server import ModelServer

Call = Callable[[Any, str], Awaitable[object]]
"""Calls a model once through an adapter: with this `budgets`, and a model of this name."""
AWAY = "postgresql://nobody@127.0.0.1:1/nowhere"


async def assert_settled(db: SessionDatabase, recorder: SessionRecorder, budget_id: str = "b") -> int:
    """Asserts that nothing is reserved once the recorder has written. Returns the tokens spent."""
    await recorder.flush()
    found = await used(db, budget_id)
    assert (found.reserved_tokens, found.reserved_usd) == (0, 0)
    return int(found.spent_tokens)


async def assert_checked(
    db: SessionDatabase,
    recorder: SessionRecorder,
    server: ModelServer,
    call: Call,
    error: type[Exception],
    model: str = "gpt-5",
    others: Sequence[Call] = (),
) -> None:
    """Asserts that calls within the limit are served and settled, and that others end by the runtime's own error.

    Args:
        db: Where the budgets are.
        recorder: The recorder of the adapter.
        server: The stand-in.
        call: Calls the model once.
        error: What a call that is refused raises.
        model: A model with a price.
        others: Other ways to call the model, of which only is asked whether they are served and refused.
    """

    async def refused(budgets: Any, name: str = model, by: Call = call) -> Exception:
        before = len(server.served)
        with pytest.raises(error) as caught:
            await by(budgets, name)
        assert len(server.served) == before
        await assert_settled(db, recorder)
        return caught.value

    await limit(db, limit_usd=None, limit_tokens=100_000)
    check = BudgetCheck(db.budgets, needs={"tokens_in": 60_000, "tokens_out": 0})
    await call(check, model)
    assert len(server.served) == 1
    served = server.served[0]
    assert await assert_settled(db, recorder) == served.tokens_in + served.tokens_out

    # The first call has used less than it reserved, so there is room for one more such call, and not for a larger one.
    large = BudgetCheck(db.budgets, needs=lambda _model, _request: {"tokens_in": 100_000})
    assert "'b'" in str(await refused(large))
    await call(check, model)
    assert len(server.served) == 2
    assert await assert_settled(db, recorder) == sum(one.tokens_in + one.tokens_out for one in server.served)

    for other in others:
        before = len(server.served)
        await other(check, model)
        assert len(server.served) == before + 1
        await assert_settled(db, recorder)
        await refused(large, by=other)

    # Without figures a call is admitted as long as something is left.
    await call(db.budgets, model)
    await assert_settled(db, recorder)
    await limit(db, limit_usd=None, limit_tokens=1)
    await refused(db.budgets)

    # A limit in USD needs a price, and a model that nobody knows has none.
    await limit(db, limit_usd=1000)
    await refused(check, "a-model-without-price")
    await limit(db, limit_usd=1000, on_unpriced="admit")
    before = len(server.served)
    await call(check, "a-model-without-price")
    assert len(server.served) == before + 1
    await assert_settled(db, recorder)

    assert recorder.snapshot().failures == 0
    async with SessionDatabase.connect(AWAY, settings=Settings(retries=0)) as away:
        await call(away.budgets, model)
        assert len(server.served) == before + 2
        await recorder.flush()
        assert recorder.snapshot().failures == 1
        await refused(BudgetCheck(away.budgets, on_unavailable="refuse"))
        assert recorder.snapshot().failures == 2
