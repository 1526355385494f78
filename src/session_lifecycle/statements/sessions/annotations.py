"""The annotations of a session."""

from typing import Any

from sqlalchemy import Select, and_, func, select

from session_lifecycle.statements import tables
from session_lifecycle.statements.sessions.records import preferred_session
from session_lifecycle.statements.shared.kept import LIMIT, OFFSET, OWNER_ID, SESSION_ID, kept
from session_lifecycle.statements.shared.visibility import ViewerShape


@kept
def list_annotations(viewer: ViewerShape, *, has_owner_id: bool) -> Select[*tuple[Any, ...]]:
    """The annotations of the session that rule R15 prefers, by name, then by annotator.

    Binds the viewer, `session_id`, `owner_id`, `limit` and `offset`.
    """
    session = preferred_session(SESSION_ID, viewer, owner_id=OWNER_ID if has_owner_id else None).cte("session")
    is_of_session = and_(
        tables.annotations.user_id == session.c.record_user_id,
        tables.annotations.session_id == session.c.record_session_id,
    )
    columns = {name: getattr(tables.annotations, name) for name in ("name", "score", "label", "comment", "at")}
    return (
        select(*columns.values(), func.nullif(tables.annotations.annotator, "").label("annotator"))
        .join_from(tables.annotations, session, is_of_session)
        .order_by(tables.annotations.name, tables.annotations.annotator)
        .limit(LIMIT)
        .offset(OFFSET)
    )
