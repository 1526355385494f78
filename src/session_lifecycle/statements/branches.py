"""Sessions in an order, without OR: of each scope and status one scan of an index, limited, then merged.

What a page shows is among the first rows of the scans it comes from. So a scan ends after as many rows as the page
could need, however many there are; and it begins where the page before ended, however many came before. The indexes
lead with scope and status, so hardly a row is read only to be left out: abandoned, too, is a range of the running.

The scopes and statuses are bound: the statement is the same for one data set and for a thousand.
"""

from collections.abc import Sequence
from datetime import datetime, timedelta
from functools import reduce
from typing import Any, NamedTuple
from uuid import UUID

from sqlalchemy import (
    ARRAY,
    BigInteger,
    ColumnElement,
    FromClause,
    Interval,
    Select,
    Subquery,
    Text,
    Uuid,
    all_,
    column,
    false,
    func,
    literal,
    literal_column,
    select,
    true,
    union_all,
)

from session_lifecycle.entities import SessionRecordEntity as S
from session_lifecycle.models import EffectiveStatus, SessionStatus
from session_lifecycle.models.pages import TOTAL_BOUND
from session_lifecycle.models.reads import SessionFilters
from session_lifecycle.statements.json_values import Column
from session_lifecycle.statements.pages import Order, Position, further
from session_lifecycle.statements.scopes import Scopes, scopes
from session_lifecycle.statements.status import INSTANT, abandoned_before

KEY = (S.user_id, S.session_id)
BY_ACTIVITY = Order(S.last_activity_at, KEY)
BEYOND = "\U0010ffff" * 513
"""Comes after every session id: those have at most 512 characters, and are compared byte by byte."""


class Asked(NamedTuple):
    """Which sessions are asked for, and when their status is judged."""

    filters: SessionFilters
    abandon_after: timedelta
    now: ColumnElement[datetime]

    @property
    def scopes(self) -> Scopes:
        """The sets they are in."""
        return scopes(self.filters.asker, self.filters.owner_id, self.filters.dataset_id)


class _Kind(NamedTuple):
    """Scopes of one kind."""

    is_in: Sequence[ColumnElement[bool]]
    """When a session is in one."""
    each: Sequence[FromClause] = ()
    """Where there is a row for every one of them; nothing where there is one."""
    tie: ColumnElement[str] | None = None
    """After a position, where a scope is of one user, whom its indexes do not order by: see `_ties`."""
    known_users: Sequence[UUID] = ()
    """Users whose sessions are found in another kind of scope."""


class _Part(NamedTuple):
    """Sessions that an index has in one order: rolled up or not, and all with a value to order by or all without."""

    statuses: Sequence[str]
    is_rolled_up: bool
    is_null: bool


def have_order(asked: Asked, order: Order) -> bool:
    """Whether indexes have the sessions in this order: everybody's they have by activity only."""
    return not asked.scopes.everybody or order.column is BY_ACTIVITY.column


def first_keys(asked: Asked, order: Order, position: Position | None, most: int) -> Subquery:
    """`value, user_id, session_id` of sessions, each once and in no order: the first ones are certainly among them.

    Args:
        asked: Which sessions.
        order: What makes them the first.
        position: They come after it.
        most: How many of the first are among them, if there are so many.
    """
    branches = [
        _branch(asked, order, position, kind, part, most)
        for kind in _kinds(asked, position)
        for part in _parts(asked, order, position)
    ]
    nothing = select(order.column.label("value"), *KEY).where(false())
    return union_all(*(branches or [nothing])).subquery("found")


def bounded_count(asked: Asked) -> ColumnElement[int]:
    """How many sessions there are; no more are read, and counted, than one above the bound."""
    most = TOTAL_BOUND + 1
    found = first_keys(asked, BY_ACTIVITY, None, most)
    counted = select(found.c.user_id).limit(most).subquery("counted")
    return select(func.count()).select_from(counted).scalar_subquery()


