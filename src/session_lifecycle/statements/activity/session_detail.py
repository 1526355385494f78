"""One session with its figures, runs and messages."""

from datetime import timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import Select, Text, cast, select

from session_lifecycle.models import Message, Viewer
from session_lifecycle.models.run_filters import RunChoice
from session_lifecycle.statements import tables
from session_lifecycle.statements.activity.messages import OLDEST_FIRST
from session_lifecycle.statements.activity.run_figures import counted
from session_lifecycle.statements.activity.runs import run_details
from session_lifecycle.statements.activity.summary_figures import messages_of, with_figures
from session_lifecycle.statements.sessions.records import belongs_to_record, preferred_session, with_status
from session_lifecycle.statements.shared.json_rows import fields_of, json_array, json_object, or_empty


def get_session_detail(
    session_id: str, viewer: Viewer, *, owner_id: UUID | None, project: str | None, abandon_after: timedelta
) -> Select[*tuple[Any, ...]]:
    """At most one row: the session, its figures, and its runs and messages as JSON.

    One statement answers all of it, because on the pool each statement has its own snapshot.
    """
    choice = RunChoice(project=project)
    session = with_status(preferred_session(session_id, viewer, owner_id=owner_id), abandon_after).cte("session")
    chosen = (
        select(tables.runs.user_id, tables.runs.run_id, tables.runs.session_id)
        .join(session, belongs_to_record(tables.runs, session))
        .where(*counted(choice))
        .cte("chosen")
    )
    details = run_details(chosen).subquery("details")
    runs = json_array(details.c.body, (details.c.started_at, details.c.run_id))
    messages = json_array(json_object(fields_of(tables.messages, Message)), OLDEST_FIRST)
    detail = with_figures(select(*session.c).select_from(session), session, choice).add_columns(
        select(cast(or_empty(runs), Text)).scalar_subquery().label("runs"),
        select(cast(or_empty(messages), Text))
        .where(*messages_of(session, choice))
        .correlate(session)
        .scalar_subquery()
        .label("messages"),
    )
    return detail if project is None else detail.where(select(chosen.c.run_id).exists())
