"""Messages: the search for a text, and the newest messages of a session."""

from typing import Any
from uuid import UUID

from sqlalchemy import ColumnElement, Select, func, select, true, tuple_

from session_lifecycle.models import Message, Viewer
from session_lifecycle.models.json_payloads import folded
from session_lifecycle.statements import tables
from session_lifecycle.statements.sessions.records import belongs_to_record, preferred_session
from session_lifecycle.statements.shared.json_rows import fields_of

OLDEST_FIRST = (tables.messages.created_at, tables.messages.record_no)
NEWEST_FIRST = (tables.messages.created_at.desc(), tables.messages.record_no.desc())


def has_message_with(text: str) -> ColumnElement[bool]:
    """Whether a session has a message that contains the text, in any case."""
    escaped = folded(text).replace("\\", r"\\").replace("%", r"\%").replace("_", r"\_")
    containing = select(tables.messages.user_id, tables.messages.session_id).where(
        tables.messages.content_folded.like(f"%{escaped}%")
    )
    return tuple_(tables.sessions.user_id, tables.sessions.session_id).in_(containing)


def chat_history(
    session_id: str,
    viewer: Viewer,
    *,
    owner_id: UUID | None,
    limit: int,
    max_characters: int | None,
    most_bytes: int,
    exclude_run_id: str | None,
) -> Select[*tuple[Any, ...]]:
    """The newest messages of the session, but for those of the run, that fit into all limits, oldest first."""
    session = preferred_session(session_id, viewer, owner_id=owner_id).cte("session")
    newest = (
        select(*fields_of(tables.messages, Message).values(), tables.messages.record_no)
        .join(session, belongs_to_record(tables.messages, session))
        .where(true() if exclude_run_id is None else tables.messages.run_id.is_distinct_from(exclude_run_id))
        .order_by(*NEWEST_FIRST)
        .limit(limit)
        .subquery("newest")
    )
    # The size of this message and of all newer ones. The sum only grows towards older messages, so the messages that
    # fit are the newest ones without a gap. The number of bytes is in the header of a value: no content is read for it.
    order = (newest.c.created_at.desc(), newest.c.record_no.desc())
    sums = [func.sum(func.octet_length(newest.c.content)).over(order_by=order).label("bytes")]
    if max_characters is not None:
        sums.append(func.sum(func.char_length(newest.c.content)).over(order_by=order).label("characters"))
    measured = select(newest, *sums).subquery("measured")
    fits = [measured.c.bytes <= most_bytes]
    if max_characters is not None:
        fits.append(measured.c.characters <= max_characters)
    return (
        select(*(measured.c[name] for name in Message.model_fields))
        .where(*fits)
        .order_by(measured.c.created_at, measured.c.record_no)
    )
