"""Figures over the sessions that a viewer sees: from the roll-ups where they can answer, else from rows.

A session is either rolled up or not. The buckets count a rolled-up session, or the changes do that are not yet put into
the buckets. At the edges of a window no whole bucket fits, so the rows of the rolled-up sessions are read there. Where
an owner has few sessions no short buckets are kept, so the edges are wide there. All of this is one statement and so
one snapshot. The figures are the same whether, when and how often a job rolled up.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any
from uuid import UUID

from sqlalchemy import (
    CTE,
    BigInteger,
    ColumnClause,
    ColumnElement,
    CompoundSelect,
    FromClause,
    Function,
    Integer,
    Numeric,
    Select,
    Text,
    and_,
    any_,
    bindparam,
    case,
    column,
    exists,
    false,
    func,
    join,
    literal,
    literal_column,
    null,
    or_,
    select,
    true,
    union_all,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB
from sqlalchemy.orm import InstrumentedAttribute, aliased
from sqlalchemy.types import Uuid

from session_lifecycle.models import EffectiveStatus, SessionStatus
from session_lifecycle.statements import tables
from session_lifecycle.statements.roll_ups.buckets import LONGEST, begin_of_minute, cover_window
from session_lifecycle.statements.shared.durations import lasted_us, sum_of_lasted_us
from session_lifecycle.statements.shared.further_totals import FURTHER_TOTALS, summed
from session_lifecycle.statements.shared.keys import same_session
from session_lifecycle.statements.shared.ledger import UNKNOWN_MODEL
from session_lifecycle.statements.shared.status import StatusTable, initial, is_stored_as, is_waiting
from session_lifecycle.statements.shared.visibility import (
    ONE_USER,
    ScopeKinds,
    of_everybody,
)
from session_lifecycle.statements.shared.window import Ends, StatusWindow, window

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
    FURTHER_TOTALS,
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
    FURTHER_TOTALS,
)
COUNTER_COLUMNS = {"sessions", "events", "unpriced_events", "unmeasured_events", "late_events"}
NOBODY: ColumnElement[UUID] = literal_column("'00000000-0000-0000-0000-000000000000'::uuid", Uuid)
"""The user or dataset of a bucket whose family has none."""
MODEL_KEYS = {
    "model": "m",
    "cost_usd": "c",
    "tokens_in": "i",
    "tokens_out": "o",
    "cache_read_tokens": "r",
    "cache_write_tokens": "w",
    "reasoning_tokens": "z",
    "events": "e",
    "unpriced_events": "u",
    FURTHER_TOTALS: "f",
}
"""The names of the usage by model in a row of `rolled_up_sessions`, which are short: each session has such a row."""

TimeColumn = InstrumentedAttribute[Any]


def duration_us(session: type[tables.sessions | tables.rolled_up_sessions]) -> ColumnElement[Any]:
    """The duration of a session (rule R16), in microseconds."""
    return lasted_us(session.started_at, _over_at(session))


def _over_at(session: type[tables.sessions | tables.rolled_up_sessions]) -> ColumnElement[Any]:
    return func.coalesce(session.ended_at, session.last_activity_at)


def session_figures(
    kinds: ScopeKinds,
    ends: Ends,
    windows: Mapping[str, StatusWindow],
    names: Sequence[str] = SESSION_FIGURES,
    *,
    has_agent_name: bool = False,
) -> Select[*tuple[Any, ...]]:
    """One row: the number of sessions in each status window, by its label, and the figures of these names over all.

    Args:
        kinds: The kinds of the viewer's scopes.
        ends: The ends of the window that are given.
        windows: One status window, or all those of `status_windows`, by label.
        names: The names of the figures.
        has_agent_name: Whether to count the sessions of the bound `agent_name` only. The roll-ups have no agents, so
            Postgres then reads every session.
    """
    together = StatusWindow(None, *window(ends)) if len(windows) > 1 else next(iter(windows.values()))
    # The sessions that are not rolled up, in one scan; Postgres chooses the shortest way to them. Where no job rolls
    # up, they are the whole table.
    scoped = (kinds.in_any(tables.sessions), of_everybody(tables.sessions))
    live = (*scoped, *_has_agent(tables.sessions, has_agent_name))
    parts = [_figures_of_rows(tables.sessions, windows, together, names, *live)]
    # No rolled-up session waits, so the roll-ups have nothing in a window of sessions that wait.
    if together.waits is not True and has_agent_name:
        of_agent = _has_agent(tables.rolled_up_sessions, has_agent_name)
        parts += [
            _figures_of_rows(tables.rolled_up_sessions, windows, together, names, in_scope, *of_agent)
            for in_scope in kinds.conditions(tables.rolled_up_sessions)
        ]
    elif together.waits is not True:
        parts += _figures_of_rolled_up(kinds, windows, together, names)
        if len(windows) > 1:
            parts.append(_still_running(kinds, windows, names))
    return _added_up_over(union_all(*parts), windows, names)


def figures_of_all_rows(
    is_seen: ColumnElement[bool], ends: Ends, windows: Mapping[str, StatusWindow]
) -> Select[*tuple[Any, ...]]:
    """The row of `session_figures`, from the rows of all sessions, rolled up or not."""
    together = StatusWindow(None, *window(ends, are_unknown=True))
    sums = _sums_of_rows(tables.sessions, windows, SESSION_FIGURES, is_seen, is_in(tables.sessions, together))
    return _added_up_over(sums, windows, SESSION_FIGURES)


def _added_up_over(
    parts: CompoundSelect[*tuple[Any, ...]] | Select[*tuple[Any, ...]], labels: Iterable[str], names: Sequence[str]
) -> Select[*tuple[Any, ...]]:
    part = parts.subquery("part")
    counts = [func.coalesce(func.sum(part.c[label]), 0).cast(BigInteger).label(label) for label in labels]
    return select(*counts, *_again(part, names))


def _figures_of_rows(
    table: type[tables.sessions | tables.rolled_up_sessions],
    windows: Mapping[str, StatusWindow],
    together: StatusWindow,
    names: Sequence[str],
    *conditions: ColumnElement[bool],
) -> Select[*tuple[Any, ...]]:
    """The figures over the chosen sessions of the table, from their rows."""
    return _sums_of_rows(table, windows, names, *conditions, *in_window(table, together))


def _sums_of_rows(
    table: type[tables.sessions | tables.rolled_up_sessions],
    windows: Mapping[str, StatusWindow],
    names: Sequence[str],
    *chosen: ColumnElement[bool],
) -> Select[*tuple[Any, ...]]:
    counts = {label: func.count().filter(is_in(table, one)) for label, one in windows.items()}
    sums = counts | _sums_of_sessions(table, names)
    if FURTHER_TOTALS in sums:
        # Postgres runs this only where a session has any. Parallel workers cannot share an aggregate of arrays.
        further = select(summed(table.further_totals)).where(*chosen, table.further_totals.is_not(None))
        any_further = func.count(table.further_totals) > literal(0, Integer)
        sums[FURTHER_TOTALS] = case((any_further, further.correlate(None).scalar_subquery()))
    return _labelled(sums).where(*chosen)


def _figures_of_rolled_up(
    kinds: ScopeKinds, windows: Mapping[str, StatusWindow], together: StatusWindow, names: Sequence[str]
) -> list[Select[*tuple[Any, ...]]]:
    """The figures over the rolled-up sessions, from buckets, changes and rows."""
    cover = cover_window(_families(kinds), together.since, together.until)
    ranges = cover.stretches
    sums = _counts_by_status(windows, tables.roll_ups, func.sum(tables.roll_ups.sessions), ranges.c.sign)
    sums |= _sums(tables.roll_ups, names, ranges.c.sign)
    buckets = (*_is_bucket_in(tables.roll_ups, ranges), _has_status(tables.roll_ups, together))
    parts = [_of_each(ranges, _labelled(sums).where(*buckets))]
    for whole, in_family in _of_each_family(kinds, cover.whole, tables.roll_up_changes):
        changes = tables.roll_up_changes
        sums = _counts_by_status(windows, changes, func.sum(changes.sessions), whole.c.sign)
        sums |= _sums(changes, names, whole.c.sign)
        is_in = (*_within(changes.starts_at, whole), _has_status(changes, together))
        parts.append(_of_each(whole, _labelled(sums).where(in_family, *is_in)))
    for edge, conditions in _rolled_up_in(kinds, cover.edges, together):
        rows = tables.rolled_up_sessions
        sums = _counts_by_status(windows, rows, func.count(), edge.c.sign, stored=edge.c.initial)
        sums |= _sums_of_sessions(rows, names, edge.c.sign)
        parts.append(_of_each(edge, _labelled(sums).where(*conditions)))
    return parts


def _counts_by_status(
    windows: Mapping[str, StatusWindow],
    table: StatusTable,
    sessions: Function[Any],
    sign: ColumnElement[int],
    *,
    stored: ColumnElement[str] | None = None,
) -> dict[str, ColumnElement[Any]]:
    """The number of rolled-up sessions in each status window, by their stored status.

    Where there are several windows, each session that is stored as running is counted as abandoned: `_still_running`
    corrects it.

    Args:
        windows: The status windows, by label.
        table: The table of the rows.
        sessions: Their number of sessions.
        sign: The sign of the numbers.
        stored: The initial of the stored status where all rows have the same one: then no row is asked.
    """
    if len(windows) == 1:
        return dict.fromkeys(windows, sign * sessions)
    none: ColumnElement[Any] = literal(0, BigInteger)
    not_counted = {EffectiveStatus.RUNNING.value, EffectiveStatus.WAITING.value}

    def counted(one: StatusWindow) -> ColumnElement[Any]:
        if stored is None:
            return sign * sessions.filter(_has_status(table, one))
        is_stored = stored == any_(literal([status.value[0] for status in _stored(one)], ARRAY(Text)))
        return case((is_stored, sign * sessions), else_=none)

    return {label: none if label in not_counted else counted(one) for label, one in windows.items()}


def _still_running(
    kinds: ScopeKinds, windows: Mapping[str, StatusWindow], names: Sequence[str]
) -> Select[*tuple[Any, ...]]:
    """The rolled-up sessions that are not abandoned, which are counted as abandoned otherwise.

    A job rolls up abandoned sessions only. So there are none, except where the job has a shorter threshold than the
    reader, or where the reader's clock stands still.
    """
    table, running = tables.rolled_up_sessions, EffectiveStatus.RUNNING.value
    in_scope = kinds.in_any(table)
    # The extra condition lets Postgres look for them among everybody's sessions, where there is hardly any.
    found = (
        select(func.count().label("sessions"))
        .where(in_scope, of_everybody(table), *in_window(table, windows[running]))
        .subquery("still")
    )
    sessions: ColumnElement[Any] = found.c.sessions
    counts = {running: sessions, EffectiveStatus.ABANDONED.value: -sessions}
    nothing: ColumnElement[Any] = literal(0, BigInteger)
    no_totals: ColumnElement[Any] = null().cast(JSONB)
    columns = {label: counts.get(label, nothing) for label in windows}
    return _labelled(columns | {name: no_totals if name == FURTHER_TOTALS else nothing for name in names})


def sessions_ever(kinds: ScopeKinds, status: SessionStatus | None) -> ColumnElement[int]:
    """The number of sessions with a stored status, or of all where it is None, whenever they were last active.

    The longest buckets of an owner hold all rolled-up sessions of the owner, and no edge has to be read. This is much
    shorter than `session_figures`: most totals of pages are such a number.
    """
    stored = list(SessionStatus) if status is None else [status]
    is_stored = literal([one.value for one in stored], ARRAY(Text))
    family = _families(kinds)
    longest = [*_is_of_family(tables.roll_ups, family), tables.roll_ups.level == LONGEST.name]
    counted = case((tables.roll_ups.status == any_(is_stored), tables.roll_ups.sessions), else_=0)
    # Null for an owner without buckets, and not for one whose buckets have other statuses.
    in_longest = select(func.sum(counted)).where(*longest).scalar_subquery().label("in_longest")
    kept = (
        select(family.c.family, family.c.user_id, family.c.dataset_id, family.c.sign, in_longest)
        .offset(literal_column("0"))
        .cte("kept")
    )
    counts: list[ColumnElement[Any]] = []
    for name in _family_names(kinds):
        of_family = select(kept).where(kept.c.family == name).subquery(f"of_{name}")
        in_changes, in_rows = (
            _counts(name, of_family, table) for table in (tables.roll_up_changes, tables.rolled_up_sessions)
        )
        changes = select(func.coalesce(func.sum(tables.roll_up_changes.sessions), 0)).where(
            in_changes, tables.roll_up_changes.status == any_(is_stored)
        )
        rows = select(func.count()).where(in_rows, is_stored_as(stored, tables.rolled_up_sessions))
        rolled_up = case(
            (of_family.c.in_longest.is_(None), rows.scalar_subquery()),
            else_=of_family.c.in_longest + changes.scalar_subquery(),
        )
        counts.append(select(func.sum(of_family.c.sign * rolled_up)).select_from(of_family).scalar_subquery())
    counts += [
        select(func.count())
        .where(in_scope, ~tables.sessions.rolled_up, tables.sessions.status == any_(is_stored))
        .scalar_subquery()
        for in_scope in kinds.conditions(tables.sessions)
    ]
    return sum((func.coalesce(one, 0, type_=Numeric) for one in counts), literal(0, Numeric)).cast(BigInteger)


def sessions_in_longest_buckets(kinds: ScopeKinds, stored: Sequence[SessionStatus]) -> ColumnElement[Any]:
    """About how many rolled-up sessions have one of these stored statuses: those in the longest buckets.

    The latest changes are not in buckets, nor are the sessions of an owner who has few. Null where no bucket is.
    """
    family = _families(kinds)
    longest = (*_is_of_family(tables.roll_ups, family), tables.roll_ups.level == LONGEST.name)
    # Postgres looks up one family after another. It would read all buckets for a join.
    of_family = select(func.sum(tables.roll_ups.sessions)).where(*longest, is_stored_as(stored, tables.roll_ups))
    return select(func.sum(family.c.sign * of_family.scalar_subquery())).scalar_subquery()


def model_figures(kinds: ScopeKinds, status_window: StatusWindow) -> Select[*tuple[Any, ...]]:
    """One row per model that sessions in the status window used: the model's name as `key`, and `MODEL_FIGURES`."""
    cover = cover_window(_families(kinds), status_window.since, status_window.until)
    ranges = cover.stretches
    parts = [
        _sums_per_row(
            ranges,
            tables.model_roll_ups.model,
            _sums(tables.model_roll_ups, MODEL_FIGURES, ranges.c.sign),
            *_is_bucket_in(tables.model_roll_ups, ranges),
        )
    ]
    for whole, in_family in _of_each_family(kinds, cover.whole, tables.model_roll_up_changes):
        parts.append(
            _sums_per_row(
                whole,
                tables.model_roll_up_changes.model,
                _sums(tables.model_roll_up_changes, MODEL_FIGURES, whole.c.sign),
                in_family,
                *_within(tables.model_roll_up_changes.starts_at, whole),
            )
        )
    for edge, is_in in _rolled_up_in(kinds, cover.edges, status_window):
        share = _model_shares()
        sign = edge.c.sign
        sums = {
            name: sign * func.count() if name == "sessions" else _total(share.c[MODEL_KEYS[name]], name, sign)
            for name in MODEL_FIGURES
        }
        source = join(tables.rolled_up_sessions, share, true())
        parts.append(_sums_per_row(edge, share.c[MODEL_KEYS["model"]], sums, *is_in, source=source))
    of_session = same_session(tables.sessions, tables.model_usage)
    live = (kinds.in_any(tables.sessions), *in_window(tables.sessions, status_window))
    named = aliased(tables.model_usage, name="named")
    has_named = exists().where(same_session(named, tables.model_usage), *is_unknown_model(named))

    def of_live(rows: Select[*tuple[Any, ...]]) -> Select[*tuple[Any, ...]]:
        return rows.join_from(tables.sessions, tables.model_usage, of_session).where(*live)

    return by_name([*parts, usage_by_model(tables.model_usage, has_named, of_live)])


