"""What the roll-ups have, beside what they should have of the sessions.

Whoever changes a session takes it out of the roll-ups, whether by us or by SQL of their own: a trigger sees to it. What
it does not see is a change of the totals by model alone, what is done while triggers are disabled, and what is done to
the roll-ups themselves.
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
    Select,
    and_,
    case,
    column,
    false,
    func,
    literal,
    or_,
    select,
    true,
)
from sqlalchemy.orm import InstrumentedAttribute, aliased
from sqlalchemy.types import Text, Uuid

from session_lifecycle.entities import RolledUpSessionEntity as U
from session_lifecycle.entities import SessionModelRollupEntity as Mb
from session_lifecycle.entities import SessionRecordEntity as S
from session_lifecycle.entities import SessionRollupEntity as B
from session_lifecycle.statements.functions import own_function
from session_lifecycle.statements.reconciling import SessionKey, between, differ, pairs
from session_lifecycle.statements.totals import MODEL_FIGURES, NOBODY, SESSION_FIGURES

KEPT = tuple(one.key for one in U.__table__.c if not one.primary_key and one.key != "models")
OF_ROLLED_UP = ("rolled_up", *KEPT)
"""What `rolled_up_sessions` tells of a session: that it is there, and its columns. Its models are compared by model."""
FIGURES: Mapping[type[B | Mb], Sequence[str]] = {B: SESSION_FIGURES, Mb: MODEL_FIGURES}


class Part(NamedTuple):
    """A part of a family of buckets: of the owners after the one up to the other; open where that is None."""

    family: str
    after: UUID | None = None
    up_to: UUID | None = None

    @property
    def arguments(self) -> tuple[ColumnElement[Any], ...]:
        """As our functions take it."""
        return literal(self.family, Text), literal(self.after, Uuid), literal(self.up_to, Uuid)

    def owner(self, table: type[U | B | Mb]) -> InstrumentedAttribute[Any]:
        """By whom the family is in parts: data sets or users."""
        return table.dataset_id if self.family == "dataset" else table.user_id

    def conditions(self, table: type[U | B | Mb]) -> list[ColumnElement[bool]]:
        """Which rows are in it, of those of the family."""
        found: list[ColumnElement[bool]] = []
        if self.after is not None:
            found.append(self.owner(table) > self.after)
        if self.up_to is not None:
            found.append(self.owner(table) <= self.up_to)
        return found


def rolled_up_mismatches(first: SessionKey, last: SessionKey) -> Select[*tuple[Any, ...]]:
    """The sessions from the first to the last that the roll-ups have and should not, lack, or have otherwise.

    Columns: the key, and as `found_…` and `expected_…` whether they have it, `rolled_up`, and what is kept of it. The
    latter differs only where they have it, and should.
    """
    stored = select(U).where(between(U, first, last)).subquery("stored")
    columns = (S.user_id, S.session_id, S.rolled_up, *(getattr(S, name) for name in KEPT))
    session = select(*columns).where(between(S, first, last)).subquery("session")
    is_there, is_expected = stored.c.user_id.is_not(None), func.coalesce(session.c.rolled_up, false())
    compared: dict[str, tuple[ColumnElement[Any], ColumnElement[Any]]] = {"rolled_up": (is_there, is_expected)}
    for name in KEPT:
        found = stored.c[name]
        compared[name] = (found, case((and_(is_there, is_expected), session.c[name]), else_=found))
    on = and_(stored.c.user_id == session.c.user_id, stored.c.session_id == session.c.session_id)
    keys = [func.coalesce(stored.c[name], session.c[name]).label(name) for name in ("user_id", "session_id")]
    sides = [
        side.label(f"{label}_{name}")
        for name, pair in compared.items()
        for label, side in zip(("found", "expected"), pair, strict=True)
    ]
    return (
        select(*keys, *sides)
        .select_from(stored.join(session, on, full=True))
        .where(or_(*(found.is_distinct_from(expected) for found, expected in compared.values())))
        .order_by(*keys)
    )


def rolled_up_model_mismatches(schema: str, first: SessionKey, last: SessionKey) -> Select[*tuple[Any, ...]]:
    """Of the rolled-up sessions from the first to the last the models that are kept otherwise than they are now.

    Columns: the key with the model, and of each figure what was found and what is expected; `sessions` is how often the
    model is there.
    """
    names = ("user_id", "session_id", "model")
    rows = U.__table__.alias("kept")
    kept = aliased(U, rows)
    of_session = and_(S.user_id == kept.user_id, S.session_id == kept.session_id, S.rolled_up)
    in_range = (between(S, first, last), between(kept, first, last))
    figures: list[ColumnClause[Any]] = [column(name) for name in MODEL_FIGURES[1:]]

    def by_model(models: FromClause, *more: ColumnElement[Any]) -> FromClause:
        joined = select(kept.user_id, kept.session_id, *models.c, *more).join(S, of_session).join(models, true())
        return joined.where(*in_range).subquery()

    model = column("model", Text(collation="C"))
    share = own_function(schema, "rollup_model_shares_v1", rows.table_valued(), literal(1, Integer))
    shares = by_model(share.table_valued(model, column("sessions"), *figures, name="share").lateral())
    sums = [func.sum(shares.c[name]).label(name) for name in MODEL_FIGURES]
    keys_of_share = [shares.c[name] for name in names]
    found = select(*keys_of_share, *sums).group_by(*keys_of_share).subquery("found")
    used = own_function(schema, "session_models_v1", rows.c.user_id, rows.c.session_id)
    expected = by_model(used.table_valued(model, *figures, name="used").lateral(), literal(1).label("sessions"))
    totals = {name: found.c[name] for name in MODEL_FIGURES}
    keys = [func.coalesce(found.c[name], expected.c[name]).label(name) for name in names]
    return (
        select(*keys, *pairs(totals, expected))
        .select_from(found.join(expected, and_(*(found.c[name] == expected.c[name] for name in names)), full=True))
        .where(or_(*differ(totals, expected)))
        .order_by(*keys)
    )


def take_out(schema: str, key: SessionKey) -> Select[bool]:
    """Takes a session out of the roll-ups, with whatever they have of it; whether they had anything."""
    return select(
        own_function(schema, "take_out_of_rollups_v1", literal(key.user_id, Uuid), literal(key.session_id, Text))
    )


def end_of_part(part: Part, sessions: int) -> Select[UUID]:
    """Up to whom a part has about so many sessions; no row where it has fewer."""
    owner = part.owner(U)
    return select(owner).where(owner.is_not(None), *part.conditions(U)).order_by(owner).offset(sessions).limit(1)


def bucket_mismatches(schema: str, table: type[B | Mb], part: Part, limit: int) -> Select[*tuple[Any, ...]]:
    """The buckets of a part that are not what the rolled-up sessions add up to.

    Columns: the bucket's key, null what its family has none of; of each figure what was found, null where there is no
    bucket, and what is expected; and `mismatches`, the same in each row: how many figures differ in all, of which only
    those of the first buckets are told.
    """
    names = [one.key for one in table.__table__.primary_key]
    stored = select(table).where(table.family == part.family, *part.conditions(table)).subquery("stored")
    function = "expected_rollups_v1" if table is B else "expected_model_rollups_v1"
    columns: list[ColumnClause[Any]] = [column(one.key, one.type) for one in table.__table__.c]
    expected = own_function(schema, function, *part.arguments).table_valued(*columns, name="expected")
    found = {name: stored.c[name] for name in FIGURES[table]}
    keys = {name: func.coalesce(stored.c[name], expected.c[name]) for name in names}
    told = {**keys, **{name: func.nullif(keys[name], NOBODY) for name in ("user_id", "dataset_id")}}
    differing = differ(found, expected)
    mismatches = func.sum(sum((one.cast(Integer) for one in differing), start=literal(0))).over().cast(BigInteger)
    return (
        select(
            *(key.label(name) for name, key in told.items()),
            *pairs(found, expected),
            mismatches.label("mismatches"),
        )
        .select_from(stored.join(expected, and_(*(stored.c[name] == expected.c[name] for name in names)), full=True))
        .where(or_(*differing))
        .order_by(*keys.values())
        .limit(limit)
    )


def rebuild(schema: str, part: Part) -> Select[*tuple[Any, ...]]:
    """Makes the buckets of a part what the rolled-up sessions add up to."""
    return select(own_function(schema, "rebuild_rollups_v1", *part.arguments))
