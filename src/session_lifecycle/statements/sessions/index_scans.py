"""First keys: one limited index scan per scope, merged.

A scan reads one kind of scope in one part of the sessions. No index has rolled-up sessions together with the others, or
sessions with an order value together with those without one.
"""

from collections.abc import Sequence
from datetime import datetime
from functools import reduce
from typing import Any, NamedTuple

from sqlalchemy import (
    ARRAY,
    BigInteger,
    ColumnElement,
    FromClause,
    Select,
    Subquery,
    Text,
    Uuid,
    bindparam,
    false,
    func,
    literal,
    literal_column,
    select,
    true,
    union_all,
)

from session_lifecycle.models import SessionStatus
from session_lifecycle.models.pages import TOTAL_BOUND
from session_lifecycle.models.session_filters import DEFAULT_SESSION_ORDER
from session_lifecycle.statements import tables
from session_lifecycle.statements.roll_ups.buckets import begin_of_minute
from session_lifecycle.statements.sessions.listing_shape import AFTER_EVERY_SESSION_ID, ListingShape
from session_lifecycle.statements.shared.clock import clock
from session_lifecycle.statements.shared.json_rows import Column
from session_lifecycle.statements.shared.paging import comes_after
from session_lifecycle.statements.shared.status import activity_bounds, is_stored_as, is_waiting, stored_statuses, waits
from session_lifecycle.statements.shared.visibility import ONE_USER, of_everybody
from session_lifecycle.statements.shared.window import Ends, window

Table = type[tables.sessions | tables.rolled_up_sessions]
_KEY = ("user_id", "session_id")


class _ScopeKind(NamedTuple):
    """The scopes of one kind."""

    each: Sequence[FromClause]
    """Tables whose join has one row per scope; empty for one scope, such as everybody's sessions."""
    equal: Sequence[tuple[str, ColumnElement[Any]]] = ()
    """Columns of a session, and the value that a session in the scope has there."""
    tie: ColumnElement[str] | None = None
    """After a position: the session id that decides ties, for scopes of one user, whose indexes have no user in their
    order.
    """
    without_users: bool = False
    """Whether another kind of scope finds the sessions of the bound `users`."""


class _Part(NamedTuple):
    """Sessions that an index has in one order: of one table, and all with an order value or all without one."""

    statuses: Sequence[SessionStatus]
    table: Table
    is_null: bool

    @property
    def key(self) -> tuple[Column, Column]:
        return self.table.user_id, self.table.session_id


def first_keys(shape: ListingShape, rows_needed: ColumnElement[int], *further: str) -> Subquery:
    """Keys of sessions as `value, user_id, session_id`: each session once, in no order.

    The first `rows_needed` sessions of the listing are among them, or all sessions where there are fewer.

    Args:
        shape: The shape of the listing.
        rows_needed: How many of the first sessions the result must hold.
        further: The names of further columns of a session.
    """
    # The limit is a subquery, so that the planner does not know the number. It then expects a limit below the number of
    # sessions in a scope, and walks the index in its order. If it knew the number, it would sort every scope of which
    # it expects no more sessions than that.
    limit = select(rows_needed).scalar_subquery()
    scans = [_index_scan(shape, kind, part, limit, further) for kind in _scope_kinds(shape) for part in _parts(shape)]
    no_rows = select(*_columns(tables.sessions, shape, further)).where(false())
    return union_all(*(scans or [no_rows])).subquery("first_keys")


def bounded_count(shape: ListingShape, bound: int = TOTAL_BOUND) -> ColumnElement[int]:
    """The number of sessions. The statement reads and counts at most one session above the bound."""
    limit = literal(bound + 1, BigInteger)
    first_page = shape._replace(order_by=DEFAULT_SESSION_ORDER, has_position=False, position_is_null=False)
    keys = first_keys(first_page, limit)
    counted = select(keys.c.user_id).limit(limit).subquery("counted")
    return select(func.count()).select_from(counted).scalar_subquery()


def _columns(table: Table, shape: ListingShape, further: Sequence[str]) -> list[ColumnElement[Any]]:
    value = getattr(table, shape.order_by).label("value")
    return [value, *(getattr(table, name) for name in (*_KEY, *further))]


