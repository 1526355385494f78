"""Pricing events again: those that were priced by us, and one call of `reprice_v2` for those whose price changed."""

from datetime import datetime
from typing import Any, NamedTuple
from uuid import UUID

from sqlalchemy import BigInteger, Select, Text, bindparam, cast, or_, select, tuple_, type_coerce
from sqlalchemy.dialects.postgresql import JSONB, insert
from sqlalchemy.sql.dml import ReturningInsert
from sqlalchemy.types import Uuid

from session_lifecycle.entities import SessionRepricingEntity as R
from session_lifecycle.entities import SessionUsageEventEntity as E
from session_lifecycle.statements.functions import own_function

PRICED_BY = (E.tokens_in, E.tokens_out, E.cache_read_tokens, E.cache_write_tokens, E.reasoning_tokens)


class EventKey(NamedTuple):
    """Which event."""

    user_id: UUID
    session_id: str
    event_id: UUID


def priced_events(
    model: str | None, since: datetime | None, until: datetime | None, after: EventKey | None, limit: int
) -> Select[*tuple[Any, ...]]:
    """Events with tokens and no cost of the caller's, used in `[since, until)`, in the order of their keys."""
    key = tuple_(E.user_id, E.session_id, E.event_id)
    statement = (
        select(
            E.user_id,
            E.session_id,
            E.event_id,
            E.revision,
            E.run_id,
            E.at,
            E.model,
            E.provider,
            E.cost_usd,
            E.price_source,
            *PRICED_BY,
        )
        .where(E.given_cost_usd.is_(None), E.measured, or_(E.tokens_in > 0, E.tokens_out > 0))
        .order_by(E.user_id, E.session_id, E.event_id)
        .limit(limit)
    )
    if model is not None:
        statement = statement.where(E.model == model)
    if since is not None:
        statement = statement.where(E.at >= since)
    if until is not None:
        statement = statement.where(E.at < until)
    return statement if after is None else statement.where(key > tuple_(*map(_bound, after, key)))


def _bound(value: Any, column: Any) -> Any:
    return bindparam(None, value, type_=column.type)


def begin_audit(
    repricing_id: UUID, model: str | None, since: datetime | None, until: datetime | None
) -> ReturningInsert[UUID]:
    """The run's row, before anything is changed; begun again, it is left as it is."""
    row = insert(R).values(repricing_id=repricing_id, model=model, since=since, until=until)
    return row.on_conflict_do_nothing().returning(R.repricing_id)


def audit(repricing_id: UUID) -> Select[*tuple[Any, ...]]:
    """The run's figures."""
    return select(R.events, R.cost_before_usd, R.cost_after_usd).where(R.repricing_id == repricing_id)


def reprice(schema: str) -> Select[int]:
    """How many of the bound `changes`, a JSON array as text, were written for the run `repricing_id`."""
    changes = cast(bindparam("changes", type_=Text), JSONB)
    run = bindparam("repricing_id", type_=Uuid)
    return select(type_coerce(own_function(schema, "reprice_v2", changes, run), BigInteger))
