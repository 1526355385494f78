"""What is added up over the sessions a viewer sees: from the roll-ups what is in them, from rows the rest.

A session is either rolled up or not. Rolled up it is in the buckets, or still in the changes that will be put into
them; at the edges of a span, where no whole bucket fits, the rolled-up sessions themselves are read. All of it is one
statement and so one snapshot, and the sum is the same whether, when and how often anyone rolled up.
"""

from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID

from sqlalchemy import (
    CTE,
    BigInteger,
    ColumnClause,
    ColumnElement,
    FromClause,
    Integer,
    Numeric,
    Select,
    Text,
    and_,
    any_,
    bindparam,
    case,
    column,
    false,
    func,
    join,
    literal,
    literal_column,
    or_,
    select,
    true,
    union_all,
)
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.orm import InstrumentedAttribute, aliased
from sqlalchemy.types import Uuid

from session_lifecycle.entities import RolledUpSessionEntity as U
from session_lifecycle.entities import SessionModelRollupChangeEntity as Mc
from session_lifecycle.entities import SessionModelRollupEntity as Mb
from session_lifecycle.entities import SessionModelUsageEntity as M
from session_lifecycle.entities import SessionRecordEntity as S
from session_lifecycle.entities import SessionRollupChangeEntity as C
from session_lifecycle.entities import SessionRollupEntity as B
from session_lifecycle.models import SessionStatus
from session_lifecycle.statements.durations import lasted_us
from session_lifecycle.statements.scopes import ScopeKinds
from session_lifecycle.statements.spans import Span, begin_of_minute, filled, window

SESSION_FIGURES = (
    "sessions",
    "cost_usd",
    "tokens_in",
    "tokens_out",
    "duration_us",
    "unpriced_events",
    "unmeasured_events",
    "late_events",
    "late_cost_usd",
)
MODEL_FIGURES = (
    "sessions",
    "cost_usd",
    "tokens_in",
    "tokens_out",
    "cache_read_tokens",
    "cache_write_tokens",
    "reasoning_tokens",
    "events",
    "unpriced_events",
)
COUNTS = {"sessions", "events", "unpriced_events", "unmeasured_events", "late_events"}
UNKNOWN_MODEL = "unknown"
NOBODY: ColumnElement[UUID] = literal_column("'00000000-0000-0000-0000-000000000000'::uuid", Uuid)
"""What a bucket has for a user or data set where its family has none."""

Instants = InstrumentedAttribute[Any]


def duration_us(session: type[S | U]) -> ColumnElement[Any]:
    """How long a session took (rule R16), in microseconds."""
    return lasted_us(session.started_at, func.coalesce(session.ended_at, session.last_activity_at))


def session_totals(
    kinds: ScopeKinds, spans: Mapping[str, Span], figures: Sequence[str] = SESSION_FIGURES, *, of_agent: bool = False
) -> Select[*tuple[Any, ...]]:
    """A row for each label of the spans with sessions: `key`, the label, and these figures added up.

    Of the bound `agent_name` only, where that is asked. The roll-ups do not know agents: sessions are read one by one.
    The spans, each of a status, are parts of the window.
    """
    fill = filled(spans)
    parts = []
    if not of_agent:
        probe = _probe(kinds, fill.runs)
        buckets = (*_of_bucket(B, probe), B.status == probe.c.status)
        parts.append(_of_each(probe, probe.c.label, _sums(B, figures, probe.c.sign), *buckets))
        whole = fill.whole
        for seen in kinds.conditions(C):
            changes = (seen, C.status == whole.c.status, *_within(C.starts_at, whole))
            parts.append(_of_each(whole, whole.c.label, _sums(C, figures), *changes))
    over = fill.spans if of_agent else fill.edges
    for seen in kinds.conditions(U):
        rows = (seen, *_of_agent(U, of_agent), U.status == over.c.status, *_within(U.last_activity_at, over))
        parts.append(_of_each(over, over.c.label, _sums_of_rows(U, figures), *rows))
    # All at once, by whatever way is the shortest: never rolled up, they may be the whole table.
    is_in = [_is_in(S, span) for span in spans.values()]
    key = case(*zip(is_in, (literal(label, Text) for label in spans), strict=True)).label("key")
    sums = (total.label(name) for name, total in _sums_of_rows(S, figures).items())
    together = Span(None, *window()) if len(spans) > 1 else next(iter(spans.values()))
    live = (or_(false(), *kinds.conditions(S)), *_of_agent(S, of_agent), *in_span(S, together))
    # By what the label is made of: of booleans Postgres knows how few groups there are, and does not sort.
    parts.append(select(key, *sums).where(*live).group_by(*is_in))
    return _added_up(parts, figures)


