"""The columns of a session record, the orders of sessions (rule R13), and the preferred session of an id (rule R15)."""

from datetime import timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import (
    ColumnElement,
    FromClause,
    Integer,
    Select,
    and_,
    case,
    false,
    func,
    literal,
    select,
    true,
    union_all,
)

from session_lifecycle.models import EffectiveStatus, SessionRecord, SessionRowWithStatus, SessionStatus
from session_lifecycle.models.session_filters import ALL_SESSION_ORDERS
from session_lifecycle.statements import tables
from session_lifecycle.statements.shared.clock import clock
from session_lifecycle.statements.shared.further_totals import FURTHER_TOTALS, as_text, parsed
from session_lifecycle.statements.shared.json_rows import read_json
from session_lifecycle.statements.shared.kept import OWNER_ID, SESSION_ID, kept
from session_lifecycle.statements.shared.keys import Columns, same_session
from session_lifecycle.statements.shared.paging import Order
from session_lifecycle.statements.shared.status import effective_status
from session_lifecycle.statements.shared.visibility import AnyViewer, ViewerShape, array_of, is_one_of, visible

SESSION_KEY = (tables.sessions.user_id, tables.sessions.session_id)
ORDERS = {
    name: Order(
        getattr(tables.sessions, name),
        SESSION_KEY,
        has_nulls=name == "ended_at",
        # A row has them already, and to read a value twice takes longer than to look up a name.
        row_names=(f"record_{name}", "record_user_id", "record_session_id"),
    )
    for name in ALL_SESSION_ORDERS
}
"""Each order of sessions, by the name of its column."""
LATEST = (*SESSION_KEY, tables.sessions.last_activity_at)
OWN_FIRST, OF_AGENT, OF_OTHERS, OWN_LAST = range(4)
"""Whose session is preferred: the lowest of the ranks that are there."""


_FURTHER_FIELDS = frozenset(SessionRecord.model_fields) - set(tables.sessions.__table__.columns.keys())
_STATUSES = {status.value: status for status in SessionStatus}
_EFFECTIVE_STATUSES = {status.value: status for status in EffectiveStatus}
_FIELD_COLUMNS = tuple(name for name in SessionRecord.model_fields if name not in _FURTHER_FIELDS)
_RECORD_COLUMNS = (*_FIELD_COLUMNS, FURTHER_TOTALS)
_DEFAULTS, _make_record = SessionRecord.row_defaults(), SessionRecord.maker_of_rows()
_make_row = SessionRowWithStatus.maker_of_rows()
_STATUS, _METADATA, _TAGS, _FURTHER = map(_RECORD_COLUMNS.index, ("status", "metadata", "tags", FURTHER_TOTALS))


def record_columns(columns: Columns = tables.sessions.__table__.columns) -> list[ColumnElement[Any]]:
    """The columns of a `SessionRecord`, labelled `record_<field>`, from columns named as in the table.

    A statement that returns them has them first. Objects are JSON text.
    """
    are_text = {"metadata", "tags", FURTHER_TOTALS}
    chosen = ((name, as_text(columns[name]) if name in are_text else columns[name]) for name in _RECORD_COLUMNS)
    return [column.label(f"record_{name}") for name, column in chosen]


def record_of(row: Any) -> SessionRecord:
    """The record from a row whose first columns are those of `record_columns`."""
    # By place, as most of a page's time went into looking up one column after another by its name.
    fields = _DEFAULTS.copy()
    fields.update(zip(_FIELD_COLUMNS, row, strict=False))
    fields["status"] = _STATUSES[row[_STATUS]]
    fields["metadata"] = read_json(row[_METADATA]) or {}
    fields["tags"] = read_json(row[_TAGS]) or {}
    if row[_FURTHER] is not None:
        fields.update(parsed(row[_FURTHER], _FURTHER_FIELDS))
    return _make_record(fields)


def row_of(row: Any) -> SessionRowWithStatus:
    """The record and its effective status, from a row as `record_of` takes it with a column `effective_status`."""
    return _make_row({"record": record_of(row), "effective_status": _EFFECTIVE_STATUSES[row.effective_status]})


