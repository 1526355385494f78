"""Budgets of a test: set in short, and what the auditor sees of them."""

from typing import Any

from session_lifecycle import SessionDatabase, Viewer
from session_lifecycle.models import Budget
from support.usage import A

AUDITOR = Viewer.auditor()


async def limit(db: SessionDatabase, budget_id: str = "b", **fields: Any) -> Budget:
    budget = Budget(**{"budget_id": budget_id, "user_id": A, "limit_usd": 10, **fields})
    await db.budgets.set_budget(budget)
    return budget


async def used(db: SessionDatabase, budget_id: str = "b") -> Any:
    """A `BudgetUse`, as `Any`: tests compare its amounts with whole numbers."""
    found = await db.budgets.get_budget(budget_id, AUDITOR)
    assert found is not None
    return found


async def spent(db: SessionDatabase, budget_id: str = "b") -> Any:
    return (await used(db, budget_id)).spent_usd


async def reserved(db: SessionDatabase, budget_id: str = "b") -> Any:
    return (await used(db, budget_id)).reserved_usd
