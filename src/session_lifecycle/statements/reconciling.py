"""What the ledger adds up to, beside what is stored: totals of sessions, of their models, and of runs.

What the roll-ups have of them is in `reconciling_rollups`.

Whoever writes to the ledger moves the totals by the same amount in the same transaction. So a row whose totals still
are what was seen together with the ledger is still wrong by as much, and one that was changed meanwhile is left for
another time: a repair is one statement on one row, and waits for nobody while it holds anything.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple
from uuid import UUID

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    FromClause,
    Select,
    and_,
    bindparam,
    func,
    literal,
    or_,
    select,
    tuple_,
    union,
    update,
)
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import InstrumentedAttribute
from sqlalchemy.sql.dml import ReturningInsert, ReturningUpdate

from session_lifecycle.entities import RolledUpSessionEntity as U
from session_lifecycle.entities import SessionModelUsageEntity as M
from session_lifecycle.entities import SessionRecordEntity as S
from session_lifecycle.entities import SessionRunEntity as R
from session_lifecycle.entities import SessionUsageEventEntity as E
from session_lifecycle.statements.ledger import (
    COUNTS,
    IS_LATE,
    IS_MEASUREMENT,
    IS_OF_RUN,
    IS_UNMEASURED,
    IS_UNPRICED,
    TOKENS,
)

Totals = Mapping[str, ColumnElement[Any]]


class SessionKey(NamedTuple):
    """Which session."""

    user_id: UUID
    session_id: str


def _sum(column: InstrumentedAttribute[Any], *conditions: ColumnElement[bool]) -> ColumnElement[Any]:
    return func.coalesce(func.sum(column).filter(*conditions), 0).cast(column.type)


def _count(*conditions: ColumnElement[bool]) -> ColumnElement[Any]:
    return func.count().filter(*conditions).cast(BigInteger)


OF_SESSION: Totals = {
    **{column.key: _sum(column, COUNTS) for column in (E.cost_usd, *TOKENS)},
    "unpriced_events": _count(IS_UNPRICED),
    "unmeasured_events": _count(IS_UNMEASURED),
    "late_events": _count(IS_LATE),
    "late_cost_usd": _sum(E.cost_usd, IS_LATE),
}
"""A session's totals. Not its errors and its last model: without a key those need no event in the ledger (rule R03)."""

OF_MODEL: Totals = {
    **{column.key: _sum(column, COUNTS) for column in (E.cost_usd, *TOKENS)},
    "events": _count(COUNTS),
    "unpriced_events": _count(IS_UNPRICED),
    "unmeasured_events": _count(IS_UNMEASURED),
}
"""A model's totals within a session, over its measurements."""

OF_RUN: Totals = {f"events_{column.key}": _sum(column, COUNTS) for column in (E.cost_usd, *TOKENS[:4])}
"""A run's totals, over its events of whichever session."""


def sessions(after: SessionKey | None, limit: int) -> Select[UUID, str]:
    """The next sessions in the order of their keys, with those that are in the roll-ups only."""
    parts = []
    for table in (S, U):
        key = tuple_(table.user_id, table.session_id)
        part = select(table.user_id, table.session_id).order_by(table.user_id, table.session_id).limit(limit)
        parts.append(select(*(part if after is None else part.where(key > _bound(after))).subquery().c))
    keys = union(*parts).subquery("key").c
    return select(keys.user_id, keys.session_id).order_by(keys.user_id, keys.session_id).limit(limit)


def users_with_runs(after: UUID | None, limit: int) -> Select[UUID]:
    """The next users that have runs, in the order of their ids."""
    statement = select(R.user_id).distinct().order_by(R.user_id).limit(limit)
    return statement if after is None else statement.where(R.user_id > after)


def session_mismatches(first: SessionKey, last: SessionKey) -> Select[*tuple[Any, ...]]:
    """The sessions from the first to the last with a total that is not as expected, in the order of their keys.

    Columns: the key, and of each total what was found and what is expected, as `found_…` and `expected_…`.
    """
    ledger = (
        select(E.user_id, E.session_id, *_labelled(OF_SESSION))
        .where(between(E, first, last))
        .group_by(E.user_id, E.session_id)
        .subquery("ledger")
    )
    found = {name: getattr(S, name) for name in OF_SESSION}
    return (
        select(S.user_id, S.session_id, *pairs(found, ledger))
        .select_from(S)
        .outerjoin(ledger, and_(S.user_id == ledger.c.user_id, S.session_id == ledger.c.session_id))
        .where(between(S, first, last), or_(*differ(found, ledger)))
        .order_by(S.user_id, S.session_id)
    )


