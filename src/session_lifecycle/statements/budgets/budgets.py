"""Budgets: setting, listing and deleting them."""

from typing import Any
from uuid import UUID

from sqlalchemy import BigInteger, ColumnElement, Numeric, Select, Text, bindparam, delete, false, or_, select, true
from sqlalchemy.sql.dml import ReturningDelete
from sqlalchemy.types import TypeEngine, Uuid

from session_lifecycle.statements import tables
from session_lifecycle.statements.shared.database_functions import database_function
from session_lifecycle.statements.shared.kept import LIMIT, kept
from session_lifecycle.statements.shared.visibility import ViewerShape, is_one_of

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
_TYPES: dict[str, type[TypeEngine[Any]]] = {
    "user_id": Uuid,
    "dataset_id": Uuid,
    "limit_usd": Numeric,
    "limit_tokens": BigInteger,
    "rolling_us": BigInteger,
}


@kept
def set_budget(schema: str) -> Select[bool]:
    """Sets a budget. One row: whether it is new. Binds `COLUMNS`."""
    values: list[ColumnElement[Any]] = [bindparam(name, type_=_TYPES.get(name, Text)) for name in COLUMNS]
    return select(database_function(schema, "set_budget_v1", *values))


@kept
def list_budgets(viewer: ViewerShape, *, has_after: bool) -> Select[*tuple[Any, ...]]:
    """The budgets that the viewer sees, in the order of their ids, after the id `after`.

    Binds the viewer, `after` and `limit`.
    """
    columns = [getattr(tables.budgets, name) for name in COLUMNS]
    found = select(*columns).where(visible(viewer)).order_by(tables.budgets.budget_id).limit(LIMIT)
    return found.where(tables.budgets.budget_id > bindparam("after", type_=Text)) if has_after else found


def delete_budget(budget_id: str) -> ReturningDelete[str]:
    """Deletes a budget. One row where there was one."""
    return delete(tables.budgets).where(tables.budgets.budget_id == budget_id).returning(tables.budgets.budget_id)


def visible(viewer: ViewerShape) -> ColumnElement[bool]:
    """Whether the viewer sees a budget: they see every session that it counts (rule R11)."""
    if viewer.sees_all:
        return true()
    ways = [
        is_one_of(column, ids)
        for column, ids in (
            (tables.budgets.user_id, viewer.owner_ids),
            (tables.budgets.dataset_id, viewer.permitted_dataset_ids),
        )
        if ids
    ]
    return or_(*ways) if ways else false()


def delete_budgets_of(user_id: UUID) -> ReturningDelete[str]:
    """Deletes the budgets that name the user. A row for each."""
    return delete(tables.budgets).where(tables.budgets.user_id == user_id).returning(tables.budgets.budget_id)