def usage_by_model(
    usage: type[tables.model_usage],
    has_named: ColumnElement[bool],
    of_sessions: Callable[[Select[*tuple[Any, ...]]], Select[*tuple[Any, ...]]],
) -> Select[*tuple[Any, ...]]:
    """The sums of `model_usage` by model.

    Args:
        usage: The rows.
        has_named: Whether the session of a row has usage of a model named "unknown". Usage without a model is reported
            under this name, too, and a session with both is one session.
        of_sessions: Narrows a statement on `usage` to that of the sessions.
    """
    is_without, is_named = usage.model == "", usage.model_key == literal(UNKNOWN_MODEL)
    with_both = of_sessions(select(func.count()).where(is_without, has_named, _has_any(usage)))
    # Hardly ever are there both in one answer. Postgres does not count the sessions with both before it knows that.
    may_have_both = and_(
        func.count().filter(is_without) > literal(0, BigInteger),
        func.sum(func.count().filter(is_named)).over() > literal(0, BigInteger),
    )
    counted_twice = case((may_have_both, with_both.correlate(None).scalar_subquery()), else_=literal(0, BigInteger))
    model = case((is_without, literal(UNKNOWN_MODEL)), else_=usage.model).label("key")
    sums_of_model = (_total(getattr(usage, name), name).label(name) for name in MODEL_FIGURES[1:])
    sums = select(model, (func.count() - counted_twice).label("sessions"), *sums_of_model)
    return of_sessions(sums.where(_has_any(usage)).group_by(model))


