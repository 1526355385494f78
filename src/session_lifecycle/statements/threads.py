"""The threads of a session: its runs by their root."""

from datetime import timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import ColumnElement, FromClause, Select, Text, and_, case, cast, func, null, or_, select, true, tuple_

from session_lifecycle.entities import SessionMessageEntity as M
from session_lifecycle.entities import SessionRunEntity as R
from session_lifecycle.entities import SessionStepEntity as T
from session_lifecycle.models import Message, MessageRole, Step, Viewer
from session_lifecycle.models.activity_reads import RunChoice
from session_lifecycle.statements.json_values import fields_of, json_array, json_object, or_empty
from session_lifecycle.statements.messages import NEWEST_FIRST, OLDEST_FIRST
from session_lifecycle.statements.run_figures import RECORDED, THREAD_ID, TOOL, TOTALS
from session_lifecycle.statements.runs import STEP_ORDER
from session_lifecycle.statements.session_figures import with_figures
from session_lifecycle.statements.sessions import preferred_session, with_status


def list_threads(
    session_id: str,
    viewer: Viewer,
    *,
    owner_id: UUID | None,
    limit: int,
    after: str | None,
    before: str | None,
    abandon_after: timedelta,
) -> Select[*tuple[Any, ...]]:
    """At most one row: the session, its figures, and as JSON a page of its threads and one more, oldest first.

    `is_anchored` says whether the session has the thread the page begins at.
    """
    session = with_status(preferred_session(session_id, viewer, owner_id=owner_id), abandon_after).cte("session")
    runs = _runs(session)
    threads = _threads(runs)
    order = (threads.c.root_started_at, threads.c.thread_id)
    page = select(threads).order_by(*(order if before is None else (part.desc() for part in order))).limit(limit + 1)
    anchor = before if after is None else after
    is_anchored: ColumnElement[bool] = true()
    if anchor is not None:
        here = select(*order).where(threads.c.thread_id == anchor).cte("here")
        there_key, here_key = tuple_(*order), tuple_(*here.c)
        page = page.join(here, there_key > here_key if before is None else there_key < here_key)
        is_anchored = select(here.c.thread_id).exists()
    return with_figures(select(*session.c).select_from(session), session, RunChoice()).add_columns(
        is_anchored.label("is_anchored"), _bodies(session, runs, page.cte("page")).label("threads")
    )


def _runs(session: FromClause) -> FromClause:
    totals = [column.label(name) for name, column in TOTALS.items()]
    of_session = and_(R.user_id == session.c.record_user_id, R.session_id == session.c.record_session_id)
    columns = (R.user_id, R.run_id, R.session_id, R.model, R.started_at, R.ended_at, THREAD_ID.label("thread_id"))
    return select(*columns, *totals).join(session, of_session).where(RECORDED).cte("runs")


def _threads(runs: FromClause) -> FromClause:
    """One row per thread. A root in another session does not say when it began: nobody here need see that one."""
    started_at = func.min(runs.c.started_at)
    root_started_at = started_at.filter(runs.c.run_id == runs.c.thread_id)
    is_open = func.bool_or(runs.c.ended_at.is_(None))
    return (
        select(
            runs.c.thread_id,
            func.coalesce(root_started_at, started_at).label("root_started_at"),
            started_at.label("started_at"),
            case((is_open, null()), else_=func.max(runs.c.ended_at)).label("ended_at"),
            func.count().label("runs_count"),
            *(func.sum(runs.c[name]).label(name) for name in TOTALS),
        )
        .group_by(runs.c.thread_id)
        .cte("threads")
    )


def _bodies(session: FromClause, runs: FromClause, page: FromClause) -> ColumnElement[str]:
    """The page's threads as one JSON array of the fields of a `Thread`."""
    actions = _actions(runs, page)
    prompt = (
        select(M.content)
        .where(
            M.user_id == session.c.record_user_id,
            M.session_id == session.c.record_session_id,
            M.run_id == page.c.thread_id,
            M.role == MessageRole.USER.value,
        )
        .order_by(*NEWEST_FIRST)
        .limit(1)
        .correlate(session, page)
        .scalar_subquery()
    )
    figures = {name: column for name, column in page.c.items() if name != "root_started_at"}
    body = json_object({**figures, "prompt": prompt, "actions": or_empty(actions.c.actions)})
    threads = select(cast(or_empty(json_array(body, (page.c.root_started_at, page.c.thread_id))), Text))
    return (
        threads.select_from(page.outerjoin(actions, actions.c.thread_id == page.c.thread_id))
        .correlate(session)
        .scalar_subquery()
    )


def _actions(runs: FromClause, page: FromClause) -> FromClause:
    """The actions of each thread on the page that has any."""
    tools = (
        select(json_array(json_object(fields_of(T, Step)), STEP_ORDER).label("found"))
        .where(T.user_id == runs.c.user_id, T.run_id == runs.c.run_id, T.kind == TOOL)
        .correlate(runs)
        .lateral("tools")
    )
    thoughts = (
        select(json_array(json_object(fields_of(M, Message)), OLDEST_FIRST).label("found"))
        .where(
            M.user_id == runs.c.user_id,
            M.session_id == runs.c.session_id,
            M.run_id == runs.c.run_id,
            M.role == MessageRole.THOUGHT.value,
        )
        .correlate(runs)
        .lateral("thoughts")
    )
    action = json_object(
        {
            "run_id": runs.c.run_id,
            "model": runs.c.model,
            "started_at": runs.c.started_at,
            "tools": or_empty(tools.c.found),
            "thoughts": or_empty(thoughts.c.found),
        }
    )
    return (
        select(runs.c.thread_id, json_array(action, (runs.c.started_at, runs.c.run_id)).label("actions"))
        .join(page, page.c.thread_id == runs.c.thread_id)
        .join(tools, true())
        .join(thoughts, true())
        .where(or_(tools.c.found.is_not(None), thoughts.c.found.is_not(None)))
        .group_by(runs.c.thread_id)
        .subquery("actions")
    )
