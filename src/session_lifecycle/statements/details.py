"""One session with all that belongs to it."""

from datetime import timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import Select, Text, and_, cast, select

from session_lifecycle.entities import SessionMessageEntity as M
from session_lifecycle.entities import SessionRunEntity as R
from session_lifecycle.models import Message, Viewer
from session_lifecycle.models.activity_reads import RunChoice
from session_lifecycle.statements.json_values import fields_of, json_array, json_object, or_empty
from session_lifecycle.statements.messages import OLDEST_FIRST
from session_lifecycle.statements.run_figures import counted
from session_lifecycle.statements.runs import run_details
from session_lifecycle.statements.session_figures import messages_of, with_figures
from session_lifecycle.statements.sessions import preferred_session, with_status


def get_session_detail(
    session_id: str, viewer: Viewer, *, owner_id: UUID | None, project: str | None, abandon_after: timedelta
) -> Select[*tuple[Any, ...]]:
    """At most one row: the session, its figures, and its runs and messages as JSON.

    One row of one statement, because on the pool each statement has a snapshot of its own.
    """
    choice = RunChoice(project=project)
    session = with_status(preferred_session(session_id, viewer, owner_id=owner_id), abandon_after).cte("session")
    of_session = and_(R.user_id == session.c.record_user_id, R.session_id == session.c.record_session_id)
    chosen = select(R.user_id, R.run_id, R.session_id).join(session, of_session).where(*counted(choice)).cte("chosen")
    details = run_details(chosen).subquery("details")
    runs = json_array(details.c.body, (details.c.started_at, details.c.run_id))
    messages = json_array(json_object(fields_of(M, Message)), OLDEST_FIRST)
    detail = with_figures(select(*session.c).select_from(session), session, choice).add_columns(
        select(cast(or_empty(runs), Text)).scalar_subquery().label("runs"),
        select(cast(or_empty(messages), Text))
        .where(*messages_of(session, choice))
        .correlate(session)
        .scalar_subquery()
        .label("messages"),
    )
    return detail if project is None else detail.where(select(chosen.c.run_id).exists())
