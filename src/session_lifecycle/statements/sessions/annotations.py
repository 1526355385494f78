"""The annotations of a session."""

from typing import Any
from uuid import UUID

from sqlalchemy import Select, and_, func, select

from session_lifecycle.models import Viewer
from session_lifecycle.statements import tables
from session_lifecycle.statements.sessions.records import preferred_session


def list_annotations(
    session_id: str, viewer: Viewer, *, owner_id: UUID | None, limit: int, offset: int
) -> Select[*tuple[Any, ...]]:
    """The annotations of the session that rule R15 prefers, by name, then by annotator."""
    session = preferred_session(session_id, viewer, owner_id=owner_id).cte("session")
    is_of_session = and_(
        tables.annotations.user_id == session.c.record_user_id,
        tables.annotations.session_id == session.c.record_session_id,
    )
    columns = {name: getattr(tables.annotations, name) for name in ("name", "score", "label", "comment", "at")}
    return (
        select(*columns.values(), func.nullif(tables.annotations.annotator, "").label("annotator"))
        .join_from(tables.annotations, session, is_of_session)
        .order_by(tables.annotations.name, tables.annotations.annotator)
        .limit(limit)
        .offset(offset)
    )
