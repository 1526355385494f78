"""One session with its figures, runs and messages."""

from datetime import timedelta
from functools import lru_cache
from typing import Any
from uuid import UUID

from sqlalchemy import ColumnElement, Select, Text, cast, select

from session_lifecycle.models import Message, Viewer
from session_lifecycle.models.run_filters import RunChoice
from session_lifecycle.models.session_details import OneDetail
from session_lifecycle.statements import tables
from session_lifecycle.statements.activity.messages import OLDEST_FIRST
from session_lifecycle.statements.activity.run_figures import counted
from session_lifecycle.statements.activity.runs import run_details
from session_lifecycle.statements.activity.sizes import Measure, size, sizes_of_runs
from session_lifecycle.statements.activity.summary_figures import messages_of, with_figures
from session_lifecycle.statements.sessions.records import belongs_to_record, preferred_session, with_status
from session_lifecycle.statements.shared.json_rows import fields_of, json_array, json_object, or_empty
from session_lifecycle.statements.shared.kept import LIMIT, MOST_KEPT, OFFSET, OWNER_ID, SESSION_ID
from session_lifecycle.statements.shared.visibility import AnyViewer, ViewerShape, shape_of_viewer


def find_session_detail(
    wanted: OneDetail, viewer: Viewer, abandon_after: timedelta
) -> tuple[Select[*tuple[Any, ...]], dict[str, Any] | None]:
    """The statement of `get_session_detail`, and the parameters that a kept statement binds."""
    if wanted.project is None:
        shape, of_viewer = shape_of_viewer(viewer)
        kept = detail_of_all_projects(
            shape, has_owner_id=wanted.owner_id is not None, payloads=wanted.payloads, abandon_after=abandon_after
        )
        return kept, {**of_viewer, **wanted.model_dump(), "as_of": None}
    statement = get_session_detail(
        wanted.session_id,
        viewer,
        owner_id=wanted.owner_id,
        project=wanted.project,
        limit=wanted.limit,
        offset=wanted.offset,
        payloads=wanted.payloads,
        abandon_after=abandon_after,
    )
    return statement, None


@lru_cache(maxsize=MOST_KEPT)
def detail_of_all_projects(
    viewer: ViewerShape, *, has_owner_id: bool, payloads: bool, abandon_after: timedelta
) -> Select[*tuple[Any, ...]]:
    return get_session_detail(
        SESSION_ID,
        viewer,
        owner_id=OWNER_ID if has_owner_id else None,
        project=None,
        limit=LIMIT,
        offset=OFFSET,
        payloads=payloads,
        abandon_after=abandon_after,
    )


def get_session_detail(
    session_id: str | ColumnElement[str],
    viewer: AnyViewer,
    *,
    owner_id: UUID | ColumnElement[UUID] | None,
    project: str | None,
    limit: int | ColumnElement[int],
    offset: int | ColumnElement[int],
    payloads: bool,
    abandon_after: timedelta,
) -> Select[*tuple[Any, ...]]:
    """At most one row: the session, its figures, and a page of its runs and one of its messages as JSON.

    One statement answers all of it, because on the pool each statement has its own snapshot.
    """
    choice = RunChoice(project=project)
    session = with_status(preferred_session(session_id, viewer, owner_id=owner_id), abandon_after).cte("session")
    of_choice = (
        select(tables.runs.user_id, tables.runs.run_id, tables.runs.session_id)
        .join(session, belongs_to_record(tables.runs, session))
        .where(*counted(choice))
    )
    order = (tables.runs.started_at, tables.runs.record_no)
    chosen = of_choice.order_by(*order).limit(limit).offset(offset).cte("chosen")
    messages_of_page = (
        select(tables.messages.__table__)
        .where(*messages_of(session, choice))
        .order_by(*OLDEST_FIRST)
        .limit(limit)
        .offset(offset)
    )
    of_page = messages_of_page.with_only_columns(tables.messages.content, *OLDEST_FIRST).select_from(session)
    measure = Measure([*sizes_of_runs(chosen), size(text=of_page.subquery("of_page").c.content)], payloads=payloads)
    details = run_details(chosen, measure).subquery("details")
    runs = json_array(details.c.body, (details.c.started_at, details.c.record_no))
    said = (
        messages_of_page.with_only_columns(
            json_object(fields_of(tables.messages, Message)).label("body"), *OLDEST_FIRST
        )
        .where(measure.is_within)
        .correlate(session)
        .subquery("said")
    )
    messages = json_array(said.c.body, (said.c.created_at, said.c.record_no))
    detail = with_figures(select(*session.c).select_from(session), session, choice).add_columns(
        select(cast(or_empty(runs), Text)).scalar_subquery().label("runs"),
        select(cast(or_empty(messages), Text)).select_from(said).scalar_subquery().label("messages"),
        measure.has_payloads.label("has_payloads"),
        measure.is_within.label("is_within"),
    )
    return detail if project is None else detail.where(of_choice.exists())
