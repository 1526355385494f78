"""One session with its figures, runs and messages."""

from datetime import timedelta
from typing import Any

from sqlalchemy import Select, Text, cast, select

from session_lifecycle.models import Message, Viewer
from session_lifecycle.models.run_filters import RunChoice
from session_lifecycle.models.session_details import OneDetail
from session_lifecycle.statements import tables
from session_lifecycle.statements.activity.messages import OLDEST_FIRST
from session_lifecycle.statements.activity.run_figures import RunsShape, counted, shape_of_runs
from session_lifecycle.statements.activity.runs import run_details
from session_lifecycle.statements.activity.sizes import Measure, size, sizes_of_runs
from session_lifecycle.statements.activity.summary_figures import messages_of, with_figures
from session_lifecycle.statements.sessions.records import belongs_to_record, preferred_session, with_status
from session_lifecycle.statements.shared.json_rows import fields_of, json_array, json_object, or_empty
from session_lifecycle.statements.shared.kept import LIMIT, OFFSET, OWNER_ID, SESSION_ID, KeptStatement, kept
from session_lifecycle.statements.shared.visibility import ViewerShape, shape_of_viewer


def find_session_detail(
    wanted: OneDetail, viewer: Viewer, abandon_after: timedelta
) -> tuple[KeptStatement, dict[str, Any]]:
    """The statement of `get_session_detail`, and the parameters that it binds."""
    seen, parameters = shape_of_viewer(viewer)
    choice, of_choice = shape_of_runs(RunChoice(project=wanted.project))
    statement = get_session_detail(
        seen,
        choice,
        has_owner_id=wanted.owner_id is not None,
        payloads=wanted.payloads,
        limits_steps=wanted.steps_limit is not None,
        abandon_after=abandon_after,
    )
    return statement, {**parameters, **of_choice, **wanted.model_dump(), "steps_offset": 0, "as_of": None}


@kept
def get_session_detail(
    viewer: ViewerShape,
    choice: RunsShape,
    *,
    has_owner_id: bool,
    payloads: bool,
    limits_steps: bool,
    abandon_after: timedelta,
) -> Select[*tuple[Any, ...]]:
    """At most one row: the session, its figures, and a page of its runs and one of its messages as JSON.

    One statement answers all of it, because on the pool each statement has its own snapshot. Binds the viewer, the
    choice, `session_id`, `owner_id`, `limit`, `offset`, `steps_limit`, `steps_offset` and `as_of`.
    """
    preferred = preferred_session(SESSION_ID, viewer, owner_id=OWNER_ID if has_owner_id else None)
    session = with_status(preferred, abandon_after).cte("session")
    of_choice = (
        select(tables.runs.user_id, tables.runs.run_id, tables.runs.session_id)
        .join(session, belongs_to_record(tables.runs, session))
        .where(*counted(choice))
    )
    order = (tables.runs.started_at, tables.runs.record_no)
    chosen = of_choice.order_by(*order).limit(LIMIT).offset(OFFSET).cte("chosen")
    messages_of_page = (
        select(tables.messages.__table__)
        .where(*messages_of(session, choice))
        .order_by(*OLDEST_FIRST)
        .limit(LIMIT)
        .offset(OFFSET)
    )
    of_page = messages_of_page.with_only_columns(tables.messages.content, *OLDEST_FIRST).select_from(session)
    sizes = [*sizes_of_runs(chosen, limits_steps=limits_steps), size(text=of_page.subquery("of_page").c.content)]
    measure = Measure(sizes, payloads=payloads)
    details = run_details(chosen, measure, limits_steps=limits_steps).subquery("details")
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
    return detail.where(of_choice.exists()) if choice.narrows else detail
