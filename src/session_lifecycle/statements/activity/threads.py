"""The threads of a session: its runs, grouped by their root."""

from datetime import timedelta
from typing import Any

from sqlalchemy import ColumnElement, FromClause, Select, Text, bindparam, case, cast, func, null, or_, select, true

from session_lifecycle.models import Message, MessageRole, Step
from session_lifecycle.statements import tables
from session_lifecycle.statements.activity.messages import NEWEST_FIRST, OLDEST_FIRST
from session_lifecycle.statements.activity.run_figures import RECORDED, STEP_ORDER, THREAD_ID, TOTALS, RunsShape
from session_lifecycle.statements.activity.runs import with_payloads
from session_lifecycle.statements.activity.sizes import STEPS, Measure, size
from session_lifecycle.statements.activity.summary_figures import with_figures
from session_lifecycle.statements.sessions.records import belongs_to_record, preferred_session, with_status
from session_lifecycle.statements.sessions.row_filters import TOOL
from session_lifecycle.statements.shared.json_rows import fields_of, json_array, json_object, or_empty
from session_lifecycle.statements.shared.kept import LIMIT, OWNER_ID, SESSION_ID, kept
from session_lifecycle.statements.shared.keys import same_run, same_session
from session_lifecycle.statements.shared.paging import comes_after
from session_lifecycle.statements.shared.visibility import ViewerShape


@kept
def list_threads(
    viewer: ViewerShape, *, has_owner_id: bool, has_anchor: bool, backwards: bool, abandon_after: timedelta
) -> Select[*tuple[Any, ...]]:
    """At most one row: the session, its figures, and a page of its threads, oldest first, as JSON.

    `is_anchored` says whether the session has the thread after which, or `backwards` before which, the page begins.
    Binds the viewer, `session_id`, `owner_id`, `anchor`, `limit` and `as_of`.
    """
    preferred = preferred_session(SESSION_ID, viewer, owner_id=OWNER_ID if has_owner_id else None)
    session = with_status(preferred, abandon_after).cte("session")
    runs = _runs(session)
    threads = _threads(runs)
    order = (threads.c.root_started_at, threads.c.root_order)
    page = select(threads).order_by(*((part.desc() for part in order) if backwards else order)).limit(LIMIT)
    is_anchored: ColumnElement[bool] = true()
    if has_anchor:
        position = select(*order).where(threads.c.thread_id == bindparam("anchor", type_=Text)).cte("position")
        page = page.join(position, comes_after(order, [*position.c], descending=backwards))
        is_anchored = select(position.c.root_order).exists()
    chosen = page.cte("page")
    measure = Measure(_sizes(session, runs, chosen), payloads=True)
    return with_figures(select(*session.c).select_from(session), session, RunsShape()).add_columns(
        is_anchored.label("is_anchored"),
        case((measure.is_within, _bodies(session, runs, chosen, measure))).label("threads"),
        measure.has_payloads.label("has_payloads"),
        measure.is_within.label("is_within"),
    )


def _sizes(session: FromClause, runs: FromClause, page: FromClause) -> list[Select[*tuple[Any, ...]]]:
    """The sizes of the actions, tool calls, thoughts and prompts of the page's threads."""
    of_page = runs.join(page, page.c.thread_id == runs.c.thread_id)
    thoughts = (
        size(parts=func.count(), text=tables.messages.content).where(*_is_thought(runs)).correlate(runs).lateral("said")
    )
    prompts = select(_prompt(session, page).label("prompt")).select_from(page.join(session, true())).subquery("prompts")
    return [
        size(parts=func.count()).select_from(of_page),
        size(parts=func.count(), payloads_of=STEPS)
        .select_from(of_page.join(tables.steps, same_run(runs.c, tables.steps)))
        .where(tables.steps.kind == TOOL),
        select(*(func.sum(column) for column in thoughts.c)).select_from(of_page.join(thoughts, true())),
        size(text=prompts.c.prompt),
    ]


def _is_thought(runs: FromClause) -> tuple[ColumnElement[bool], ...]:
    return (
        same_session(tables.messages, runs.c),
        tables.messages.run_id == runs.c.run_id,
        tables.messages.role == MessageRole.THOUGHT.value,
    )