def _index_scan(
    shape: ListingShape, kind: _ScopeKind, part: _Part, limit: ColumnElement[int], further: Sequence[str]
) -> Select[*tuple[Any, ...]]:
    table = part.table
    is_rolled_up = table is tables.rolled_up_sessions
    conditions = [
        *([] if is_rolled_up else [~tables.sessions.rolled_up]),
        *([] if kind.equal else [of_everybody(table)]),
        *_scope_of_one_scan(shape, part),
        *(getattr(table, name) == scope_value for name, scope_value in kind.equal),
        *_filter_conditions(shape, part),
        *(_after_position(shape, kind, part) if shape.has_position else []),
    ]
    sessions = select(*_columns(table, shape, further)).where(*conditions).correlate(*kind.each)
    first = _first(sessions, shape, part, limit)
    of_scope = first.lateral("first")
    scopes = reduce(lambda left, right: left.join(right, true()), (*kind.each, of_scope))
    keys = select(*(of_scope.c[name] for name in ("value", *_KEY, *further))).select_from(scopes)
    if kind.without_users:
        # This condition comes after the limit. Before it, a dataset that is mostly the viewer's own would be read
        # whole.
        keys = keys.where(shape.kinds.are_not_of(of_scope.c.user_id))
    return keys


def _scope_of_one_scan(shape: ListingShape, part: _Part) -> list[ColumnElement[bool]]:
    """Whether a session is in any of the scopes, where one scan reads the sessions of all."""
    if not shape.in_one_scan or shape.kinds.everybody:
        return []
    in_any = shape.kinds.in_any(part.table)
    # No index serves COALESCE. Where Postgres expects few sessions in the scopes, it would look them up, and read and
    # sort all of them.
    return [func.coalesce(in_any, false())]


def _first(
    sessions: Select[*tuple[Any, ...]], shape: ListingShape, part: _Part, limit: ColumnElement[int]
) -> Select[*tuple[Any, ...]]:
    """The first of these sessions in the order of the listing, and others with the last value."""
    is_rolled_up = part.table is tables.rolled_up_sessions

    def ordered(rows: Select[*tuple[Any, ...]], *by: ColumnElement[Any] | Column) -> Select[*tuple[Any, ...]]:
        return rows.order_by(*(term.desc() if shape.descending else term.asc() for term in by))

    if shape.is_by_activity:
        # The index has no key after the activity, and for sessions not rolled up the minute in place of the moment. So
        # the scan fetches the last moment or minute whole and the page sorts it later. The scan does not sort: where
        # Postgres expects few sessions in a scope, it would then read and sort all of them.
        activity = part.table.last_activity_at if is_rolled_up else tables.sessions.activity_minute
        rows = sessions.add_columns(activity.label("activity"))
        of_each_status = [rows.where(is_stored_as([status], part.table)) for status in part.statuses]
        scans = [ordered(of_status, activity).fetch(limit, with_ties=True) for of_status in of_each_status]
        if len(scans) == 1:
            return scans[0]
        # The index has one status after another. Postgres merges the scans, and reads no more of each than it needs.
        merged = union_all(*scans).subquery("merged")
        return ordered(select(merged), merged.c.activity).fetch(limit, with_ties=True)
    chosen = sessions.where(is_stored_as(part.statuses, part.table))
    if is_rolled_up and shape.in_one_scan:
        # Only an order that an index of all these sessions has is scanned at once. This index knows no status.
        return ordered(chosen, getattr(part.table, shape.order_by)).fetch(limit, with_ties=True)
    # No index has these sessions in the wanted order: Postgres finds them by activity and sorts them. OFFSET 0 keeps it
    # from walking another index in the wanted order instead.
    found = chosen.offset(literal_column("0")).lateral("found")
    return ordered(select(*found.c), *found.c).limit(limit)


def _scope_kinds(shape: ListingShape) -> list[_ScopeKind]:
    kinds = shape.kinds
    if shape.in_one_scan:
        return [_ScopeKind(())]
    dataset = _unnest("dataset", dataset_id=bindparam("datasets", type_=ARRAY(Uuid)))
    in_dataset = ("dataset_id", dataset.c.dataset_id)
    if kinds.has_one_user:
        owners: list[FromClause] = []
        of_owner: tuple[str, ColumnElement[Any]] = ("user_id", ONE_USER)
        tie: ColumnElement[str] | None = bindparam("tie", type_=Text)
    else:
        ties = {"tie": bindparam("ties", type_=ARRAY(Text))} if shape.has_position else {}
        owner = _unnest("owner", user_id=bindparam("users", type_=ARRAY(Uuid)), **ties)
        owners = [owner]
        of_owner, tie = ("user_id", owner.c.user_id), owner.c.get("tie")
    found: list[_ScopeKind] = []
    if kinds.everybody:
        found.append(_ScopeKind(()))
    if kinds.users:
        found.append(_ScopeKind(owners, (of_owner,), tie))
    if kinds.datasets:
        found.append(_ScopeKind((dataset,), (in_dataset,), without_users=kinds.users))
    if kinds.pairs:
        found.append(_ScopeKind((*owners, dataset), (of_owner, in_dataset), tie))
    return found