def is_unknown_model(usage: type[tables.model_usage]) -> Sequence[ColumnElement[bool]]:
    """Conditions on usage of a model that is named "unknown"."""
    return usage.model_key == literal(UNKNOWN_MODEL), _has_any(usage)


def by_name(parts: Sequence[Select[*tuple[Any, ...]]]) -> Select[*tuple[Any, ...]]:
    """The rows of `model_figures`, from such rows of which several may have one name."""
    # Names that differ in case only are one model. It is shown in one of the spellings that sessions have: a bucket
    # stays with zeros after all of its sessions were taken out of the roll-ups.
    spelt = _added_up(parts, MODEL_FIGURES).subquery("spelt")
    name = spelt.c.key.collate("C")
    shown = func.min(name).filter(spelt.c.sessions > 0).label("key")
    by_model = select(shown, *_again(spelt, MODEL_FIGURES)).group_by(func.lower(name))
    return by_model.having(func.sum(spelt.c.sessions) > 0)


def _has_any(usage: type[tables.model_usage]) -> ColumnElement[bool]:
    # A model whose events were all revised away keeps a row of zeros. Reports leave it out.
    return or_(usage.events > 0, usage.tokens_in > 0, usage.tokens_out > 0, usage.cost_usd > 0)


def _sums_per_row(
    rows: FromClause,
    key: ColumnElement[Any] | InstrumentedAttribute[str],
    sums: Mapping[str, ColumnElement[Any]],
    *conditions: ColumnElement[bool],
    source: FromClause | None = None,
) -> Select[*tuple[Any, ...]]:
    """The sums for each of the rows and each key. Postgres looks up one row after another, as ranges of an index."""
    summed = select(key.label("key"), *(total.label(name) for name, total in sums.items())).where(*conditions)
    if source is not None:
        summed = summed.select_from(source)
    return _of_each(rows, summed.group_by(key))


