"""Sessions in an order, without OR: of each scope and status one scan of an index, limited, then merged.

What a page shows is among the first rows of the scans it comes from. So a scan ends after as many rows as the page
could need, however many there are; and it begins where the page before ended, however many came before. The indexes
lead with scope and status, so hardly a row is read only to be left out: abandoned, too, is a range of the running.

All values are bound: the statement is the same for one data set and for a thousand, and is built once for each `Asked`.
"""

from collections.abc import Sequence
from datetime import datetime, timedelta
from functools import reduce
from typing import Any, NamedTuple, Self

from sqlalchemy import (
    ARRAY,
    BigInteger,
    ColumnElement,
    FromClause,
    Select,
    Subquery,
    Text,
    Uuid,
    all_,
    bindparam,
    false,
    func,
    literal,
    literal_column,
    select,
    true,
    union_all,
)

from session_lifecycle.entities import RolledUpSessionEntity as U
from session_lifecycle.entities import SessionRecordEntity as S
from session_lifecycle.models import EffectiveStatus, SessionStatus
from session_lifecycle.models.pages import TOTAL_BOUND
from session_lifecycle.models.reads import DEFAULT_SESSION_ORDER, SessionFilters
from session_lifecycle.statements.json_values import Column
from session_lifecycle.statements.pages import Position, further
from session_lifecycle.statements.scopes import ScopeKinds, of_everybody, scopes
from session_lifecycle.statements.spans import begin_of_minute
from session_lifecycle.statements.status import INSTANT, abandoned_before, clock

Table = type[S | U]
BEYOND = "\U0010ffff" * 513
"""Comes after every session id: those have at most 512 characters, and are compared byte by byte."""


class Asked(NamedTuple):
    """Which sessions are asked for, and in which order: all that the text of a statement depends on."""

    kinds: ScopeKinds
    order_by: str
    descending: bool
    status_filter: EffectiveStatus | None
    has_since: bool
    has_until: bool
    of_agent: bool
    abandon_after: timedelta
    goes_on: bool
    """Whether they come after the bound position, and their status is judged by its clock."""
    at_null: bool
    """Whether that position has nothing in the column they are ordered by."""

    @classmethod
    def by(cls, filters: SessionFilters, position: Position | None, abandon_after: timedelta) -> Self:
        """What the filters ask for."""
        return cls(
            scopes(filters.asker, filters.owner_id, filters.dataset_id).kinds,
            filters.order_column,
            filters.descending,
            filters.status_filter,
            filters.since is not None,
            filters.until is not None,
            filters.agent_name is not None,
            abandon_after,
            position is not None,
            position is not None and position.value is None,
        )

    @property
    def now(self) -> ColumnElement[datetime]:
        """When their status is judged."""
        return bindparam("as_of", type_=INSTANT) if self.goes_on else clock()

    @property
    def is_by_activity(self) -> bool:
        """Whether they are ordered by their last activity."""
        return self.order_by == DEFAULT_SESSION_ORDER

    @property
    def have_order(self) -> bool:
        """Whether indexes have the sessions in this order: everybody's they have by activity only."""
        return self.is_by_activity or not self.kinds.everybody


def parameters(filters: SessionFilters, position: Position | None, abandon_after: timedelta) -> dict[str, Any]:
    """What the statements of an `Asked` bind."""
    seen = scopes(filters.asker, filters.owner_id, filters.dataset_id)
    bound = {
        **seen.parameters(),
        "since": filters.since,
        "until": filters.until,
        "agent_name": filters.agent_name,
        "abandon_after": abandon_after,
        "as_of": None if position is None else position.as_of,
        "reach": filters.offset + filters.limit + 1,
        "offset": filters.offset,
        "most": filters.limit + 1,
    }
    if position is not None:
        user_id, session_id = position.key
        # For each user the session id beyond which their sessions of the position's value come after the position. By
        # them, and not by the user, an index that has no user in its order finds the place; any number of sessions may
        # have the same value. Of a lesser user all come after it going down and none going up: the id is the last there
        # can be, for which None stands. Of a greater user it is the first.
        ties = [session_id if user == user_id else None if user < user_id else "" for user in seen.users]
        bound |= {"position": position.value, "user_id": user_id, "session_id": session_id, "ties": ties}
    return bound