def belongs_to_record(table: type[tables.runs | tables.messages], sessions: FromClause) -> ColumnElement[bool]:
    """Whether a run or message belongs to a session that is selected with the columns of `record_columns`."""
    return and_(table.user_id == sessions.c.record_user_id, table.session_id == sessions.c.record_session_id)


@kept
def get_session(
    viewer: ViewerShape, *, prefer_other_owner: bool, has_owner_id: bool, abandon_after: timedelta
) -> Select[*tuple[Any, ...]]:
    """The preferred session with its effective status. Binds the viewer, `session_id`, `owner_id` and `as_of`."""
    session = preferred_session(
        SESSION_ID, viewer, prefer_other_owner=prefer_other_owner, owner_id=OWNER_ID if has_owner_id else None
    )
    return with_status(session, abandon_after)


def preferred_session(
    session_id: str | ColumnElement[str],
    viewer: AnyViewer,
    *,
    prefer_other_owner: bool = False,
    owner_id: UUID | ColumnElement[UUID] | None = None,
) -> Select[*tuple[Any, ...]]:
    """At most one row: the session that rule R15 prefers among the visible sessions with this id.

    The number of rows that it reads does not depend on how many users have a session with this id.
    """
    if owner_id is not None:
        return select(*record_columns()).where(
            tables.sessions.user_id == owner_id, tables.sessions.session_id == session_id, visible(viewer)
        )
    key = _preferred_key(session_id, viewer, prefer_other_owner=prefer_other_owner).subquery("preferred")
    return select(*record_columns()).join(key, same_session(tables.sessions, key.c))


def _preferred_key(
    session_id: str | ColumnElement[str], viewer: AnyViewer, *, prefer_other_owner: bool
) -> Select[*tuple[Any, ...]]:
    is_own: ColumnElement[bool] = false() if viewer.user_id is None else tables.sessions.user_id == viewer.user_id
    rank = case((is_own, OWN_LAST if prefer_other_owner else OWN_FIRST), else_=OF_AGENT).label("rank")
    is_owned = is_one_of(tables.sessions.user_id, viewer.owner_ids) if viewer.owner_ids else false()
    owned = select(rank, *LATEST).where(is_owned, tables.sessions.session_id == session_id).cte("owned")
    ranked = [select(*owned.c)]
    is_other = ~is_own if prefer_other_owner else true()
    for others in _latest_of_others(session_id, viewer, is_other):
        # Others' sessions are looked for where the viewer and the agents have none that is preferred.
        owned_is_preferred = select(owned.c.rank).where(owned.c.rank < OF_OTHERS).exists()
        ranked.append(select(literal(OF_OTHERS, Integer), *others.c).where(~owned_is_preferred))
    key = union_all(*ranked).subquery("ranked")
    ordered = select(key.c.user_id, key.c.session_id).order_by(key.c.rank, key.c.last_activity_at.desc(), key.c.user_id)
    return ordered.limit(1)


def _latest_of_others(
    session_id: str | ColumnElement[str], viewer: AnyViewer, is_other: ColumnElement[bool]
) -> list[FromClause]:
    """The latest sessions that an auditor sees, or the latest in each permitted dataset. No table: there are none."""
    # An index has the minute of the last activity, so all sessions of the latest minute come.
    latest = (
        select(*LATEST)
        .where(tables.sessions.session_id == session_id, is_other)
        .order_by(tables.sessions.activity_minute.desc())
        .fetch(1, with_ties=True)
    )
    if viewer.sees_all:
        return [latest.subquery("latest")]
    if not viewer.permitted_dataset_ids:
        return []
    dataset = func.unnest(array_of(viewer.permitted_dataset_ids)).table_valued("id", name="dataset").render_derived()
    in_dataset = latest.where(tables.sessions.dataset_id == dataset.c.id).correlate(dataset).lateral("in_dataset")
    return [select(*in_dataset.c).select_from(dataset.join(in_dataset, true())).subquery("latest")]


def with_status(sessions: Select[*tuple[Any, ...]], abandon_after: timedelta) -> Select[*tuple[Any, ...]]:
    """The same sessions with their effective status at the moment of the statement."""
    return sessions.add_columns(effective_status(abandon_after, clock()).label("effective_status"))