def _labelled(columns: Mapping[str, ColumnElement[Any]]) -> Select[*tuple[Any, ...]]:
    return select(*(column.label(name) for name, column in columns.items()))


def _of_each(rows: FromClause, figures: Select[*tuple[Any, ...]]) -> Select[*tuple[Any, ...]]:
    """The figures for each of the rows. Postgres looks up one row after another, as a range of an index."""
    of_row = figures.lateral()
    return select(*of_row.c).select_from(rows.join(of_row, true()))


def _of_each_family(
    kinds: ScopeKinds,
    windows: CTE,
    table: type[tables.roll_up_changes | tables.model_roll_up_changes],
) -> list[tuple[FromClause, ColumnElement[bool]]]:
    """The windows of each bucket family, and the condition on the rows that the family counts: each has an index."""
    found: list[tuple[FromClause, ColumnElement[bool]]] = []
    for name in _family_names(kinds):
        of_family = select(windows).where(windows.c.family == name).subquery(f"of_{name}")
        found.append((of_family, _counts(name, of_family, table)))
    return found


def _rolled_up_in(
    kinds: ScopeKinds, windows: CTE, status_window: StatusWindow
) -> list[tuple[FromClause, Sequence[ColumnElement[bool]]]]:
    """The windows of each bucket family, one row for each stored status, and the conditions on the rolled-up sessions.

    The indexes have the status before the activity, so each status is a range of its own.
    """
    found: list[tuple[FromClause, Sequence[ColumnElement[bool]]]] = []
    table = tables.rolled_up_sessions
    stored = literal([one.value[0] for one in _stored(status_window)], ARRAY(Text))
    status = func.unnest(stored).table_valued(column("initial", Text), name="status").render_derived()
    for name in _family_names(kinds):
        rows = select(windows, status.c.initial).join_from(windows, status, true()).where(windows.c.family == name)
        of_family = rows.subquery(f"of_{name}")
        has_status = initial(table.status) == of_family.c.initial
        is_in = (_counts(name, of_family, table), has_status, *_within(table.last_activity_at, of_family))
        found.append((of_family, is_in))
    return found