def _parts(shape: ListingShape) -> list[_Part]:
    stored = stored_statuses(shape.status_filter)
    groups: list[tuple[Sequence[SessionStatus], bool]] = [(stored, False)]
    if shape.order_by == "ended_at":
        # A session has no end exactly while it runs. Sessions without an end come last, so all of them come after any
        # position that has an end, and no session with an end comes after a position without one.
        ended = [status for status in stored if status is not SessionStatus.RUNNING]
        running = [status for status in stored if status is SessionStatus.RUNNING]
        groups = [([] if shape.position_is_null else ended, False), (running, True)]
    return [_Part(statuses, table, is_null) for statuses, is_null in groups if statuses for table in _tables(shape)]


def _tables(shape: ListingShape) -> Sequence[Table]:
    # No rolled-up session waits.
    return (tables.sessions,) if waits(shape.status_filter) else (tables.sessions, tables.rolled_up_sessions)


def _filter_conditions(shape: ListingShape, part: _Part) -> list[ColumnElement[bool]]:
    """The conditions of the filters that are the same in every scope. The stored status is not among them."""
    conditions: list[ColumnElement[bool]] = []
    if shape.has_agent_name:
        conditions.append(part.table.agent_name == bindparam("agent_name", type_=Text))
    since, until = window(Ends(shape.has_since, shape.has_until), are_unknown=shape.in_one_scan)
    if since is not None:
        conditions += _active_since(since, part)
    if until is not None:
        conditions += _active_before(until, part)
    if part.table is tables.sessions and (wanted := waits(shape.status_filter)) is not None:
        conditions.append(is_waiting() if wanted else ~is_waiting())
    status_since, status_until = activity_bounds(shape.status_filter, shape.abandon_after, clock())
    if status_since is not None:
        conditions += _active_since(status_since, part)
    if status_until is not None:
        conditions += _active_before(status_until, part)
    return conditions


# The indexes on sessions have the minute of the last activity in place of the exact moment. The exact condition implies
# the condition on the minute, but Postgres does not know that: both are written.


def _active_since(moment: ColumnElement[datetime], part: _Part) -> list[ColumnElement[bool]]:
    exact = part.table.last_activity_at >= moment
    return (
        [exact]
        if part.table is tables.rolled_up_sessions
        else [exact, tables.sessions.activity_minute >= begin_of_minute(moment)]
    )


def _active_before(moment: ColumnElement[datetime], part: _Part) -> list[ColumnElement[bool]]:
    exact = part.table.last_activity_at < moment
    return (
        [exact]
        if part.table is tables.rolled_up_sessions
        else [exact, tables.sessions.activity_minute <= begin_of_minute(moment)]
    )


def _after_position(shape: ListingShape, kind: _ScopeKind, part: _Part) -> list[ColumnElement[bool]]:
    """Whether a session comes after the bound position, as comparisons at which an index scan can begin."""
    key: Sequence[Column] = part.key
    position_key: list[ColumnElement[Any]] = [bindparam("user_id", type_=Uuid), bindparam("session_id", type_=Text)]
    if kind.tie is not None:
        key, position_key = key[1:], [func.coalesce(kind.tie, literal(AFTER_EVERY_SESSION_ID, Text))]
    if part.is_null:
        # All sessions without an order value come after a position that has one.
        return [comes_after(key, position_key, descending=shape.descending)] if shape.position_is_null else []
    order_column = getattr(part.table, shape.order_by)
    value: ColumnElement[Any] = bindparam("position", type_=order_column.type)
    conditions = [comes_after((order_column, *key), (value, *position_key), descending=shape.descending)]
    if shape.is_by_activity and part.table is tables.sessions:
        minute = begin_of_minute(value)
        conditions.append(
            tables.sessions.activity_minute <= minute if shape.descending else tables.sessions.activity_minute >= minute
        )
    return conditions


def _unnest(name: str, /, **arrays: ColumnElement[Sequence[Any]]) -> FromClause:
    """A table whose columns are these arrays, side by side."""
    return func.unnest(*arrays.values()).table_valued(*arrays, name=name).render_derived()
