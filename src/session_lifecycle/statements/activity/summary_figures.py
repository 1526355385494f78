"""The figures that a `SessionSummary` adds to a session."""

from collections.abc import Sequence
from datetime import datetime
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
from sqlalchemy.dialects.postgresql import ARRAY, aggregate_order_by

from session_lifecycle.models.messages import MessageRole
from session_lifecycle.models.summaries import MOST_NAMES, PREVIEW_CHARACTERS
from session_lifecycle.statements import tables
from session_lifecycle.statements.activity.messages import NEWEST_FIRST, OLDEST_FIRST
from session_lifecycle.statements.activity.run_figures import (
    CLIENT,
    DURATION_MS,
    ENDED,
    RECORDED,
    THREAD_ID,
    TOTALS,
    UNATTRIBUTED_TOKENS,
    RunsShape,
    counted,
    errors_count,
    steps_of_run,
)
from session_lifecycle.statements.sessions.records import belongs_to_record
from session_lifecycle.statements.shared.json_rows import Column
from session_lifecycle.statements.shared.keys import same_session

NEGATIVE_DURATION: ColumnElement[str] = literal_column("'negative_duration'::text", Text)


def with_figures(rows: Select[*tuple[Any, ...]], sessions: FromClause, choice: RunsShape) -> Select[*tuple[Any, ...]]:
    """The rows, with the figures of each row's session in columns named like the fields of a `SessionSummary`.

    The metadata is JSON text.

    Args:
        rows: A few rows, selected from `sessions`: Postgres computes the figures session by session.
        sessions: The sessions, with the columns of `record_columns`.
        choice: The runs that the figures count, together with their steps and messages.
    """
    of_session = belongs_to_record(tables.runs, sessions)
    runs = _runs(of_session, choice)
    earliest = _earliest_run(of_session, choice)
    rows = rows.join(runs, true()).outerjoin(earliest, true())
    totals: dict[str, ColumnElement[Any]] = dict(runs.c.items())
    if not choice.narrows:
        totals |= {name: sessions.c[f"record_{name}"] for name in TOTALS}
        if not choice.include_open:
            open_runs = _open_runs(of_session)
            rows = rows.join(open_runs, true())
            # The session's totals do not count the late usage of an open run, so the difference may be negative.
            totals |= {name: func.greatest(totals[name] - open_runs.c[name], 0, type_=Numeric) for name in TOTALS}
    tokens_total = totals["tokens_in"] + totals["tokens_out"] + runs.c.tokens_unattributed
    return rows.add_columns(
        *(figure.label(name) for name, figure in totals.items()),
        tokens_total.label("tokens_total"),
        earliest.c.client,
        func.coalesce(cast(earliest.c.metadata, Text), literal_column("'{}'"), type_=Text).label("metadata"),
        *_messages(sessions, choice),
    )


def _runs(of_session: ColumnElement[bool], choice: RunsShape) -> FromClause:
    """One row: the figures over the session's counted runs, or zeros where it has none."""
    steps = steps_of_run()
    first_seen, last_seen = func.min(tables.runs.first_seen), func.max(tables.runs.last_seen)
    figures = {
        "runs_count": func.count(),
        "threads_count": func.count(THREAD_ID.distinct()),
        "steps_count": _sum(steps.c.steps),
        "errors_count": _sum(errors_count(steps)),
        "providers": _sorted(tables.runs.provider, tables.runs.provider.is_not(None)),
        "models": _sorted(tables.runs.model, tables.runs.model.is_not(None)),
        "agents": _sorted(tables.runs.agent_name, tables.runs.agent_name.is_not(None)),
        "first_seen": first_seen,
        "last_seen": last_seen,
        "total_duration_ms": cast(_sum(DURATION_MS), Double),
        "wall_duration_ms": cast(
            func.coalesce(type_coerce(extract("epoch", last_seen - first_seen), Numeric) * 1000, 0), Double
        ),
        "quality_score": func.avg(tables.runs.quality_score),
        **{name: _sum(column) for name, column in TOTALS.items()},
        "tokens_unattributed": _sum(UNATTRIBUTED_TOKENS),
        "flags": _sorted(NEGATIVE_DURATION, tables.runs.ended_at < tables.runs.started_at),
    }
    return (
        select(*(figure.label(name) for name, figure in figures.items()))
        .select_from(tables.runs)
        .join(steps, true())
        .where(of_session, *counted(choice))
        .lateral("runs")
    )