def _counts(
    name: str,
    family: FromClause,
    table: type[tables.rolled_up_sessions | tables.roll_up_changes | tables.model_roll_up_changes],
) -> ColumnElement[bool]:
    """Whether a family of this name counts a row. Each name has an index of its own."""
    conditions: list[ColumnElement[bool]] = []
    if name in {"user", "user_dataset"}:
        conditions.append(table.user_id == family.c.user_id)
    if name in {"dataset", "user_dataset"}:
        conditions.append(table.dataset_id == family.c.dataset_id)
    if not conditions and issubclass(table, tables.rolled_up_sessions):
        conditions.append(of_everybody(table))
    return and_(true(), *conditions)


def _added_up(parts: Sequence[Select[*tuple[Any, ...]]], names: Sequence[str]) -> Select[*tuple[Any, ...]]:
    part = union_all(*parts).subquery("part")
    return select(part.c.key, *_again(part, names)).group_by(part.c.key)


def _again(rows: FromClause, names: Sequence[str]) -> list[ColumnElement[Any]]:
    """The sums of figures that are sums themselves."""
    return [
        summed(rows.c[name]).label(name)
        if name == FURTHER_TOTALS
        # A rolled-up session has null for zero.
        else func.coalesce(func.sum(rows.c[name]), 0)
        .cast(BigInteger if name in COUNTER_COLUMNS else Numeric)
        .label(name)
        for name in names
    ]


