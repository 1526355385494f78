"""The roll-ups, compared with the sessions that they should count.

A trigger takes every changed session out of the roll-ups, whether this library or a host's own SQL changed it. The
trigger does not see a change of the totals by model alone, a change while triggers are disabled, or a change of the
roll-ups themselves.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple
from uuid import UUID

from sqlalchemy import (
    BigInteger,
    ColumnClause,
    ColumnElement,
    FromClause,
    Integer,
    Numeric,
    Select,
    SQLColumnExpression,
    and_,
    bindparam,
    case,
    cast,
    column,
    false,
    func,
    literal,
    or_,
    select,
    true,
)
from sqlalchemy.dialects.postgresql import JSON, JSONB
from sqlalchemy.orm import InstrumentedAttribute, aliased
from sqlalchemy.types import Text, Uuid

from session_lifecycle.statements import tables
from session_lifecycle.statements.maintenance.reconcile import SessionKey, between, differ, pairs
from session_lifecycle.statements.roll_ups.totals import MODEL_FIGURES, NOBODY, SESSION_FIGURES
from session_lifecycle.statements.shared.database_functions import database_function
from session_lifecycle.statements.shared.further_totals import FURTHER_TOTALS, summed
from session_lifecycle.statements.shared.kept import kept
from session_lifecycle.statements.shared.keys import same_session

KEPT = tuple(
    column.key for column in tables.rolled_up_sessions.__table__.c if not column.primary_key and column.key != "models"
)
NULL_FOR_ZERO = {"unpriced_events", "unmeasured_events", "late_events", "late_cost_usd"}
"""The columns that are null where they are zero."""
OF_ROLLED_UP = ("rolled_up", *KEPT)
"""The fields that are compared for each session: whether it is rolled up, and the columns kept of it.

