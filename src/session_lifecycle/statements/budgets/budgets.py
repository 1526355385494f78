"""Budgets: setting, listing and deleting them."""

from functools import lru_cache
from typing import Any
from uuid import UUID

from sqlalchemy import BigInteger, ColumnElement, Numeric, Select, Text, bindparam, delete, or_, select, true
from sqlalchemy.sql.dml import ReturningDelete
from sqlalchemy.types import Uuid

from session_lifecycle.models import Viewer
from session_lifecycle.statements import tables
from session_lifecycle.statements.shared.database_functions import database_function
from session_lifecycle.statements.shared.kept import MOST_KEPT
from session_lifecycle.statements.shared.visibility import is_one_of

COLUMNS = (
    "budget_id",
    "user_id",
    "session_id",
    "agent_name",
    "dataset_id",
    "limit_usd",
    "limit_tokens",
    "calendar",
    "rolling_us",
    "timezone",
    "on_unpriced",
)
"""The columns of a budget, in the order of the arguments of `set_budget_v1`."""
_TYPES = {
    "user_id": Uuid,
    "dataset_id": Uuid,
    "limit_usd": Numeric,
    "limit_tokens": BigInteger,
    "rolling_us": BigInteger,
}


@lru_cache(maxsize=MOST_KEPT)
def set_budget(schema: str) -> Select[bool]:
    """Sets a budget. One row: whether it is new. Binds `COLUMNS`."""
    values = [bindparam(name, type_=_TYPES.get(name, Text)) for name in COLUMNS]
    return select(database_function(schema, "set_budget_v1", *values))


def list_budgets(viewer: Viewer, after: str | None, limit: int) -> Select[*tuple[Any, ...]]:
    """The budgets that the viewer sees, in the order of their ids, after the id `after`."""
    columns = [getattr(tables.budgets, name) for name in COLUMNS]
    found = select(*columns).where(visible(viewer)).order_by(tables.budgets.budget_id).limit(limit)
    return found if after is None else found.where(tables.budgets.budget_id > after)


def delete_budget(budget_id: str) -> ReturningDelete[str]:
    """Deletes a budget. One row where there was one."""
    return delete(tables.budgets).where(tables.budgets.budget_id == budget_id).returning(tables.budgets.budget_id)


def visible(viewer: Viewer) -> ColumnElement[bool]:
    """Whether the viewer sees a budget: they see every session that it counts (rule R11)."""
    if viewer.sees_all:
        return true()
    # An empty list has no budget: a comparison with null is not true.
    return or_(
        is_one_of(tables.budgets.user_id, viewer.owner_ids),
        is_one_of(tables.budgets.dataset_id, viewer.permitted_dataset_ids),
    )


def budgets_of(user_id: UUID) -> ReturningDelete[str]:
    """Deletes the budgets that name the user. A row for each."""
    return delete(tables.budgets).where(tables.budgets.user_id == user_id).returning(tables.budgets.budget_id)
