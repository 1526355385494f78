"""The figures of a `SessionSummary`, beside rows of sessions."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Double,
    FromClause,
    Numeric,
    Select,
    Text,
    cast,
    extract,
    func,
    literal_column,
    select,
    true,
    type_coerce,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB, aggregate_order_by

from session_lifecycle.entities import SessionMessageEntity as M
from session_lifecycle.entities import SessionRunEntity as R
from session_lifecycle.models.activity import MessageRole
from session_lifecycle.models.activity_reads import PREVIEW_CHARACTERS, RunChoice
from session_lifecycle.statements.json_values import Column
from session_lifecycle.statements.messages import NEWEST_FIRST, OLDEST_FIRST
from session_lifecycle.statements.run_figures import (
    CLIENT,
    DURATION_MS,
    ENDED,
    RECORDED,
    THREAD_ID,
    TOTALS,
    UNATTRIBUTED_TOKENS,
    counted,
    errors_count,
    steps_of_run,
)

NEGATIVE_DURATION: ColumnElement[str] = literal_column("'negative_duration'::text", Text)


def with_figures(rows: Select[*tuple[Any, ...]], sessions: FromClause, choice: RunChoice) -> Select[*tuple[Any, ...]]:
    """The rows, and the figures of each one's session as columns named by the fields of a `SessionSummary`.

    Args:
        rows: Few rows, selected from `sessions`: the figures are looked up session by session.
        sessions: Where the sessions' records are, as `record_columns` names them.
        choice: The runs that are counted, and with them their steps and messages.
    """
    of_session = (R.user_id == sessions.c.record_user_id, R.session_id == sessions.c.record_session_id)
    runs = _runs(of_session, choice)
    earliest = _earliest_run(of_session, choice)
    rows = rows.join(runs, true()).outerjoin(earliest, true())
    totals: dict[str, ColumnElement[Any]] = dict(runs.c.items())
    if not choice.narrows:
        totals |= {name: sessions.c[f"record_{name}"] for name in TOTALS}
        if not choice.include_open:
            open_runs = _open_runs(of_session)
            rows = rows.join(open_runs, true())
            # Late usage of an open run is not in the session's totals.
            totals |= {name: func.greatest(totals[name] - open_runs.c[name], 0, type_=Numeric) for name in TOTALS}
    tokens_total = totals["tokens_in"] + totals["tokens_out"] + runs.c.tokens_unattributed
    return rows.add_columns(
        *(figure.label(name) for name, figure in totals.items()),
        tokens_total.label("tokens_total"),
        earliest.c.client,
        func.coalesce(earliest.c.metadata, literal_column("'{}'::jsonb"), type_=JSONB).label("metadata"),
        *_messages(sessions, choice),
    )


def _runs(of_session: Sequence[ColumnElement[bool]], choice: RunChoice) -> FromClause:
    """One row: the figures over the session's runs that are counted, zeros without any."""
    steps = steps_of_run()
    first_seen, last_seen = func.min(R.first_seen), func.max(R.last_seen)
    figures = {
        "runs_count": func.count(),
        "threads_count": func.count(THREAD_ID.distinct()),
        "steps_count": _sum(steps.c.steps),
        "errors_count": _sum(errors_count(steps)),
        "providers": _sorted(R.provider, R.provider.is_not(None)),
        "models": _sorted(R.model, R.model.is_not(None)),
        "agents": _sorted(R.agent_name, R.agent_name.is_not(None)),
        "first_seen": first_seen,
        "last_seen": last_seen,
        "total_duration_ms": cast(_sum(DURATION_MS), Double),
        "wall_duration_ms": cast(
            func.coalesce(type_coerce(extract("epoch", last_seen - first_seen), Numeric) * 1000, 0), Double
        ),
        "quality_score": func.avg(R.quality_score),
        **{name: _sum(column) for name, column in TOTALS.items()},
        "tokens_unattributed": _sum(UNATTRIBUTED_TOKENS),
        "flags": _sorted(NEGATIVE_DURATION, R.ended_at < R.started_at),
    }
    return (
        select(*(figure.label(name) for name, figure in figures.items()))
        .select_from(R)
        .join(steps, true())
        .where(*of_session, *counted(choice))
        .lateral("runs")
    )


def _earliest_run(of_session: Sequence[ColumnElement[bool]], choice: RunChoice) -> FromClause:
    return (
        select(CLIENT.label("client"), R.run_metadata.label("metadata"))
        .where(*of_session, *counted(choice))
        .order_by(R.started_at, R.run_id)
        .limit(1)
        .lateral("earliest")
    )


def _open_runs(of_session: Sequence[ColumnElement[bool]]) -> FromClause:
    totals = [_sum(column).label(name) for name, column in TOTALS.items()]
    return select(*totals).where(*of_session, RECORDED, ~ENDED).lateral("open_runs")


def _messages(sessions: FromClause, choice: RunChoice) -> list[ColumnElement[Any]]:
    conditions = messages_of(sessions, choice)

    def preview(order: Sequence[Any], *more: ColumnElement[bool]) -> ColumnElement[str]:
        text = select(func.left(M.content, PREVIEW_CHARACTERS)).where(*conditions, *more).order_by(*order).limit(1)
        return text.correlate(sessions).scalar_subquery()

    count = select(func.count()).select_from(M).where(*conditions).correlate(sessions).scalar_subquery()
    return [
        count.label("messages_count"),
        preview(OLDEST_FIRST).label("first_message"),
        preview(NEWEST_FIRST).label("last_message"),
        preview(NEWEST_FIRST, M.role == MessageRole.USER.value).label("last_prompt"),
    ]


def messages_of(sessions: FromClause, choice: RunChoice) -> list[ColumnElement[bool]]:
    """Conditions on messages: of the session, and of its runs that are counted."""
    conditions = [M.user_id == sessions.c.record_user_id, M.session_id == sessions.c.record_session_id]
    run = select(R.run_id).where(R.user_id == M.user_id, R.session_id == M.session_id, R.run_id == M.run_id)
    if choice.narrows:
        conditions.append(run.where(*counted(choice)).correlate(M).exists())
    elif not choice.include_open:
        conditions.append(~run.where(RECORDED, ~ENDED).correlate(M).exists())
    return conditions


def _sum(column: Column) -> ColumnElement[Any]:
    return func.coalesce(func.sum(column), 0, type_=Numeric)


def _sorted(column: Column, condition: ColumnElement[bool]) -> ColumnElement[Any]:
    """Each value once, where the condition holds; an empty array without any."""
    values = func.array_agg(aggregate_order_by(column.distinct(), column)).filter(condition)
    return func.coalesce(values, literal_column("'{}'::text[]"), type_=ARRAY(Text))