def _earliest_run(of_session: ColumnElement[bool], choice: RunsShape) -> FromClause:
    return (
        select(CLIENT.label("client"), tables.runs.run_metadata.label("metadata"))
        .where(of_session, *counted(choice))
        .order_by(tables.runs.started_at, tables.runs.record_no)
        .limit(1)
        .lateral("earliest")
    )


def _open_runs(of_session: ColumnElement[bool]) -> FromClause:
    totals = [_sum(column).label(name) for name, column in TOTALS.items()]
    return select(*totals).where(of_session, RECORDED, ~ENDED).lateral("open_runs")


def last_prompt_at(of_session: ColumnElement[bool], sessions: Any, choice: RunsShape) -> ColumnElement[datetime]:
    """When the user's last message was created; null where the user has no message.

    Args:
        of_session: Whether a message belongs to the session.
        sessions: The table of the sessions, with which the expression correlates.
        choice: The runs whose messages count.
    """
    prompts = select(tables.messages.created_at).where(
        of_session, *of_counted_runs(choice), tables.messages.role == MessageRole.USER.value
    )
    return prompts.order_by(*NEWEST_FIRST).limit(1).correlate(sessions).scalar_subquery()


def _messages(sessions: FromClause, choice: RunsShape) -> list[ColumnElement[Any]]:
    conditions = messages_of(sessions, choice)

    def preview(order: Sequence[Any], *more: ColumnElement[bool]) -> ColumnElement[str]:
        text = (
            select(func.left(tables.messages.content, PREVIEW_CHARACTERS))
            .where(*conditions, *more)
            .order_by(*order)
            .limit(1)
        )
        return text.correlate(sessions).scalar_subquery()

    count = select(func.count()).select_from(tables.messages).where(*conditions).correlate(sessions).scalar_subquery()
    return [
        count.label("messages_count"),
        preview(OLDEST_FIRST).label("first_message"),
        preview(NEWEST_FIRST).label("last_message"),
        preview(NEWEST_FIRST, tables.messages.role == MessageRole.USER.value).label("last_prompt"),
        last_prompt_at(belongs_to_record(tables.messages, sessions), sessions, choice).label("last_prompt_at"),
    ]


def messages_of(sessions: FromClause, choice: RunsShape) -> list[ColumnElement[bool]]:
    """Conditions on messages: the message belongs to the session, and the choice does not leave out its run."""
    return [belongs_to_record(tables.messages, sessions), *of_counted_runs(choice)]


def of_counted_runs(choice: RunsShape) -> list[ColumnElement[bool]]:
    """Conditions on messages: the choice does not leave out the message's run.

    Where the choice narrows, a message needs a counted run. Where it only leaves out open runs, a message without a run
    counts.
    """
    run = select(tables.runs.run_id).where(
        same_session(tables.runs, tables.messages), tables.runs.run_id == tables.messages.run_id
    )
    if choice.narrows:
        return [run.where(*counted(choice)).correlate(tables.messages).exists()]
    return [] if choice.include_open else [~run.where(RECORDED, ~ENDED).correlate(tables.messages).exists()]


def _sum(column: Column) -> ColumnElement[Any]:
    return func.coalesce(func.sum(column), 0, type_=Numeric)


def _sorted(column: Column, condition: ColumnElement[bool]) -> ColumnElement[Any]:
    """The first distinct values where the condition holds, sorted; an empty array where there are none."""
    values = func.array_agg(aggregate_order_by(column.distinct(), column)).filter(condition)
    return func.coalesce(values, literal_column("'{}'::text[]"), type_=ARRAY(Text))[1:MOST_NAMES]