class _Kind(NamedTuple):
    """Scopes of one kind."""

    each: Sequence[FromClause]
    """Where there is a row for every one of them; nothing where there is one."""
    is_in: Sequence[tuple[str, ColumnElement[Any]]] = ()
    """What a session in one of them has."""
    tie: ColumnElement[str] | None = None
    """After a position, where a scope is of one user, whom its indexes do not order by."""
    without_users: bool = False
    """Whether the users' sessions are found in another kind of scope."""


class _Part(NamedTuple):
    """Sessions that an index has in one order: rolled up or not, and all with a value to order by or all without."""

    statuses: Sequence[str]
    table: Table
    is_null: bool

    @property
    def key(self) -> tuple[Column, Column]:
        return self.table.user_id, self.table.session_id


def first_keys(asked: Asked, reach: ColumnElement[int]) -> Subquery:
    """`value, user_id, session_id` of sessions, each once and in no order: the first ones are certainly among them.

    Args:
        asked: Which sessions.
        reach: How many of the first are among them, if there are so many.
    """
    branches = [_branch(asked, kind, part, reach) for kind in _kinds(asked) for part in _parts(asked)]
    nothing = select(getattr(S, asked.order_by).label("value"), S.user_id, S.session_id).where(false())
    return union_all(*(branches or [nothing])).subquery("found")


def bounded_count(asked: Asked) -> ColumnElement[int]:
    """How many sessions there are; no more are read, and counted, than one above the bound."""
    most = literal(TOTAL_BOUND + 1, BigInteger)
    found = first_keys(asked._replace(order_by=DEFAULT_SESSION_ORDER, goes_on=False, at_null=False), most)
    counted = select(found.c.user_id).limit(most).subquery("counted")
    return select(func.count()).select_from(counted).scalar_subquery()


def _branch(asked: Asked, kind: _Kind, part: _Part, reach: ColumnElement[int]) -> Select[*tuple[Any, ...]]:
    table, value = part.table, getattr(part.table, asked.order_by)
    status = _unnest("status", status=literal(list(part.statuses), ARRAY(Text)))
    conditions = [
        *([] if table is U else [~S.rolled_up]),
        *([] if kind.each else [of_everybody(table)]),
        *(getattr(table, name) == wanted for name, wanted in kind.is_in),
        table.status == status.c.status,
        *_narrowed(asked, part),
        *([value.is_(None)] if part.is_null else []),
        *(_after(asked, kind, part) if asked.goes_on else []),
    ]
    scope = (*kind.each, status)
    sessions = select(value.label("value"), *part.key).where(*conditions).correlate(*scope)
    first = _first(sessions, asked, part, reach).lateral("first")
    found = select(*first.c).select_from(reduce(lambda left, right: left.join(right, true()), (*scope, first)))
    if kind.without_users:
        # Not before the limit: where most of a data set is the viewer's own, all of it would be read.
        found = found.where(first.c.user_id != all_(bindparam("users", type_=ARRAY(Uuid))))
    return found


def _first(
    sessions: Select[*tuple[Any, ...]], asked: Asked, part: _Part, reach: ColumnElement[int]
) -> Select[*tuple[Any, ...]]:
    def directed(*terms: Column) -> list[ColumnElement[Any]]:
        return [term.desc() if asked.descending else term.asc() for term in terms]

    # When they were rolled up none of them was running, so hardly any is.
    is_rare = asked.status_filter is EffectiveStatus.RUNNING and not asked.is_by_activity
    if part.table is U and not is_rare:
        return sessions.order_by(*directed(getattr(U, asked.order_by), *part.key)).limit(reach)
    if asked.is_by_activity:
        # What of a minute is first the index does not know, so all of the last one. It could be sorted here; but where
        # it expects few sessions of a scope, Postgres then sorts all there are.
        return sessions.order_by(*directed(S.activity_minute)).fetch(reach, with_ties=True)
    # They are looked for by activity and sorted. OFFSET keeps Postgres from walking another index in the wanted order.
    chosen = sessions.offset(literal_column("0")).lateral("chosen")
    return select(*chosen.c).order_by(*directed(*chosen.c)).limit(reach)


