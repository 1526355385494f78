"""Messages: those that contain a text, and the newest of a session."""

from typing import Any
from uuid import UUID

from sqlalchemy import ColumnElement, Select, func, select, tuple_

from session_lifecycle.entities import SessionMessageEntity as M
from session_lifecycle.entities import SessionRecordEntity as S
from session_lifecycle.models import Message, Viewer
from session_lifecycle.models.payloads import folded
from session_lifecycle.statements.json_values import fields_of
from session_lifecycle.statements.sessions import preferred_session

OLDEST_FIRST = (M.created_at, M.message_id)
NEWEST_FIRST = (M.created_at.desc(), M.message_id.desc())


def has_message_with(text: str) -> ColumnElement[bool]:
    """True for sessions with a message that contains the text, whatever the case."""
    escaped = folded(text).replace("\\", r"\\").replace("%", r"\%").replace("_", r"\_")
    with_it = select(M.user_id, M.session_id).where(M.content_folded.like(f"%{escaped}%"))
    return tuple_(S.user_id, S.session_id).in_(with_it)


def chat_history(
    session_id: str, viewer: Viewer, *, owner_id: UUID | None, limit: int | None, max_characters: int | None
) -> Select[*tuple[Any, ...]]:
    """The newest messages of the session that fit into both bounds, oldest first."""
    session = preferred_session(session_id, viewer, owner_id=owner_id).cte("session")
    newest = (
        select(*fields_of(M, Message).values())
        .join(session, (M.user_id == session.c.record_user_id) & (M.session_id == session.c.record_session_id))
        .order_by(*NEWEST_FIRST)
        .limit(limit)
        .subquery("newest")
    )
    # Of this message and all newer ones together: what fits is an unbroken run up to the newest.
    so_far = func.sum(func.char_length(newest.c.content)).over(
        order_by=(newest.c.created_at.desc(), newest.c.message_id.desc())
    )
    measured = select(newest, so_far.label("so_far")).subquery("measured")
    statement = select(*(measured.c[name] for name in Message.model_fields)).order_by(
        measured.c.created_at, measured.c.message_id
    )
    return statement if max_characters is None else statement.where(measured.c.so_far <= max_characters)
