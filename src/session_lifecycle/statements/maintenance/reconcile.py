"""The stored totals of sessions, of their models and of runs, compared with the sums of the ledger.

`reconcile_roll_ups` compares the roll-ups. The statements that compare are kept, as a job runs each of them many times.

Every writer of the ledger changes the totals by the same amount in the same transaction. So a row that still has the
totals that were read together with the ledger is still wrong by the same amount. A row that changed meanwhile is left
for the next run. A repair is one statement on one row, so it never waits for a lock while it holds another.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple
from uuid import UUID

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    FromClause,
    Integer,
    Select,
    Text,
    and_,
    bindparam,
    case,
    cast,
    column,
    func,
    literal,
    null,
    or_,
    select,
    tuple_,
    union,
    update,
)
from sqlalchemy.dialects.postgresql import JSONB, insert
from sqlalchemy.orm import InstrumentedAttribute
from sqlalchemy.sql.dml import ReturningInsert, ReturningUpdate

from session_lifecycle.entities import KeyText
from session_lifecycle.statements import tables
from session_lifecycle.statements.shared.clock import TIMESTAMPTZ
from session_lifecycle.statements.shared.database_functions import EventTotals, database_function
from session_lifecycle.statements.shared.further_totals import FURTHER_TOTALS, summed
from session_lifecycle.statements.shared.kept import kept
from session_lifecycle.statements.shared.keys import same_session
from session_lifecycle.statements.shared.ledger import (
    IS_ADJUSTMENT,
    IS_LATE,
    IS_MEASUREMENT,
    IS_NOT_LATE,
    IS_OF_RUN,
    IS_UNMEASURED,
    IS_UNPRICED,
    RUN_TOKEN_COLUMNS,
    TOKEN_COLUMNS,
)
from session_lifecycle.statements.shared.paging import after_key

Totals = Mapping[str, ColumnElement[Any]]
NONE = cast(literal("{}", Text), JSONB)
"""No further totals; the column is null then."""


class SessionKey(NamedTuple):
    """The key of a session."""

    user_id: UUID
    session_id: str


_USER, _SESSION = tables.sessions.user_id.type, tables.sessions.session_id.type
_FIRST = (bindparam("first_user_id", type_=_USER), bindparam("first_session_id", type_=_SESSION))
_LAST = (bindparam("last_user_id", type_=_USER), bindparam("last_session_id", type_=_SESSION))
_USERS = (_FIRST[0], _LAST[0])


def sessions_between(first: SessionKey, last: SessionKey) -> dict[str, Any]:
    """The parameters of a statement on the sessions from the first to the last."""
    return {**users_between(first.user_id, last.user_id), "first_session_id": first[1], "last_session_id": last[1]}


def users_between(first: UUID, last: UUID) -> dict[str, Any]:
    """The parameters of a statement on the users from the first to the last."""
    return {"first_user_id": first, "last_user_id": last}


def _sum(column: InstrumentedAttribute[Any], *conditions: ColumnElement[bool]) -> ColumnElement[Any]:
    return func.coalesce(func.sum(column).filter(*conditions), 0).cast(column.type)


def _further_totals() -> ColumnElement[Any]:
    event = tables.usage_events
    columns = (event.parts, event.billing, event.partial, event.measured, event.tokens_in, event.tokens_out)
    of_event = EventTotals(*columns, event.plan_cost_usd)
    return summed(of_event, IS_MEASUREMENT)


def _count(*conditions: ColumnElement[bool]) -> ColumnElement[Any]:
    return func.count().filter(*conditions).cast(BigInteger)


OF_SESSION: Totals = {
    **{column.key: _sum(column, IS_NOT_LATE) for column in (tables.usage_events.cost_usd, *TOKEN_COLUMNS)},
    "unpriced_events": _count(IS_UNPRICED),
    "unmeasured_events": _count(IS_UNMEASURED),
    "late_events": _count(IS_LATE),
    "late_cost_usd": _sum(tables.usage_events.cost_usd, IS_LATE),
    FURTHER_TOTALS: _further_totals(),
}
"""The totals of a session.