def model_totals(kinds: ScopeKinds, span: Span) -> Select[*tuple[Any, ...]]:
    """A row for each model that sessions in the span used: `key`, its name, and its figures added up."""
    fill = filled({"any": span})
    probe = _probe(kinds, fill.runs)
    parts = [_of_each(probe, Mb.model, _sums(Mb, MODEL_FIGURES, probe.c.sign), *_of_bucket(Mb, probe), grouped=True)]
    for seen in kinds.conditions(Mc):
        changes = (seen, *_within(Mc.starts_at, fill.whole))
        parts.append(_of_each(fill.whole, Mc.model, _sums(Mc, MODEL_FIGURES), *changes, grouped=True))
    for seen in kinds.conditions(U):
        share = _shares()
        rows = (seen, _has_status(U, span), *_within(U.last_activity_at, fill.edges))
        sums = {"sessions": func.count(), **{name: func.sum(share.c[name]) for name in MODEL_FIGURES[1:]}}
        parts.append(_of_each(fill.edges, share.c.model, sums, *rows, grouped=True, of=join(U, share, true())))
    model = case((M.model == "", literal(UNKNOWN_MODEL)), else_=M.model).label("key")
    # Both a model named "unknown" and no model are reported as unknown; a session with both is one.
    named = aliased(M, name="named")
    # Nothing is equal to null: only for those without a model is it looked whether there is one of that name.
    name_too = case((M.model == "", literal(UNKNOWN_MODEL)))
    is_twice = and_(*_of_same_session(named), named.model == name_too, _has_any(named))
    sessions = func.count().filter(named.model.is_(None)).label("sessions")
    sums_of_model = (func.sum(getattr(M, name)).label(name) for name in MODEL_FIGURES[1:])
    used = select(model, sessions, *sums_of_model).join_from(S, M, and_(*_of_same_session(S)))
    live = (or_(false(), *kinds.conditions(S)), *in_span(S, span), _has_any(M))
    parts.append(used.outerjoin(named, is_twice).where(*live).group_by(model))
    return _added_up(parts, MODEL_FIGURES)


def _has_any(usage: type[M]) -> ColumnElement[bool]:
    # Of a model whose every event was revised away there is nothing to report.
    return or_(usage.events > 0, usage.tokens_in > 0, usage.tokens_out > 0, usage.cost_usd > 0)


def _of_same_session(other: type[S | M]) -> list[ColumnElement[bool]]:
    return [other.user_id == M.user_id, other.session_id == M.session_id]


def _of_each(
    over: FromClause,
    key: ColumnElement[Any] | InstrumentedAttribute[str],
    sums: Mapping[str, ColumnElement[Any]],
    *conditions: ColumnElement[bool],
    grouped: bool = False,
    of: FromClause | None = None,
) -> Select[*tuple[Any, ...]]:
    """The sums for each row of `over`, looked up one after another: each is a range of an index."""
    summed = select(key.label("key"), *(total.label(name) for name, total in sums.items())).where(*conditions)
    if of is not None:
        summed = summed.select_from(of)
    rows = (summed.group_by(key) if grouped else summed).lateral()
    return select(*rows.c).select_from(over.join(rows, true()))


def _added_up(parts: Sequence[Select[*tuple[Any, ...]]], figures: Sequence[str]) -> Select[*tuple[Any, ...]]:
    found = union_all(*parts).subquery("part")
    totals = [func.sum(found.c[name]).cast(BigInteger if name in COUNTS else Numeric).label(name) for name in figures]
    # Those that were all taken out again leave zeros behind.
    return select(found.c.key, *totals).group_by(found.c.key).having(func.sum(found.c.sessions) > 0)