def _total(column: ColumnElement[Any], name: str, sign: ColumnElement[Any] | None = None) -> ColumnElement[Any]:
    """The total of a figure over rows."""
    if name == FURTHER_TOTALS:
        return summed(column, sign=sign)
    return func.sum(column) if sign is None else sign * func.sum(column)


def _sums(
    table: type[tables.roll_ups | tables.roll_up_changes | tables.model_roll_ups | tables.model_roll_up_changes],
    names: Sequence[str],
    sign: ColumnElement[Any] | None = None,
) -> dict[str, ColumnElement[Any]]:
    return {name: _total(getattr(table, name), name, sign) for name in names}


def _sums_of_sessions(
    table: type[tables.sessions | tables.rolled_up_sessions],
    names: Sequence[str],
    sign: ColumnElement[Any] | None = None,
) -> dict[str, ColumnElement[Any]]:
    without_column: dict[str, ColumnElement[Any]] = {
        "sessions": func.count(),
        "duration_us": sum_of_lasted_us(table.started_at, _over_at(table)),
    }
    return {
        name: (without_column[name] if sign is None else sign * without_column[name])
        if name in without_column
        else _total(getattr(table, name), name, sign)
        for name in names
    }


def _model_shares() -> FromClause:
    """The usage of each rolled-up session by model, from the JSON in its row."""
    columns: list[ColumnClause[Any]] = [
        column(MODEL_KEYS["model"], Text),
        *(column(MODEL_KEYS[name], JSONB if name == FURTHER_TOTALS else Numeric) for name in MODEL_FIGURES[1:]),
    ]
    return (
        func.json_to_recordset(tables.rolled_up_sessions.models)
        .table_valued(*columns, name="share")
        .render_derived(with_types=True)
    )


