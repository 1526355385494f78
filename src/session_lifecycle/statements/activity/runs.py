"""Pages of runs, and runs with their steps, messages and events."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from sqlalchemy import (
    ColumnElement,
    Double,
    FromClause,
    Select,
    Text,
    and_,
    case,
    cast,
    select,
    true,
)

from session_lifecycle.models import Message, Run, RunEvent, RunFilters, Step
from session_lifecycle.statements import tables
from session_lifecycle.statements.activity.messages import OLDEST_FIRST
from session_lifecycle.statements.activity.run_figures import (
    DURATION_MS,
    RUNS_AND_SESSIONS,
    STEP_ORDER,
    TOKENS_TOTAL,
    TOTALS,
    RunsShape,
    answered_steps,
    counted,
    errors_count,
    is_event_of,
    is_message_of,
    shape_of_runs,
    steps_of_run,
)
from session_lifecycle.statements.activity.sizes import PAYLOADS, Measure, sizes_of_runs
from session_lifecycle.statements.shared.json_rows import Column, fields_of, json_array, json_object, or_empty
from session_lifecycle.statements.shared.kept import Given, KeptStatement, given, kept
from session_lifecycle.statements.shared.keys import equal_where_given, same_run, same_session
from session_lifecycle.statements.shared.paging import (
    Order,
    PageShape,
    Position,
    beside_total,
    page,
    shape_of_page,
    total,
)
from session_lifecycle.statements.shared.visibility import ViewerShape, shape_of_viewer, visible, visible_run
from session_lifecycle.statements.shared.window import within

RUN_ORDER = Order(tables.runs.started_at, (tables.runs.record_no,))


class RunFiltersShape(NamedTuple):
    """The part of the filters of runs on which the text of a statement depends."""

    viewer: ViewerShape
    choice: RunsShape
    given: Given
    """The filters beside those of the choice."""


def shape_of_run_filters(filters: RunFilters) -> tuple[RunFiltersShape, dict[str, Any]]:
    """The shape of the filters, and the parameters that `chosen_runs` binds."""
    viewer, of_viewer = shape_of_viewer(filters.asker)
    choice, of_choice = shape_of_runs(filters)
    names = ("owner_id", "dataset_id", "agent_name", "since", "until")
    found, of_given = given({name: getattr(filters, name) for name in names})
    return RunFiltersShape(viewer, choice, found), of_viewer | of_choice | of_given


def chosen_runs(shape: RunFiltersShape) -> list[ColumnElement[bool]]:
    """Conditions on `RUNS_AND_SESSIONS`: the viewer sees the run, and the filters choose it."""
    session_id = shape.choice.given.value("session_id")
    # No index on runs begins with the session. The few sessions with the id are found first, and then the runs of each.
    is_visible = (
        [visible_run(shape.viewer)]
        if session_id is None
        else [visible(shape.viewer), tables.sessions.session_id == session_id]
    )
    return [
        *is_visible,
        *counted(shape.choice),
        *equal_where_given(
            (tables.runs.user_id, shape.given.value("owner_id")),
            (tables.sessions.dataset_id, shape.given.value("dataset_id")),
            (tables.runs.agent_name, shape.given.value("agent_name")),
        ),
        *within(tables.runs.started_at, shape.given.value("since"), shape.given.value("until")),
    ]


def list_runs(filters: RunFilters, position: Position | None) -> tuple[KeptStatement, dict[str, Any]]:
    """A page and one row more, in the columns of `beside_total`, and the parameters that the statement binds.

    A row has a run's key, and the run as JSON in `body`.
    """
    shape, parameters = shape_of_run_filters(filters)
    of_page, more = shape_of_page(filters, position)
    of_steps = {"steps_limit": filters.steps_limit, "steps_offset": filters.steps_offset}
    limits_steps = filters.steps_limit is not None or filters.steps_offset > 0
    return _list_runs(shape, of_page, limits_steps=limits_steps), parameters | more | of_steps


@kept
def _list_runs(shape: RunFiltersShape, of_page: PageShape, *, limits_steps: bool) -> Select[*tuple[Any, ...]]:
    chosen = (
        select(tables.runs.user_id, tables.runs.run_id, tables.runs.session_id)
        .select_from(RUNS_AND_SESSIONS)
        .where(*chosen_runs(shape))
    )
    rows = page(chosen, RUN_ORDER, of_page)
    measure = Measure(sizes_of_runs(rows, limits_steps=limits_steps), payloads=True)
    # The details have the places of the page. Joined with the page, they might be built again for each of its rows,
    # because a plan for any limit expects fewer rows.
    names = (*RUN_ORDER.labels, "place")
    found = run_details(rows, measure, limits_steps=limits_steps)
    details = found.add_columns(*(rows.c[name] for name in names)).subquery("details")
    bodies = select(*(details.c[name] for name in names), cast(details.c.body, Text).label("body")).cte("bodies")
    return beside_total(bodies, total(chosen, of_page.total)).add_columns(
        measure.has_payloads.label("has_payloads"), measure.is_within.label("is_within")
    )


def run_details(chosen: FromClause, measure: Measure, *, limits_steps: bool) -> Select[*tuple[Any, ...]]:
    """One row per chosen run: its key, and the fields of a `RunDetail` as JSON in `body`. No row beyond the bounds.

    Args:
        chosen: A few runs: `user_id, run_id, session_id`.
        measure: The size of the answer.
        limits_steps: As for `answered_steps`.
    """
    steps = steps_of_run()
    events = _events(chosen)
    parent = select(tables.sessions.parent_session_id).where(same_session(tables.sessions, tables.runs))
    figures = {
        "parent_session_id": parent.correlate(tables.runs).scalar_subquery(),
        **TOTALS,
        "tokens_total": TOKENS_TOTAL,
        "duration_ms": cast(DURATION_MS, Double),
        "errors_count": errors_count(steps),
        "steps_count": steps.c.steps,
        "steps": or_empty(_steps(measure, limits_steps=limits_steps)),
        "messages": or_empty(_messages()),
        "events": or_empty(events.c.events),
    }
    body = json_object(with_payloads(fields_of(tables.runs, Run), measure) | figures)
    return (
        select(
            tables.runs.user_id,
            tables.runs.run_id,
            tables.runs.started_at,
            tables.runs.record_no,
            body.label("body"),
        )
        .select_from(tables.runs)
        .join(chosen, same_run(chosen.c, tables.runs))
        .join(steps, true())
        .outerjoin(
            events,
            and_(
                events.c.user_id == tables.runs.user_id,
                events.c.session_id == tables.runs.session_id,
                events.c.run_id == tables.runs.run_id,
            ),
        )
        .where(measure.is_within)
    )


def with_payloads(columns: Mapping[str, Column], measure: Measure) -> dict[str, Column]:
    """The columns, with nulls in place of payloads where they would be too large."""
    return {
        name: case((measure.has_payloads, column)) if name in PAYLOADS else column for name, column in columns.items()
    }


def _steps(measure: Measure, *, limits_steps: bool) -> ColumnElement[Any]:
    steps = answered_steps(tables.runs, limits_steps=limits_steps).correlate(tables.runs).lateral("answered")
    columns = {name: steps.c[name] for name in fields_of(tables.steps, Step)}
    order = [steps.c[column.key] for column in STEP_ORDER]
    return select(json_array(json_object(with_payloads(columns, measure)), order)).scalar_subquery()


def _messages() -> ColumnElement[Any]:
    messages = json_array(json_object(fields_of(tables.messages, Message)), OLDEST_FIRST)
    return select(messages).where(*is_message_of(tables.runs)).correlate(tables.runs).scalar_subquery()


def _events(chosen: FromClause) -> FromClause:
    """The events of each run, gathered in one pass.

    The CTE is materialized. Otherwise Postgres may gather the events again for every run.
    """
    events = json_array(
        json_object(fields_of(tables.usage_events, RunEvent)),
        (tables.usage_events.at, tables.usage_events.recorded_at, tables.usage_events.event_id),
    )
    return (
        select(
            tables.usage_events.user_id,
            tables.usage_events.session_id,
            tables.usage_events.run_id,
            events.label("events"),
        )
        .where(*is_event_of(chosen))
        .group_by(tables.usage_events.user_id, tables.usage_events.session_id, tables.usage_events.run_id)
        .cte("events")
        .prefix_with("MATERIALIZED")
    )