def _branch(
    asked: Asked, order: Order, position: Position | None, kind: _Kind, part: _Part, most: int
) -> Select[*tuple[Any, ...]]:
    statuses = _unnest(status=(part.statuses, Text()))
    conditions = [
        S.rolled_up.is_not(None) if part.is_rolled_up else S.rolled_up.is_(None),
        *kind.is_in,
        S.status == statuses.c.status,
        *_narrowed(asked, part),
        *([order.column.is_(None)] if part.is_null else []),
        *([] if position is None else _after(asked, order, position, kind, part)),
    ]
    scope = (*kind.each, statuses)
    sessions = select(order.column.label("value"), *KEY).where(*conditions).correlate(*scope)
    first = _first(sessions, asked, order, part, literal(most, BigInteger)).lateral("first")
    found = select(*first.c).select_from(reduce(lambda left, right: left.join(right, true()), (*scope, first)))
    if kind.known_users:
        # Not before the limit: where most of a data set is the viewer's own, all of it would be read.
        found = found.where(first.c.user_id != all_(literal(kind.known_users, ARRAY(Uuid))))
    return found


def _first(
    sessions: Select[*tuple[Any, ...]], asked: Asked, order: Order, part: _Part, most: ColumnElement[int]
) -> Select[*tuple[Any, ...]]:
    def directed(*terms: Column) -> list[ColumnElement[Any]]:
        return [term.desc() if asked.filters.descending else term.asc() for term in terms]

    if part.is_rolled_up and not _is_rare(asked, order):
        return sessions.order_by(*directed(order.column, *KEY)).limit(most)
    if order.column is BY_ACTIVITY.column:
        # What of a minute is first the index does not know, so all of the last one. It could be sorted here; but where
        # it expects few sessions of a scope, Postgres then sorts all there are.
        return sessions.order_by(*directed(S.activity_minute)).fetch(most, with_ties=True)
    # They are looked for by activity and sorted. OFFSET keeps Postgres from walking another index in the wanted order.
    chosen = sessions.offset(literal_column("0")).lateral("chosen")
    return select(*chosen.c).order_by(*directed(*chosen.c)).limit(most)


def _is_rare(asked: Asked, order: Order) -> bool:
    """Whether hardly any session that is rolled up is asked for: when it was rolled up, none of them was running."""
    is_running = asked.filters.status_filter is EffectiveStatus.RUNNING
    return is_running and order.column is not BY_ACTIVITY.column


def _kinds(asked: Asked, position: Position | None) -> list[_Kind]:
    users, datasets, pairs, everybody = asked.scopes
    kinds: list[_Kind] = []
    if everybody:
        kinds.append(_Kind(()))
    if users:
        each = _unnest(user_id=(users, Uuid()), **_ties(users, position))
        kinds.append(_Kind((S.user_id == each.c.user_id,), (each,), each.c.get("tie")))
    if datasets:
        each = _unnest(dataset_id=(datasets, Uuid()))
        kinds.append(_Kind((S.dataset_id == each.c.dataset_id,), (each,), known_users=users))
    if pairs:
        of_users, in_datasets = zip(*pairs, strict=True)
        ids = {"user_id": (of_users, Uuid()), "dataset_id": (in_datasets, Uuid())}
        each = _unnest(**ids, **_ties(of_users, position))
        is_in = (S.user_id == each.c.user_id, S.dataset_id == each.c.dataset_id)
        kinds.append(_Kind(is_in, (each,), each.c.get("tie")))
    return kinds


def _parts(asked: Asked, order: Order, position: Position | None) -> list[_Part]:
    stored = _stored(asked.filters.status_filter)
    if not order.has_nulls:
        groups = [(stored, False)]
    else:
        # A session has no end exactly as long as it runs; and those without come last, after any position with one.
        ended = [status for status in stored if status != SessionStatus.RUNNING]
        running = [status for status in stored if status == SessionStatus.RUNNING]
        is_at_the_null = position is not None and position.value is None
        groups = [([] if is_at_the_null else ended, False), (running, True)]
    return [
        _Part(statuses, is_rolled_up, is_null)
        for statuses, is_null in groups
        if statuses
        for is_rolled_up in (False, True)
    ]


