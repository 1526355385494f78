"""Rows of each table in the order of its key, as an export has them; and rows of an export, looked up and added.

An export has every column but those that Postgres computes, and those that are derived from other columns. A new column
of a table is in it by itself.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, NamedTuple

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    ColumnElement,
    DateTime,
    Double,
    FromClause,
    Integer,
    Numeric,
    Select,
    Table,
    Text,
    and_,
    bindparam,
    case,
    cast,
    exists,
    func,
    literal,
    select,
    tuple_,
)
from sqlalchemy import column as named_column
from sqlalchemy.dialects.postgresql import JSONB, REGCLASS, insert
from sqlalchemy.types import TypeEngine, Uuid

from session_lifecycle.entities import Base, metadata
from session_lifecycle.models import RunFilters, SessionListFilters, UsageEventFilters
from session_lifecycle.models.transfer import ExportTable
from session_lifecycle.settings import DEFAULT_SCHEMA
from session_lifecycle.statements import tables
from session_lifecycle.statements.activity.run_figures import RUNS_AND_SESSIONS
from session_lifecycle.statements.activity.runs import chosen_runs, shape_of_run_filters
from session_lifecycle.statements.activity.usage_events import EVENTS_WITH_RUNS, chosen_events, given_events
from session_lifecycle.statements.sessions.listing import chosen_sessions
from session_lifecycle.statements.sessions.records import SESSION_KEY
from session_lifecycle.statements.sessions.row_filters import shape_of_session_filters
from session_lifecycle.statements.shared.database_functions import json_parameter
from session_lifecycle.statements.shared.kept import kept
from session_lifecycle.statements.shared.keys import same_run, same_session
from session_lifecycle.statements.shared.visibility import shape_of_viewer

AnyFilters = SessionListFilters | UsageEventFilters | RunFilters
CONTENT_FOLDED = "content_folded"
_DERIVED = {"rolled_up", CONTENT_FOLDED}
RECORD_NO = "record_no"
"""The column whose sequence an import moves on."""

_ENTITIES: Mapping[ExportTable, type[Base]] = {
    "sessions": tables.sessions,
    "session_models": tables.model_usage,
    "usage_events": tables.usage_events,
    "runs": tables.runs,
    "steps": tables.steps,
    "messages": tables.messages,
    "annotations": tables.annotations,
    "budgets": tables.budgets,
    "tombstones": tables.tombstones,
    "repricings": tables.repricings,
}
FILTERS: Mapping[ExportTable, type[AnyFilters]] = {
    "sessions": SessionListFilters,
    "usage_events": UsageEventFilters,
    "runs": RunFilters,
    "steps": RunFilters,
    "messages": SessionListFilters,
}
"""The filters that an export of the table takes: steps are chosen by their runs, messages by their sessions."""


class Kind(NamedTuple):
    """The kind of a column's values."""

    name: str
    type: TypeEngine[Any]
    """The type by which Postgres reads the values from JSON."""


UUID_, TEXT, INTEGER = Kind("uuid", Uuid()), Kind("text", Text()), Kind("integer", BigInteger())
MONEY, MOMENT, FLAG = Kind("decimal", Numeric()), Kind("time", DateTime(timezone=True)), Kind("boolean", Boolean())
FLOAT, JSON = Kind("float", Double()), Kind("json", JSONB())
# The first type that fits: a Double is a Numeric to SQLAlchemy.
_KINDS: tuple[tuple[type[TypeEngine[Any]], Kind], ...] = (
    (Uuid, UUID_),
    (Text, TEXT),
    (BigInteger, INTEGER),
    (Integer, INTEGER),
    (Double, FLOAT),
    (Numeric, MONEY),
    (DateTime, MOMENT),
    (Boolean, FLAG),
    (JSONB, JSON),
)


class ExportColumn(NamedTuple):
    """A column of an export."""

    kind: Kind
    is_nullable: bool


@dataclass(frozen=True, eq=False)
class TableShape:
    """What an export has of a table. There is one for each table."""

    name: ExportTable
    table: Table
    columns: Mapping[str, ExportColumn]
    key: tuple[str, ...]
    """The columns of the key, in the order in which an export has the rows. `model_key` is the model in lower case."""
    has_user: bool
    """Whether every row belongs to one user."""


def _is_exported(one: Column[Any]) -> bool:
    return one.computed is None and one.name not in _DERIVED


def _kind(one: Column[Any]) -> Kind:
    return next(kind for type_, kind in _KINDS if isinstance(one.type, type_))


def _shape(name: ExportTable, entity: type[Base]) -> TableShape:
    table = metadata.tables[f"{DEFAULT_SCHEMA}.{entity.__tablename__}"]
    exported = {one.name: ExportColumn(_kind(one), bool(one.nullable)) for one in table.c if _is_exported(one)}
    key = tuple(one.name for one in table.primary_key)
    return TableShape(name, table, exported, key, key[0] == "user_id")


SHAPES: Mapping[ExportTable, TableShape] = {name: _shape(name, entity) for name, entity in _ENTITIES.items()}


def _columns(shape: TableShape) -> list[Any]:
    """The columns of an export. JSON is text: a driver would read its numbers as floats."""
    columns = shape.table.c
    return [
        cast(columns[name], Text).label(name) if one.kind is JSON else columns[name]
        for name, one in shape.columns.items()
    ]


def all_rows(shape: TableShape) -> Select[*tuple[Any, ...]]:
    """All rows of the table, in the order of the key."""
    columns = shape.table.c
    return select(*_columns(shape)).order_by(*(columns[name] for name in shape.key))