The error count and the last model are not compared: they can come from events that leave no row in the ledger (R03).
"""

OF_MODEL: Totals = {
    **{column.key: _sum(column, IS_NOT_LATE) for column in (tables.usage_events.cost_usd, *TOKEN_COLUMNS)},
    "events": _count(IS_NOT_LATE),
    "unpriced_events": _count(IS_UNPRICED),
    "unmeasured_events": _count(IS_UNMEASURED),
    FURTHER_TOTALS: _further_totals(),
}
"""The totals of a model within a session, over the measurements."""

OF_ADJUSTMENT = ("session_id", "model", "cost_usd")
"""What is compared of an adjustment: the row of the ledger with what a run reports beyond its events."""

OF_RUN: Totals = {
    f"events_{column.key}": _sum(column, IS_NOT_LATE)
    for column in (tables.usage_events.cost_usd, *RUN_TOKEN_COLUMNS, tables.usage_events.plan_cost_usd)
}
"""The totals of a run, over its events in all sessions."""


def sessions(after: SessionKey | None, limit: int) -> Select[UUID, str]:
    """The next sessions in the order of their keys, and keys that only the roll-ups have."""
    parts = []
    for table in (tables.sessions, tables.rolled_up_sessions):
        key = (table.user_id, table.session_id)
        part = select(*key).order_by(*key).limit(limit)
        parts.append(select(*(part if after is None else part.where(after_key(key, after))).subquery().c))
    keys = union(*parts).subquery("key").c
    return select(keys.user_id, keys.session_id).order_by(keys.user_id, keys.session_id).limit(limit)


def users_with_runs(after: UUID | None, limit: int) -> Select[UUID]:
    """The next users with sessions or runs, in the order of their ids."""
    parts = []
    for table in (tables.sessions, tables.runs):
        part = select(table.user_id).distinct().order_by(table.user_id).limit(limit)
        parts.append(select(*(part if after is None else part.where(table.user_id > after)).subquery().c))
    users = union(*parts).subquery("users").c
    return select(users.user_id).order_by(users.user_id).limit(limit)


@kept
def session_mismatches() -> Select[*tuple[Any, ...]]:
    """The sessions from the first to the last that have a wrong total, in the order of their keys.

    Binds `sessions_between`.

    Columns: the key, and for each total the stored value as `found_…` and the ledger's sum as `expected_…`.
    """
    key = (tables.usage_events.user_id, tables.usage_events.session_id)
    ledger = select(*key, *_labelled(OF_SESSION)).where(between(tables.usage_events)).group_by(*key).subquery("ledger")
    totals = {name: getattr(tables.sessions, name) for name in OF_SESSION}
    return (
        select(tables.sessions.user_id, tables.sessions.session_id, *pairs(totals, ledger))
        .select_from(tables.sessions)
        .outerjoin(ledger, same_session(tables.sessions, ledger.c))
        .where(between(tables.sessions), or_(*differ(totals, ledger)))
        .order_by(tables.sessions.user_id, tables.sessions.session_id)
    )


@kept
def model_mismatches() -> Select[*tuple[Any, ...]]:
    """The same for the totals by model. `found_…` is null where the model has no row."""
    names = ("user_id", "session_id", "model_key")
    model = func.coalesce(tables.usage_events.model, "", type_=KeyText)
    key = (tables.usage_events.user_id, tables.usage_events.session_id, func.lower(model).label("model_key"))
    ledger = (
        select(*key, func.min(model).label("model"), *_labelled(OF_MODEL))
        .where(between(tables.usage_events), IS_MEASUREMENT)
        .group_by(*key)
        .subquery("ledger")
    )
    stored = select(tables.model_usage).where(between(tables.model_usage)).subquery("stored")
    totals = {name: stored.c[name] for name in OF_MODEL}
    keys = {name: func.coalesce(stored.c[name], ledger.c[name]) for name in ("user_id", "session_id", "model")}
    return (
        select(*(key.label(name) for name, key in keys.items()), *pairs(totals, ledger))
        .select_from(stored.join(ledger, and_(*(stored.c[name] == ledger.c[name] for name in names)), full=True))
        .where(or_(*differ(totals, ledger)))
        .order_by(*keys.values())
    )


@kept
def run_mismatches() -> Select[*tuple[Any, ...]]:
    """The same for the runs of the users from the first to the last. `found_…` is null where the run has no row.

    Binds `users_between`.
    """
    ledger = (
        select(tables.usage_events.user_id, tables.usage_events.run_id, *_labelled(OF_RUN))
        .where(tables.usage_events.user_id.between(*_USERS), IS_OF_RUN)
        .group_by(tables.usage_events.user_id, tables.usage_events.run_id)
        .subquery("ledger")
    )
    columns = (tables.runs.user_id, tables.runs.run_id, *(getattr(tables.runs, name) for name in OF_RUN))
    stored = select(*columns).where(tables.runs.user_id.between(*_USERS)).subquery("stored")
    totals = {name: stored.c[name] for name in OF_RUN}
    keys = {name: func.coalesce(stored.c[name], ledger.c[name]) for name in ("user_id", "run_id")}
    is_same = and_(stored.c.user_id == ledger.c.user_id, stored.c.run_id == ledger.c.run_id)
    return (
        select(*(key.label(name) for name, key in keys.items()), *pairs(totals, ledger))
        .select_from(stored.join(ledger, is_same, full=True))
        .where(or_(*differ(totals, ledger)))
        .order_by(*keys.values())
    )


@kept
def adjustment_mismatches() -> Select[*tuple[Any, ...]]:
    """The runs of these users whose adjustment is not what the run reports beyond its events, in the order of keys.

    Binds `users_between`.

    Columns: the key, and the session, the model and the cost of the adjustment as `found_…` and `expected_…`; null
    where there is or ought to be none.
    """
    runs, held = tables.runs, tables.usage_events
    due = case(
        (
            and_(runs.session_id.is_not(None), runs.started_at.is_not(None)),
            runs.reported_cost_usd - runs.events_cost_usd - func.coalesce(runs.events_plan_cost_usd, 0),
        )
    )
    expected = (
        select(runs.user_id, runs.run_id, runs.session_id, runs.model, due.label("cost_usd"))
        .where(runs.user_id.between(*_USERS), due > 0)
        .subquery("expected")
    )
    stored = (
        select(held.user_id, held.run_id, held.session_id, held.model, held.cost_usd)
        .where(held.user_id.between(*_USERS), IS_ADJUSTMENT, held.run_id.is_not(None))
        .subquery("stored")
    )
    keys = {name: func.coalesce(stored.c[name], expected.c[name]) for name in ("user_id", "run_id")}
    is_same = and_(stored.c.user_id == expected.c.user_id, stored.c.run_id == expected.c.run_id)
    return (
        select(
            *(key.label(name) for name, key in keys.items()),
            *(
                side.c[name].label(f"{label}_{name}")
                for name in OF_ADJUSTMENT
                for label, side in (("found", stored), ("expected", expected))
            ),
        )
        .select_from(stored.join(expected, is_same, full=True))
        .where(or_(*(stored.c[name].is_distinct_from(expected.c[name]) for name in OF_ADJUSTMENT)))
        .order_by(*keys.values())
    )


def settle_run(schema: str, user_id: UUID, run_id: str, session_id: str) -> Select[*tuple[Any, ...]]:
    """Settles a run: an item that writes nothing but names the run brings its adjustment in line, under all locks."""
    item = {"kind": "nothing", "position": 0, "user_id": str(user_id), "session_id": session_id, "run_id": run_id}
    call = database_function(
        schema, "record_v1", literal([[item]], JSONB), literal([[]], JSONB), null().cast(TIMESTAMPTZ), literal(False)
    )
    return select(call.table_valued(column("item_position", Integer), name="settled"))


def repair(
    entity: type[tables.sessions | tables.model_usage | tables.runs],
    key: Mapping[str, Any],
    found: Mapping[str, Any],
    expected: Mapping[str, Any],
) -> ReturningUpdate[UUID]:
    """Sets the expected totals of the row with this key. Returns no row where the totals are no longer as found."""
    as_found = [
        func.coalesce(entity.__table__.c[FURTHER_TOTALS], NONE) == _value(name, value or "{}")
        if name == FURTHER_TOTALS
        else getattr(entity, name).is_not_distinct_from(value)
        if value is None
        else getattr(entity, name) == value
        for name, value in {**key, **found}.items()
    ]
    if entity is tables.model_usage:
        as_found.append(_sessions_taken_out(key) >= 0)
    values = {name: _value(name, value) for name, value in expected.items()}
    return update(entity).where(*as_found).values(values).returning(entity.user_id)


def _value(name: str, value: Any) -> Any:
    """The value of a total, as a statement takes it: further totals are JSON text."""
    return cast(literal(value, Text), JSONB) if name == FURTHER_TOTALS else value


def add_run(key: Mapping[str, Any], expected: Mapping[str, Any]) -> ReturningInsert[UUID]:
    """Adds a row with the sums of a run that events name. Returns no row where another writer added it."""
    return insert(tables.runs).values({**key, **expected}).on_conflict_do_nothing().returning(tables.runs.user_id)


def add_model(key: Mapping[str, Any], expected: Mapping[str, Any]) -> ReturningInsert[UUID]:
    """Adds the missing row of a model. Returns no row where another writer added it, or the session was deleted."""
    columns = {name: getattr(tables.model_usage, name) for name in (*key, *expected)}
    values = [
        _value(name, value) if name == FURTHER_TOTALS else literal(value, columns[name].type)
        for name, value in {**key, **expected}.items()
    ]
    row = select(*values).where(_sessions_taken_out(key) > 0)
    return (
        insert(tables.model_usage)
        .from_select(list(columns), row)
        .on_conflict_do_nothing()
        .returning(tables.model_usage.user_id)
    )


def _sessions_taken_out(key: Mapping[str, Any]) -> ColumnElement[int]:
    """Locks the session of this key and takes it out of the roll-ups. The number of such sessions: one or none.

    A total by model is not a column of the session, so the trigger that takes a changed session out does not see it
    change. The session is locked even where it is not rolled up: a transaction that rolls it up or deletes it at the
    same time waits for the repair, or the repair waits for it.
    """
    of_key = (tables.sessions.user_id == key["user_id"], tables.sessions.session_id == key["session_id"])
    session = (
        update(tables.sessions).where(*of_key).values(rolled_up=False).returning(tables.sessions.user_id).cte("session")
    )
    return select(func.count()).select_from(session).scalar_subquery()


def _labelled(totals: Totals) -> list[ColumnElement[Any]]:
    return [total.label(name) for name, total in totals.items()]


def pairs(stored: Totals, expected: FromClause) -> list[ColumnElement[Any]]:
    """For each total the stored value as `found_…` and the expected value as `expected_…`."""
    return [
        column.label(f"{side}_{name}")
        for name, total in stored.items()
        for side, column in (
            (("found", cast(total, Text)), ("expected", cast(expected.c[name], Text)))
            if name == FURTHER_TOTALS
            else (("found", total), ("expected", func.coalesce(expected.c[name], 0)))
        )
    ]


def differ(stored: Totals, expected: FromClause) -> list[ColumnElement[bool]]:
    """For each total whether it differs. The totals of a missing row are zero."""
    zeros: dict[str, Any] = {FURTHER_TOTALS: NONE}
    return [
        func.coalesce(total, zeros.get(name, 0)) != func.coalesce(expected.c[name], zeros.get(name, 0))
        for name, total in stored.items()
    ]


def between(
    entity: type[tables.sessions | tables.model_usage | tables.usage_events | tables.rolled_up_sessions],
) -> ColumnElement[bool]:
    """Whether the session of a row is between the first and the last, both included. Binds `sessions_between`."""
    return tuple_(entity.user_id, entity.session_id).between(tuple_(*_FIRST), tuple_(*_LAST))