def _stored(wanted: EffectiveStatus | None) -> list[str]:
    if wanted is None:
        return [status.value for status in SessionStatus]
    return [SessionStatus.RUNNING.value if wanted is EffectiveStatus.ABANDONED else wanted.value]


def _narrowed(asked: Asked, part: _Part) -> list[ColumnElement[bool]]:
    """Conditions that the filters put on the sessions of every scope, beside their stored status."""
    filters, cut = asked.filters, abandoned_before(asked.abandon_after, asked.now)
    conditions: list[ColumnElement[bool]] = []
    if filters.agent_name is not None:
        conditions.append(S.agent_name == filters.agent_name)
    if filters.since is not None:
        conditions += _active_since(literal(filters.since, INSTANT), part)
    if filters.until is not None:
        conditions += _active_before(literal(filters.until, INSTANT), part)
    if filters.status_filter is EffectiveStatus.RUNNING:
        conditions += _active_since(cut, part)
    if filters.status_filter is EffectiveStatus.ABANDONED:
        conditions += _active_before(cut, part)
    return conditions


def _active_since(moment: ColumnElement[datetime], part: _Part) -> list[ColumnElement[bool]]:
    exact = S.last_activity_at >= moment
    return [exact] if part.is_rolled_up else [exact, S.activity_minute >= _minute(moment)]


def _active_before(moment: ColumnElement[datetime], part: _Part) -> list[ColumnElement[bool]]:
    exact = S.last_activity_at < moment
    return [exact] if part.is_rolled_up else [exact, S.activity_minute <= _minute(moment)]


def _minute(moment: ColumnElement[datetime]) -> ColumnElement[datetime]:
    """What the index on sessions that are not rolled up has in a moment's place."""
    origin = literal_column("timestamptz '2000-01-01 00:00:00+00'", INSTANT)
    return func.date_bin(literal_column("interval '1 minute'", Interval), moment, origin, type_=INSTANT)


def _after(asked: Asked, order: Order, position: Position, kind: _Kind, part: _Part) -> list[ColumnElement[bool]]:
    """The sessions after a position, as comparisons an index can begin at."""
    descending = asked.filters.descending
    key: Sequence[Column] = KEY
    here: list[ColumnElement[Any]] = [
        literal(value, column.type) for value, column in zip(position.key, KEY, strict=True)
    ]
    if kind.tie is not None:
        key, here = (S.session_id,), [func.coalesce(kind.tie, literal(BEYOND, Text))]
    if part.is_null:
        # Where the position has a value, all without one come after it.
        return [further(key, here, descending=descending)] if position.value is None else []
    value = literal(position.value, order.column.type)
    conditions = [further((order.column, *key), (value, *here), descending=descending)]
    if order.column is BY_ACTIVITY.column and not part.is_rolled_up:
        minute = _minute(value)
        conditions.append(S.activity_minute <= minute if descending else S.activity_minute >= minute)
    return conditions


def _ties(users: Sequence[UUID], position: Position | None) -> dict[str, tuple[Sequence[Any], Any]]:
    """For each user the session id that stands for the position among their sessions of the position's value.

    An index without the user in its order finds the place by it, however many sessions have that value: of a user
    before the position's, after all ids; of one behind, before all. None is after all, and not sent again and again.
    """
    if position is None:
        return {}
    user_id, session_id = position.key
    ties = [session_id if user == user_id else None if user < user_id else "" for user in users]
    return {"tie": (ties, Text())}


def _unnest(**arrays: tuple[Sequence[Any], Any]) -> FromClause:
    """Arrays side by side as columns of a table."""
    values = [literal(list(array), ARRAY(kind)) for array, kind in arrays.values()]
    columns = [column(name, kind) for name, (_, kind) in arrays.items()]
    return func.unnest(*values).table_valued(*columns).render_derived()