def chosen_rows(shape: TableShape, filters: AnyFilters, abandon_after: timedelta) -> Select[*tuple[Any, ...]]:
    """The rows that the filters choose and their viewer sees, in the order of the key."""
    rows = all_rows(shape)
    match shape.name, filters:
        case "usage_events", UsageEventFilters():
            viewer, of_viewer = shape_of_viewer(filters.asker)
            given, of_filters = given_events(filters, filters.since, filters.until)
            rows = rows.select_from(EVENTS_WITH_RUNS).where(*chosen_events(viewer, given))
            parameters = of_viewer | of_filters
        case ("runs" | "steps") as name, RunFilters():
            chosen, parameters = shape_of_run_filters(filters)
            if name == "runs":
                rows = rows.select_from(RUNS_AND_SESSIONS).where(*chosen_runs(chosen))
            else:
                runs = select(tables.runs.run_id).select_from(RUNS_AND_SESSIONS).where(*chosen_runs(chosen))
                rows = rows.where(runs.where(same_run(tables.steps, tables.runs)).correlate(tables.steps).exists())
        case ("messages" | "sessions") as name, SessionListFilters():
            of_sessions, parameters = shape_of_session_filters(filters, abandon_after)
            sessions = chosen_sessions(of_sessions)
            if name == "messages":
                of_message = sessions.with_only_columns(literal(1)).where(
                    same_session(tables.messages, tables.sessions)
                )
                rows = rows.where(of_message.correlate(tables.messages).exists())
            else:
                rows = sessions.with_only_columns(*_columns(shape)).order_by(*SESSION_KEY)
        case _:
            raise AssertionError(f"no filters of {shape.name}: {filters!r}")
    return rows.params(parameters)


# Rows of an export, as an import looks them up and adds them


def _incoming(shape: TableShape, *more: str) -> FromClause:
    """The bound `rows`, a JSON array as text, as rows with the columns of the export and further texts."""
    columns = [named_column(name, one.kind.type) for name, one in shape.columns.items()]
    columns += [named_column(name, Text()) for name in more]
    rows = func.jsonb_to_recordset(json_parameter("rows"))
    return rows.table_valued(*columns, name="incoming").render_derived(with_types=True)


def _same_key(shape: TableShape, incoming: FromClause) -> ColumnElement[bool]:
    columns = shape.table.c
    return and_(
        *(
            # As the column is computed: in the collation "C" only letters of ASCII have no case.
            columns[name] == (func.lower(incoming.c.model.collate("C")) if name == "model_key" else incoming.c[name])
            for name in shape.key
        )
    )


@kept
def stored_rows(shape: TableShape) -> Select[*tuple[Any, ...]]:
    """The rows of the table that have the keys of the bound `rows`, in the columns of the export."""
    incoming = _incoming(shape)
    return select(*_columns(shape)).select_from(shape.table).join(incoming, _same_key(shape, incoming))


@kept
def add_rows(shape: TableShape) -> Select[int]:
    """Adds the bound `rows` that the table has not. One row: how many it added."""
    more = (CONTENT_FOLDED,) if CONTENT_FOLDED in shape.table.c else ()
    incoming = _incoming(shape, *more)
    names = [*shape.columns, *more]
    added = (
        insert(shape.table)
        .from_select(names, select(*(incoming.c[name] for name in names)))
        .on_conflict_do_nothing()
        .returning(shape.table.c[shape.key[0]])
        .cte("added")
    )
    return select(func.count()).select_from(added)


@kept
def events_elsewhere() -> Select[*tuple[Any, ...]]:
    """The events of the ledger that another session has counted under the keys of the bound `rows`.

    The keys are those that are unique to a user: the event's own key, or the run whose cost the row adjusts.
    """
    incoming, events = _incoming(SHAPES["usage_events"]), tables.usage_events
    is_same = case(
        (incoming.c.key_scope == "user", events.event_id == incoming.c.event_id),
        (incoming.c.key_scope == "run", events.run_id == incoming.c.run_id),
    )
    elsewhere = tuple_(events.session_id, events.event_id) != tuple_(incoming.c.session_id, incoming.c.event_id)
    return (
        select(incoming.c.user_id, incoming.c.session_id, incoming.c.event_id, events.session_id.label("counted_by"))
        .select_from(incoming)
        .join(
            events,
            and_(
                events.user_id == incoming.c.user_id,
                events.key_scope == incoming.c.key_scope,
                incoming.c.key_scope != "session",
                is_same,
                elsewhere,
            ),
        )
    )


@kept
def erased_users(shape: TableShape) -> Select[*tuple[Any, ...]]:
    """The users of the bound `rows` who are erased."""
    incoming = _incoming(shape)
    is_named = exists().where(incoming.c.user_id == tables.tombstones.user_id).select_from(incoming)
    return select(tables.tombstones.user_id).where(is_named.correlate(tables.tombstones))


@kept
def move_sequence_on(schema: str, shape: TableShape) -> Select[*tuple[Any, ...]]:
    """Moves the sequence of `record_no` past the bound `most`, so that what is recorded later comes later."""
    name = f"{shape.table.name}_{RECORD_NO}_seq"
    sequence = cast(func.format("%I.%I", literal(schema, Text), literal(name, Text)), REGCLASS)
    most = bindparam("most", type_=BigInteger)
    # `nextval` first: setting it back would number later rows again.
    return select(case((func.nextval(sequence) < most, func.setval(sequence, most))))