The column `models` is compared by model.
"""
FIGURES: Mapping[type[tables.roll_ups | tables.model_roll_ups], Sequence[str]] = {
    tables.roll_ups: SESSION_FIGURES,
    tables.model_roll_ups: MODEL_FIGURES,
}


Table = type[tables.rolled_up_sessions | tables.roll_ups | tables.model_roll_ups]
_AFTER, _UP_TO = bindparam("after", type_=Uuid), bindparam("up_to", type_=Uuid)


class PartShape(NamedTuple):
    """The kind of a part: its family, and which of its ends are closed. Equal shapes share one statement."""

    family: str | None
    has_after: bool
    has_up_to: bool

    @property
    def arguments(self) -> tuple[ColumnElement[Any], ...]:
        """The part as arguments of our database functions."""
        return literal(self.family, Text), _AFTER, _UP_TO

    def owner(self, table: Table) -> InstrumentedAttribute[Any]:
        """The column that divides the family into parts: the dataset or the user."""
        return table.dataset_id if self.family == "dataset" else table.user_id

    def conditions(self, table: Table) -> list[ColumnElement[bool]]:
        """Conditions on the rows of the family that are in this part."""
        after = [self.owner(table) > _AFTER] if self.has_after else []
        return [*after, *([self.owner(table) <= _UP_TO] if self.has_up_to else [])]


class Part(NamedTuple):
    """A part of a family of buckets: the owners after `after`, up to and with `up_to`. None is an open end.

    The family None stands for all families.
    """

    family: str | None
    after: UUID | None = None
    up_to: UUID | None = None

    @property
    def shape(self) -> PartShape:
        """The shape, for which statements are kept."""
        return PartShape(self.family, self.after is not None, self.up_to is not None)

    @property
    def parameters(self) -> dict[str, Any]:
        """The parameters that statements of this shape bind."""
        return {"after": self.after, "up_to": self.up_to}


@kept
def rolled_up_mismatches() -> Select[*tuple[Any, ...]]:
    """The sessions from the first to the last that the roll-ups wrongly have, lack, or have with other values.

    Binds `sessions_between`.

    Columns: the key, and as `found_…` and `expected_…` the fields of `OF_ROLLED_UP`. `rolled_up` says whether the
    roll-ups have the session. The other fields can differ only where the roll-ups have the session and should have it.
    """
    stored = select(tables.rolled_up_sessions).where(between(tables.rolled_up_sessions)).subquery("stored")
    columns = (
        tables.sessions.user_id,
        tables.sessions.session_id,
        tables.sessions.rolled_up,
        *(getattr(tables.sessions, name) for name in KEPT),
    )
    session = select(*columns).where(between(tables.sessions)).subquery("session")
    is_there, is_expected = stored.c.user_id.is_not(None), func.coalesce(session.c.rolled_up, false())
    compared: dict[str, tuple[ColumnElement[Any], ColumnElement[Any]]] = {"rolled_up": (is_there, is_expected)}
    for name in KEPT:
        kept = stored.c[name]
        value: ColumnElement[Any] = session.c[name]
        if name in NULL_FOR_ZERO:
            value = func.nullif(value, 0)
        should_be = case((and_(is_there, is_expected), value), else_=kept)
        compared[name] = (kept, should_be)
    keys = [func.coalesce(stored.c[name], session.c[name]).label(name) for name in ("user_id", "session_id")]
    sides = [
        (cast(side, Text) if name == FURTHER_TOTALS else side).label(f"{label}_{name}")
        for name, pair in compared.items()
        for label, side in zip(("found", "expected"), pair, strict=True)
    ]
    return (
        select(*keys, *sides)
        .select_from(stored.join(session, same_session(stored.c, session.c), full=True))
        .where(or_(*(found.is_distinct_from(expected) for found, expected in compared.values())))
        .order_by(*keys)
    )


@kept
def rolled_up_model_mismatches(schema: str) -> Select[*tuple[Any, ...]]:
    """The models of rolled-up sessions from the first to the last whose kept figures differ from the session's usage.

    Binds `sessions_between`.

    Columns: the key with the model, and for each figure the kept value as `found_…` and the session's value as
    `expected_…`. `sessions` is how often the model occurs.
    """
    names = ("user_id", "session_id", "model")
    kept = aliased(tables.rolled_up_sessions, name="kept")
    of_session = and_(same_session(tables.sessions, kept), tables.sessions.rolled_up)
    in_range = (between(tables.sessions), between(kept))
    columns: list[ColumnClause[Any]] = [
        column("model", Text(collation="C")),
        *(column(name, JSONB if name == FURTHER_TOTALS else Numeric) for name in MODEL_FIGURES),
    ]

    def by_model(models: SQLColumnExpression[Any], source: Select[Any]) -> FromClause:
        """The sums for each session of the source and each model in its `models`, as the roll-ups count them."""
        of_row = (kept.user_id, kept.dataset_id, kept.last_activity_at, models, literal(1, Integer))
        share = database_function(schema, "model_shares_v1", *of_row).table_valued(*columns).lateral("shares")
        keys = (kept.user_id, kept.session_id, share.c.model)
        sums = (
            summed(share.c[name]).label(name) if name == FURTHER_TOTALS else func.sum(share.c[name]).label(name)
            for name in MODEL_FIGURES
        )
        joined = source.add_columns(*keys, *sums).join(share, true())
        return joined.where(*in_range).group_by(*keys).subquery()

    keys_in_range = (
        select(func.array_agg(kept.user_id).label("users"), func.array_agg(kept.session_id).label("sessions"))
        .join(tables.sessions, of_session)
        .where(*in_range)
        .cte("keys_in_range")
    )
    stored = by_model(kept.models, select().select_from(kept).join(tables.sessions, of_session))
    used_columns = (column("user_id", Uuid), column("session_id", Text), column("models", JSON))
    arrays = (keys_in_range.c.users, keys_in_range.c.sessions)
    used = database_function(schema, "session_models_v1", *arrays).table_valued(*used_columns).lateral("used")
    used_now = (
        select()
        .select_from(keys_in_range)
        .join(used, true())
        .join(kept, same_session(used.c, kept))
        .join(tables.sessions, of_session)
    )
    expected = by_model(used.c.models, used_now)
    totals = {name: stored.c[name] for name in MODEL_FIGURES}
    keys = [func.coalesce(stored.c[name], expected.c[name]).label(name) for name in names]
    return (
        select(*keys, *pairs(totals, expected))
        .select_from(stored.join(expected, and_(*(stored.c[name] == expected.c[name] for name in names)), full=True))
        .where(or_(*differ(totals, expected)))
        .order_by(*keys)
    )


def take_out(schema: str, key: SessionKey) -> Select[bool]:
    """Takes a session out of the roll-ups, with everything that they have of it. One row: whether they had anything."""
    return select(
        database_function(schema, "take_out_of_roll_ups_v1", literal(key.user_id, Uuid), literal(key.session_id, Text))
    )


@kept
def end_of_part(part: PartShape, sessions: int) -> Select[UUID]:
    """One row: the owner up to whom a part has about this many sessions. No row where the part has fewer.

    Binds the parameters of the part.
    """
    owner = part.owner(tables.rolled_up_sessions)
    return (
        select(owner)
        .where(owner.is_not(None), *part.conditions(tables.rolled_up_sessions))
        .order_by(owner)
        .offset(sessions)
        .limit(1)
    )


@kept
def bucket_mismatches(
    schema: str, table: type[tables.roll_ups | tables.model_roll_ups], part: PartShape, limit: int
) -> Select[*tuple[Any, ...]]:
    """The first buckets of a part that differ from the sums of the rolled-up sessions, in the order of their keys.

    Binds the parameters of the part.

    Columns: the bucket's key, with null for a user or dataset that its family has none of; for each figure the stored
    value as `found_…`, null where there is no bucket, and the sum as `expected_…`; and `mismatches`, the same in each
    row: how many figures differ in all buckets of the part, also in the buckets beyond the limit.
    """
    names = [column.key for column in table.__table__.primary_key]
    stored = select(table).where(table.family == part.family, *part.conditions(table)).subquery("stored")
    columns: list[ColumnClause[Any]] = [column(kept.key, kept.type) for kept in table.__table__.c]
    # As deep as the stored buckets of each owner go.
    arguments = (*part.arguments, true() if table is tables.model_roll_ups else false(), false())
    expected = database_function(schema, "expected_roll_ups_v1", *arguments).table_valued(*columns, name="expected")
    figures = {name: stored.c[name] for name in FIGURES[table]}
    keys = {name: func.coalesce(stored.c[name], expected.c[name]) for name in names}
    labelled_keys = {**keys, **{name: func.nullif(keys[name], NOBODY) for name in ("user_id", "dataset_id")}}
    differing = differ(figures, expected)
    mismatches = func.sum(sum((each.cast(Integer) for each in differing), start=literal(0))).over().cast(BigInteger)
    return (
        select(
            *(key.label(name) for name, key in labelled_keys.items()),
            *pairs(figures, expected),
            mismatches.label("mismatches"),
        )
        .select_from(stored.join(expected, and_(*(stored.c[name] == expected.c[name] for name in names)), full=True))
        .where(or_(*differing))
        .order_by(*keys.values())
        .limit(limit)
    )


@kept
def rebuild(schema: str, part: PartShape) -> Select[*tuple[Any, ...]]:
    """Replaces the buckets of a part with the sums of the rolled-up sessions. Binds the parameters of the part."""
    return select(database_function(schema, "rebuild_roll_ups_v1", *part.arguments))