def _family_names(kinds: ScopeKinds) -> list[str]:
    """The kinds of bucket families that count the sessions of the scopes."""
    named = {
        "all": kinds.everybody,
        "user": kinds.users,
        "dataset": kinds.datasets,
        "user_dataset": kinds.pairs or (kinds.users and kinds.datasets),
    }
    return [name for name, is_there in named.items() if is_there]


def _families(kinds: ScopeKinds) -> FromClause:
    """The bucket families of the scopes, and the sign of each.

    Where the scopes have users and datasets, the buckets of those users in those datasets are subtracted: the buckets
    of the users and the buckets of the datasets both count them.
    """
    users, dataset = _unnested("users", "user"), _unnested("datasets", "dataset")
    user_id = ONE_USER if kinds.has_one_user else users.c.id
    each_in_dataset = dataset if kinds.has_one_user else users.join(dataset, true())
    everybody = _family("all", NOBODY, NOBODY, 1)
    families = [everybody if kinds.everybody else everybody.where(false())]
    if kinds.users:
        families.append(_family("user", user_id, NOBODY, 1))
    if kinds.datasets:
        families.append(_family("dataset", NOBODY, dataset.c.id, 1))
    if kinds.pairs or (kinds.users and kinds.datasets):
        of_both = _family("user_dataset", user_id, dataset.c.id, 1 if kinds.pairs else -1)
        families.append(of_both.select_from(each_in_dataset))
    return union_all(*families).subquery("family")


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


def _is_bucket_in(
    table: type[tables.roll_ups | tables.model_roll_ups], ranges: FromClause
) -> list[ColumnElement[bool]]:
    return [*_is_of_family(table, ranges), table.level == ranges.c.level, *_within(table.starts_at, ranges)]


def _is_of_family(
    table: type[tables.roll_ups | tables.model_roll_ups], family: FromClause
) -> list[ColumnElement[bool]]:
    return [
        table.family == family.c.family,
        table.user_id == family.c.user_id,
        table.dataset_id == family.c.dataset_id,
    ]


def _within(moment: TimeColumn, windows: FromClause) -> list[ColumnElement[bool]]:
    return [moment >= windows.c.since, moment < windows.c.until]


def _has_agent(
    table: type[tables.sessions | tables.rolled_up_sessions], has_agent_name: bool
) -> list[ColumnElement[bool]]:
    return [table.agent_name == bindparam("agent_name", type_=Text)] if has_agent_name else []


def in_window(
    table: type[tables.sessions | tables.rolled_up_sessions], status_window: StatusWindow
) -> list[ColumnElement[bool]]:
    """Conditions on the sessions of a status window: on the rolled-up ones, or on those that are not rolled up."""
    exactly, since, until = is_in(table, status_window), status_window.since, status_window.until
    if table is tables.rolled_up_sessions:
        return [exactly]
    # The indexes have the minute in place of the exact moment. The exact condition implies the conditions on the
    # minute, but Postgres does not know that: both are written.
    return [
        ~tables.sessions.rolled_up,
        exactly,
        *([] if since is None else [tables.sessions.activity_minute >= begin_of_minute(since)]),
        *([] if until is None else [tables.sessions.activity_minute < until]),
    ]


def is_in(table: type[tables.sessions | tables.rolled_up_sessions], status_window: StatusWindow) -> ColumnElement[bool]:
    """Whether a session is in the status window, rolled up or not."""
    since, until = status_window.since, status_window.until
    is_any = status_window.status is None and since is None and until is None
    conditions = [
        # Any status is a condition for an index by status and activity: without a window none is of use.
        true() if is_any and table is tables.sessions else _has_status(table, status_window),
        *([] if since is None else [table.last_activity_at >= since]),
        *([] if until is None else [table.last_activity_at < until]),
    ]
    if status_window.waits is None:
        return and_(*conditions)
    if table is tables.rolled_up_sessions:
        return false() if status_window.waits else and_(*conditions)
    return and_(*conditions, is_waiting() if status_window.waits else ~is_waiting())


def _has_status(table: StatusTable, status_window: StatusWindow) -> ColumnElement[bool]:
    # The status is compared even where any status will do, because the indexes have it before the activity.
    return is_stored_as(_stored(status_window), table)


def _stored(status_window: StatusWindow) -> list[SessionStatus]:
    return list(SessionStatus) if status_window.status is None else [status_window.status]