def _kinds(asked: Asked) -> list[_Kind]:
    ties = {"tie": bindparam("ties", type_=ARRAY(Text))} if asked.goes_on else {}
    owner = _unnest("owner", user_id=bindparam("users", type_=ARRAY(Uuid)), **ties)
    dataset = _unnest("dataset", dataset_id=bindparam("datasets", type_=ARRAY(Uuid)))
    of_owner, in_dataset = ("user_id", owner.c.user_id), ("dataset_id", dataset.c.dataset_id)
    tie = owner.c.get("tie")
    kinds: list[_Kind] = []
    if asked.kinds.everybody:
        kinds.append(_Kind(()))
    if asked.kinds.users:
        kinds.append(_Kind((owner,), (of_owner,), tie))
    if asked.kinds.datasets:
        kinds.append(_Kind((dataset,), (in_dataset,), without_users=asked.kinds.users))
    if asked.kinds.pairs:
        kinds.append(_Kind((owner, dataset), (of_owner, in_dataset), tie))
    return kinds


def _parts(asked: Asked) -> list[_Part]:
    stored = _stored(asked.status_filter)
    groups = [(stored, False)]
    if asked.order_by == "ended_at":
        # A session has no end exactly as long as it runs; and those without come last, after any position with one.
        ended = [status for status in stored if status != SessionStatus.RUNNING]
        running = [status for status in stored if status == SessionStatus.RUNNING]
        groups = [([] if asked.at_null else ended, False), (running, True)]
    return [_Part(statuses, table, is_null) for statuses, is_null in groups if statuses for table in (S, U)]


def _stored(wanted: EffectiveStatus | None) -> list[str]:
    if wanted is None:
        return [status.value for status in SessionStatus]
    return [SessionStatus.RUNNING.value if wanted is EffectiveStatus.ABANDONED else wanted.value]


def _narrowed(asked: Asked, part: _Part) -> list[ColumnElement[bool]]:
    """Conditions that the filters put on the sessions of every scope, beside their stored status."""
    cut = abandoned_before(asked.abandon_after, asked.now)
    conditions: list[ColumnElement[bool]] = []
    if asked.of_agent:
        conditions.append(part.table.agent_name == bindparam("agent_name", type_=Text))
    if asked.has_since:
        conditions += _active_since(bindparam("since", type_=INSTANT), part)
    if asked.has_until:
        conditions += _active_before(bindparam("until", type_=INSTANT), part)
    if asked.status_filter is EffectiveStatus.RUNNING:
        conditions += _active_since(cut, part)
    if asked.status_filter is EffectiveStatus.ABANDONED:
        conditions += _active_before(cut, part)
    return conditions


# What the index has in the place of the instant is implied, and said as well.


def _active_since(moment: ColumnElement[datetime], part: _Part) -> list[ColumnElement[bool]]:
    exact = part.table.last_activity_at >= moment
    return [exact] if part.table is U else [exact, S.activity_minute >= begin_of_minute(moment)]


def _active_before(moment: ColumnElement[datetime], part: _Part) -> list[ColumnElement[bool]]:
    exact = part.table.last_activity_at < moment
    return [exact] if part.table is U else [exact, S.activity_minute <= begin_of_minute(moment)]


def _after(asked: Asked, kind: _Kind, part: _Part) -> list[ColumnElement[bool]]:
    """The sessions after the bound position, as comparisons an index can begin at."""
    key: Sequence[Column] = part.key
    here: list[ColumnElement[Any]] = [bindparam("user_id", type_=Uuid), bindparam("session_id", type_=Text)]
    if kind.tie is not None:
        key, here = key[1:], [func.coalesce(kind.tie, literal(BEYOND, Text))]
    if part.is_null:
        # Where the position has a value, all without one come after it.
        return [further(key, here, descending=asked.descending)] if asked.at_null else []
    column_ = getattr(part.table, asked.order_by)
    value: ColumnElement[Any] = bindparam("position", type_=column_.type)
    conditions = [further((column_, *key), (value, *here), descending=asked.descending)]
    if asked.is_by_activity and part.table is S:
        minute = begin_of_minute(value)
        conditions.append(S.activity_minute <= minute if asked.descending else S.activity_minute >= minute)
    return conditions


def _unnest(name: str, /, **arrays: ColumnElement[Sequence[Any]]) -> FromClause:
    """Arrays side by side as columns of a table."""
    return func.unnest(*arrays.values()).table_valued(*arrays, name=name).render_derived()