def model_mismatches(first: SessionKey, last: SessionKey) -> Select[*tuple[Any, ...]]:
    """The same of the totals by model; what is found is null where there is no row for the model."""
    names = ("user_id", "session_id", "model")
    model = func.coalesce(E.model, "").label("model")
    ledger = (
        select(E.user_id, E.session_id, model, *_labelled(OF_MODEL))
        .where(between(E, first, last), IS_MEASUREMENT)
        .group_by(E.user_id, E.session_id, model)
        .subquery("ledger")
    )
    stored = select(M).where(between(M, first, last)).subquery("stored")
    found = {name: stored.c[name] for name in OF_MODEL}
    keys = {name: func.coalesce(stored.c[name], ledger.c[name]) for name in names}
    return (
        select(*(key.label(name) for name, key in keys.items()), *pairs(found, ledger))
        .select_from(stored.join(ledger, and_(*(stored.c[name] == ledger.c[name] for name in names)), full=True))
        .where(or_(*differ(found, ledger)))
        .order_by(*keys.values())
    )


def run_mismatches(first: UUID, last: UUID) -> Select[*tuple[Any, ...]]:
    """The same of the runs of the users from the first to the last, in the order of their keys."""
    ledger = (
        select(E.user_id, E.run_id, *_labelled(OF_RUN))
        .where(E.user_id.between(first, last), IS_OF_RUN)
        .group_by(E.user_id, E.run_id)
        .subquery("ledger")
    )
    found = {name: getattr(R, name) for name in OF_RUN}
    return (
        select(R.user_id, R.run_id, *pairs(found, ledger))
        .select_from(R)
        .outerjoin(ledger, and_(R.user_id == ledger.c.user_id, R.run_id == ledger.c.run_id))
        .where(R.user_id.between(first, last), or_(*differ(found, ledger)))
        .order_by(R.user_id, R.run_id)
    )


def repair(
    entity: type[S | M | R], key: Mapping[str, Any], found: Mapping[str, Any], expected: Mapping[str, Any]
) -> ReturningUpdate[UUID]:
    """Gives the row of this key the expected totals; no row where they are not what was found any more."""
    as_seen = [getattr(entity, name) == value for name, value in {**key, **found}.items()]
    if entity is M:
        as_seen.append(_sessions_out_of_rollups(key) >= 0)
    return update(entity).where(*as_seen).values(dict(expected)).returning(entity.user_id)


def add_model(key: Mapping[str, Any], expected: Mapping[str, Any]) -> ReturningInsert[UUID]:
    """Adds the row a model lacks; no row where somebody else did, or the session went, meanwhile."""
    columns = {name: getattr(M, name) for name in (*key, *expected)}
    values = [literal(value, columns[name].type) for name, value in {**key, **expected}.items()]
    session = select(*values).where(_sessions_out_of_rollups(key) > 0)
    return insert(M).from_select(list(columns), session).on_conflict_do_nothing().returning(M.user_id)


def _sessions_out_of_rollups(key: Mapping[str, Any]) -> ColumnElement[int]:
    """How many sessions of this key there are, one or none, once it is locked and out of the roll-ups.

    A total by model is no column of the session, so the trigger would not see it change. Locked whether it is rolled up
    or not: who is rolling it up just now, or deletes it, waits for us or we for them.
    """
    of_key = (S.user_id == key["user_id"], S.session_id == key["session_id"])
    session = update(S).where(*of_key).values(rolled_up=False).returning(S.user_id).cte("session")
    return select(func.count()).select_from(session).scalar_subquery()


def _labelled(totals: Totals) -> list[ColumnElement[Any]]:
    return [total.label(name) for name, total in totals.items()]


def pairs(found: Totals, expected: FromClause) -> list[ColumnElement[Any]]:
    """Of each total what was found and what is expected, as `found_…` and `expected_…`."""
    return [
        column.label(f"{side}_{name}")
        for name, stored in found.items()
        for side, column in (("found", stored), ("expected", func.coalesce(expected.c[name], 0)))
    ]


def differ(found: Totals, expected: FromClause) -> list[ColumnElement[bool]]:
    """Of each total whether it differs; a row that is not there has zeros."""
    return [func.coalesce(stored, 0) != func.coalesce(expected.c[name], 0) for name, stored in found.items()]


def between(entity: type[S | M | E | U], first: SessionKey, last: SessionKey) -> ColumnElement[bool]:
    """Whether a row's session is one of those from the first to the last."""
    return tuple_(entity.user_id, entity.session_id).between(_bound(first), _bound(last))


def _bound(key: SessionKey) -> ColumnElement[Any]:
    columns = (S.user_id, S.session_id)
    return tuple_(*(bindparam(None, value, type_=column.type) for value, column in zip(key, columns, strict=True)))
