"""What is used of budgets, and reservations: calls of our functions, which are in `alembic/functions/budgets/`."""

from typing import Any
from uuid import UUID

from sqlalchemy import (
    BigInteger,
    Boolean,
    ColumnClause,
    ColumnElement,
    Numeric,
    Select,
    TableValuedAlias,
    Text,
    bindparam,
    column,
    delete,
    func,
    literal,
    null,
    or_,
    select,
)
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.sql.dml import ReturningDelete
from sqlalchemy.types import Uuid

from session_lifecycle.statements import tables
from session_lifecycle.statements.budgets.budgets import COLUMNS, visible
from session_lifecycle.statements.shared.clock import TIMESTAMPTZ
from session_lifecycle.statements.shared.database_functions import database_function
from session_lifecycle.statements.shared.kept import kept
from session_lifecycle.statements.shared.visibility import ViewerShape

_BUDGET = [column(name, getattr(tables.budgets, name).type) for name in COLUMNS]
_FIGURES = [
    column("since", TIMESTAMPTZ),
    column("spent_usd", Numeric),
    column("spent_tokens", Numeric),
    column("reserved_usd", Numeric),
    column("reserved_tokens", Numeric),
    column("unpriced_events", BigInteger),
    column("unmeasured_events", BigInteger),
    column("over_usd", Numeric),
    column("over_tokens", Numeric),
    column("over_unpriced", Boolean),
]
_OF_SESSION = (bindparam("user_id", type_=Uuid), bindparam("session_id", type_=Text))
_GIVEN = (bindparam("agent_name", type_=Text), bindparam("dataset_id", type_=Uuid))
_ASKED = (
    bindparam("asked_usd", type_=Numeric),
    bindparam("asked_tokens", type_=BigInteger),
    bindparam("is_unpriced", type_=Boolean),
)
_NOT_OWN: tuple[ColumnElement[Any], ...] = (null(), null(), null())


@kept
def would_exceed(schema: str) -> Select[*tuple[Any, ...]]:
    """A row for each budget that would refuse a call, in the order of their ids.

    Binds `user_id`, `session_id`, `agent_name`, `dataset_id`, `asked_usd`, `asked_tokens`, `is_unpriced`.
    """
    applying = database_function(schema, "applying_budgets_v1", *_OF_SESSION, *_GIVEN)
    used = _budget_use(schema, applying, *_ASKED)
    is_over = or_(used.c.over_usd.is_not(None), used.c.over_tokens.is_not(None), used.c.over_unpriced)
    return select(used).where(is_over)


@kept
def reserve(schema: str) -> Select[*tuple[Any, ...]]:
    """Reserves. One row with the outcome and the end of the lease, or a row for each budget that refuses.

    Binds what `would_exceed` binds, and `event_id`, `key_scope` and `lease_us`.
    """
    reserved = database_function(
        schema,
        "reserve_v1",
        *_OF_SESSION,
        bindparam("event_id", type_=Uuid),
        bindparam("key_scope", type_=Text),
        *_GIVEN,
        *_ASKED,
        bindparam("lease_us", type_=BigInteger),
    )
    outcome: list[ColumnClause[Any]] = [column("outcome", Text), column("ends_at", TIMESTAMPTZ)]
    answer = reserved.table_valued(*outcome, *_BUDGET, *_FIGURES, name="reserved")
    return select(*answer.c)


@kept
def budget_use(schema: str, viewer: ViewerShape) -> Select[*tuple[Any, ...]]:
    """What is used of a budget. No row where the viewer sees none with this id. Binds the viewer and `budget_id`."""
    seen = (
        select(func.array_agg(tables.budgets.budget_id, type_=ARRAY(Text)))
        .where(tables.budgets.budget_id == bindparam("budget_id", type_=Text), visible(viewer))
        .scalar_subquery()
    )
    unknown = (null(), null(), literal(False, Boolean))
    return select(_budget_use(schema, seen, *unknown))


def release(user_id: UUID, session_id: str, event_id: UUID) -> ReturningDelete[UUID]:
    """Deletes a reservation. One row where there was one."""
    return (
        delete(tables.reservations)
        .where(
            tables.reservations.user_id == user_id,
            tables.reservations.session_id == session_id,
            tables.reservations.event_id == event_id,
        )
        .returning(tables.reservations.event_id)
    )


def delete_reservations_of(user_id: UUID) -> ReturningDelete[UUID]:
    """Deletes the reservations of the user. A row for each."""
    return (
        delete(tables.reservations)
        .where(tables.reservations.user_id == user_id)
        .returning(tables.reservations.event_id)
    )


def _budget_use(schema: str, ids: ColumnElement[Any], *asked: ColumnElement[Any]) -> TableValuedAlias:
    used = database_function(schema, "budget_use_v1", ids, *_NOT_OWN, *asked)
    return used.table_valued(*_BUDGET, *_FIGURES, name="used")