def _prompt(session: FromClause, page: FromClause) -> ColumnElement[str]:
    """The last message of the user in the root of a thread."""
    return (
        select(tables.messages.content)
        .where(
            belongs_to_record(tables.messages, session),
            tables.messages.run_id == page.c.thread_id,
            tables.messages.role == MessageRole.USER.value,
        )
        .order_by(*NEWEST_FIRST)
        .limit(1)
        .correlate(session, page)
        .scalar_subquery()
    )


def _runs(session: FromClause) -> FromClause:
    totals = [column.label(name) for name, column in TOTALS.items()]
    of_session = belongs_to_record(tables.runs, session)
    columns = (
        tables.runs.user_id,
        tables.runs.run_id,
        tables.runs.session_id,
        tables.runs.model,
        tables.runs.started_at,
        tables.runs.ended_at,
        tables.runs.record_no,
        THREAD_ID.label("thread_id"),
    )
    return select(*columns, *totals).join(session, of_session).where(RECORDED).cte("runs")


def _threads(runs: FromClause) -> FromClause:
    """One row per thread.

    The start of a root in another session is not used: the viewer may not see that session.
    """
    started_at = func.min(runs.c.started_at)
    order = func.min(runs.c.record_no)
    is_root = runs.c.run_id == runs.c.thread_id
    is_open = func.bool_or(runs.c.ended_at.is_(None))
    return (
        select(
            runs.c.thread_id,
            func.coalesce(started_at.filter(is_root), started_at).label("root_started_at"),
            func.coalesce(order.filter(is_root), order).label("root_order"),
            started_at.label("started_at"),
            case((is_open, null()), else_=func.max(runs.c.ended_at)).label("ended_at"),
            func.count().label("runs_count"),
            *(func.sum(runs.c[name]).label(name) for name in TOTALS),
        )
        .group_by(runs.c.thread_id)
        .cte("threads")
    )


def _bodies(session: FromClause, runs: FromClause, page: FromClause, measure: Measure) -> ColumnElement[str]:
    """The page's threads as one JSON array; each has the fields of a `Thread`."""
    actions = _actions(runs, page, measure)
    figures = {name: column for name, column in page.c.items() if not name.startswith("root_")}
    body = json_object({**figures, "prompt": _prompt(session, page), "actions": or_empty(actions.c.actions)})
    threads = select(cast(or_empty(json_array(body, (page.c.root_started_at, page.c.root_order))), Text))
    return (
        threads.select_from(page.outerjoin(actions, actions.c.thread_id == page.c.thread_id))
        .correlate(session)
        .scalar_subquery()
    )


def _actions(runs: FromClause, page: FromClause, measure: Measure) -> FromClause:
    """The actions of each thread on the page; a thread without actions has no row."""
    tools = (
        select(
            json_array(json_object(with_payloads(fields_of(tables.steps, Step), measure)), STEP_ORDER).label("bodies")
        )
        .where(same_run(tables.steps, runs.c), tables.steps.kind == TOOL)
        .correlate(runs)
        .lateral("tools")
    )
    thoughts = (
        select(json_array(json_object(fields_of(tables.messages, Message)), OLDEST_FIRST).label("bodies"))
        .where(*_is_thought(runs))
        .correlate(runs)
        .lateral("thoughts")
    )
    action = json_object(
        {
            "run_id": runs.c.run_id,
            "model": runs.c.model,
            "started_at": runs.c.started_at,
            "tools": or_empty(tools.c.bodies),
            "thoughts": or_empty(thoughts.c.bodies),
        }
    )
    return (
        select(runs.c.thread_id, json_array(action, (runs.c.started_at, runs.c.record_no)).label("actions"))
        .join(page, page.c.thread_id == runs.c.thread_id)
        .join(tools, true())
        .join(thoughts, true())
        .where(or_(tools.c.bodies.is_not(None), thoughts.c.bodies.is_not(None)))
        .group_by(runs.c.thread_id)
        .subquery("actions")
    )
