"""Pricing events again: the events that this library priced, and a call of `reprice_v1` for changed prices."""

from datetime import datetime
from typing import Any, NamedTuple
from uuid import UUID

from sqlalchemy import BigInteger, Select, bindparam, case, func, literal, or_, select, type_coerce
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.sql.dml import ReturningInsert
from sqlalchemy.types import Uuid

from session_lifecycle.entities import KeyText
from session_lifecycle.statements import tables
from session_lifecycle.statements.shared.database_functions import database_function, json_parameter
from session_lifecycle.statements.shared.kept import kept
from session_lifecycle.statements.shared.ledger import TOKEN_COLUMNS
from session_lifecycle.statements.shared.paging import after_key
from session_lifecycle.statements.shared.window import within


class EventKey(NamedTuple):
    """The key of a usage event."""

    user_id: UUID
    session_id: str
    event_id: UUID


def priced_events(
    model: str | None, since: datetime | None, until: datetime | None, after: EventKey | None, limit: int
) -> Select[*tuple[Any, ...]]:
    """The next events with tokens and without a caller's cost, used in `[since, until)`, in the order of their keys."""
    key = (tables.usage_events.user_id, tables.usage_events.session_id, tables.usage_events.event_id)
    statement = (
        select(
            *key,
            tables.usage_events.recorded_at,
            tables.usage_events.run_id,
            tables.usage_events.at,
            tables.usage_events.model,
            tables.usage_events.provider,
            case(
                (tables.usage_events.billing == "plan", tables.usage_events.plan_cost_usd),
                else_=tables.usage_events.cost_usd,
            ).label("price_usd"),
            tables.usage_events.billing,
            *TOKEN_COLUMNS,
            tables.usage_events.parts,
            tables.usage_events.service_tier,
        )
        .where(
            tables.usage_events.given_cost_usd.is_(None),
            tables.usage_events.measured,
            tables.usage_events.key_scope != "run",
            or_(
                tables.usage_events.tokens_in > 0,
                tables.usage_events.tokens_out > 0,
                tables.usage_events.parts.is_not(None),
            ),
            *([] if model is None else [func.lower(tables.usage_events.model) == func.lower(literal(model, KeyText))]),
            *within(tables.usage_events.at, since, until),
        )
        .order_by(*key)
        .limit(limit)
    )
    return statement if after is None else statement.where(after_key(key, after))


def begin_audit(
    repricing_id: UUID, model: str | None, since: datetime | None, until: datetime | None
) -> ReturningInsert[UUID]:
    """Adds the audit row of a repricing, before it changes anything. A row that is already there stays as it is."""
    row = insert(tables.repricings).values(repricing_id=repricing_id, model=model, since=since, until=until)
    return row.on_conflict_do_nothing().returning(tables.repricings.repricing_id)


def audit(repricing_id: UUID) -> Select[*tuple[Any, ...]]:
    """At most one row: the figures of a repricing, from its audit row."""
    return select(tables.repricings.events, tables.repricings.cost_before_usd, tables.repricings.cost_after_usd).where(
        tables.repricings.repricing_id == repricing_id
    )


@kept
def reprice(schema: str) -> Select[int]:
    """Writes the bound `changes`, a JSON array as text, for the bound `repricing_id`. One row: how many it wrote."""
    arguments = (json_parameter("changes"), bindparam("repricing_id", type_=Uuid))
    return select(type_coerce(database_function(schema, "reprice_v1", *arguments), BigInteger))