def _sums(
    table: type[B | C | Mb | Mc], figures: Sequence[str], sign: ColumnElement[Any] | None = None
) -> dict[str, ColumnElement[Any]]:
    sums: dict[str, ColumnElement[Any]] = {name: func.sum(getattr(table, name)) for name in figures}
    return sums if sign is None else {name: sign * total for name, total in sums.items()}


def _sums_of_rows(table: type[S | U], figures: Sequence[str]) -> dict[str, ColumnElement[Any]]:
    own = {"sessions": func.count(), "duration_us": func.sum(duration_us(table))}
    return {name: own[name] if name in own else func.sum(getattr(table, name)) for name in figures}


def _shares() -> FromClause:
    """What each rolled-up session used by model."""
    columns: list[ColumnClause[Any]] = [column("model", Text), *(column(name, Numeric) for name in MODEL_FIGURES[1:])]
    return func.jsonb_to_recordset(U.models).table_valued(*columns, name="share").render_derived(with_types=True)


def _probe(kinds: ScopeKinds, runs: CTE) -> FromClause:
    """Which runs of buckets are to be added or, by their sign, taken away.

    That of users in data sets is taken away where both are there: it was added twice.
    """
    user, dataset = _unnested("users", "user"), _unnested("datasets", "dataset")
    everybody = _family("all", NOBODY, NOBODY, 1)
    families = [everybody if kinds.everybody else everybody.where(false())]
    if kinds.users:
        families.append(_family("user", user.c.id, NOBODY, 1))
    if kinds.datasets:
        families.append(_family("dataset", NOBODY, dataset.c.id, 1))
    if kinds.pairs or (kinds.users and kinds.datasets):
        of_both = _family("user_dataset", user.c.id, dataset.c.id, 1 if kinds.pairs else -1)
        families.append(of_both.select_from(user.join(dataset, true())))
    family = union_all(*families).subquery("family")
    *told, sign = family.c
    *run, forth = runs.c
    return select(*told, *run, (sign * forth).label("sign")).join_from(family, runs, true()).cte("probe")


def _unnested(name: str, alias: str) -> FromClause:
    return func.unnest(bindparam(name, type_=ARRAY(Uuid))).table_valued(column("id", Uuid), name=alias).render_derived()


def _family(
    name: str, user_id: ColumnElement[UUID], dataset_id: ColumnElement[UUID], sign: int
) -> Select[*tuple[Any, ...]]:
    return select(
        literal(name, Text).label("family"),
        user_id.label("user_id"),
        dataset_id.label("dataset_id"),
        literal(sign, Integer).label("sign"),
    )


def _of_bucket(table: type[B | Mb], probe: FromClause) -> list[ColumnElement[bool]]:
    return [
        table.family == probe.c.family,
        table.user_id == probe.c.user_id,
        table.dataset_id == probe.c.dataset_id,
        table.level == probe.c.level,
        *_within(table.starts_at, probe),
    ]


def _within(moment: Instants, span: FromClause) -> list[ColumnElement[bool]]:
    return [moment >= span.c.since, moment < span.c.until]


def _of_agent(table: type[S | U], of_agent: bool) -> list[ColumnElement[bool]]:
    return [table.agent_name == bindparam("agent_name", type_=Text)] if of_agent else []


def in_span(table: type[S | U], span: Span) -> list[ColumnElement[bool]]:
    """Conditions on rolled-up sessions, or on those that are not."""
    exactly = _is_in(table, span)
    if table is U:
        return [exactly]
    # Implied; what the index has in the place of the instant.
    return [~S.rolled_up, exactly, S.activity_minute >= begin_of_minute(span.since), S.activity_minute < span.until]


def _is_in(table: type[S | U], span: Span) -> ColumnElement[bool]:
    is_active = (table.last_activity_at >= span.since, table.last_activity_at < span.until)
    return and_(_has_status(table, span), *is_active)


def _has_status(table: type[S | U], span: Span) -> ColumnElement[bool]:
    # Named also where it may be any: the indexes have it before the activity.
    stored = [status.value for status in SessionStatus] if span.status is None else [span.status.value]
    return table.status == any_(literal(stored, ARRAY(Text)))
