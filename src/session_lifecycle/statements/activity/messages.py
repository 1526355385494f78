"""Messages: the search for a text, and the newest messages of a session."""

from typing import Any

from sqlalchemy import BigInteger, ColumnElement, Select, Text, bindparam, func, select, true, tuple_

from session_lifecycle.models import Message
from session_lifecycle.models.json_payloads import folded
from session_lifecycle.statements import tables
from session_lifecycle.statements.sessions.records import belongs_to_record, preferred_session
from session_lifecycle.statements.shared.json_rows import fields_of
from session_lifecycle.statements.shared.kept import LIMIT, OWNER_ID, SESSION_ID, kept
from session_lifecycle.statements.shared.visibility import ViewerShape

OLDEST_FIRST = (tables.messages.created_at, tables.messages.record_no)
NEWEST_FIRST = (tables.messages.created_at.desc(), tables.messages.record_no.desc())


def pattern_of(text: str) -> str:
    """The pattern of messages that contain the text, in any case."""
    escaped = folded(text).replace("\\", r"\\").replace("%", r"\%").replace("_", r"\_")
    return f"%{escaped}%"


def has_message_like(pattern: ColumnElement[str]) -> ColumnElement[bool]:
    """Whether a session has a message of this pattern."""
    containing = select(tables.messages.user_id, tables.messages.session_id).where(
        tables.messages.content_folded.like(pattern)
    )
    return tuple_(tables.sessions.user_id, tables.sessions.session_id).in_(containing)


@kept
def chat_history(
    viewer: ViewerShape, *, has_owner_id: bool, has_max_characters: bool, excludes_run: bool
) -> Select[*tuple[Any, ...]]:
    """The newest messages of the session, but for those of the run, that fit into all limits, oldest first.

    Binds the viewer, `session_id`, `owner_id`, `limit`, `max_characters`, `most_bytes` and `exclude_run_id`.
    """
    session = preferred_session(SESSION_ID, viewer, owner_id=OWNER_ID if has_owner_id else None).cte("session")
    excluded = bindparam("exclude_run_id", type_=Text)
    newest = (
        select(*fields_of(tables.messages, Message).values(), tables.messages.record_no)
        .join(session, belongs_to_record(tables.messages, session))
        .where(tables.messages.run_id.is_distinct_from(excluded) if excludes_run else true())
        .order_by(*NEWEST_FIRST)
        .limit(LIMIT)
        .subquery("newest")
    )
    # The size of this message and of all newer ones. The sum only grows towards older messages, so the messages that
    # fit are the newest ones without a gap. The number of bytes is in the header of a value: no content is read for it.
    order = (newest.c.created_at.desc(), newest.c.record_no.desc())
    sums = [func.sum(func.octet_length(newest.c.content)).over(order_by=order).label("bytes")]
    if has_max_characters:
        sums.append(func.sum(func.char_length(newest.c.content)).over(order_by=order).label("characters"))
    measured = select(newest, *sums).subquery("measured")
    fits = [measured.c.bytes <= bindparam("most_bytes", type_=BigInteger)]
    if has_max_characters:
        fits.append(measured.c.characters <= bindparam("max_characters", type_=BigInteger))
    return (
        select(*(measured.c[name] for name in Message.model_fields))
        .where(*fits)
        .order_by(measured.c.created_at, measured.c.record_no)
    )
