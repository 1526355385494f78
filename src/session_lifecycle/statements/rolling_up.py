"""Rolling up: which sessions may be, and calls of the functions in our schema that do it.

What the functions do is in `alembic/functions/`.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import BigInteger, Integer, Select, Text, bindparam, cast, literal, or_, select, tuple_, type_coerce
from sqlalchemy.dialects.postgresql import JSONB

from session_lifecycle.entities import SessionRecordEntity as S
from session_lifecycle.models import SessionStatus
from session_lifecycle.statements.functions import own_function
from session_lifecycle.statements.scopes import of_everybody
from session_lifecycle.statements.status import INSTANT


def sessions_to_roll_up(
    idle_before: datetime, after: Sequence[Any] | None, limit: int
) -> Select[str, datetime, UUID, str]:
    """Sessions not rolled up that ended or were last active before that, in an order of theirs, after such a row."""
    order = (S.status, S.activity_minute, S.user_id, S.session_id)
    is_over = or_(S.status != SessionStatus.RUNNING.value, S.last_activity_at < idle_before)
    statement = select(*order).where(~S.rolled_up, of_everybody(S), is_over).order_by(*order).limit(limit)
    if after is None:
        return statement
    position = tuple_(*(literal(value, column.type) for column, value in zip(order, after, strict=True)))
    return statement.where(tuple_(*order) > position)


def roll_up_sessions(schema: str) -> Select[int]:
    """Rolls up the sessions of the bound `keys`, a JSON array as text, unless active since `idle_before`; how many."""
    keys = cast(bindparam("keys", type_=Text), JSONB)
    idle_before = bindparam("idle_before", type_=INSTANT)
    return select(type_coerce(own_function(schema, "roll_up_sessions_v2", keys, idle_before), BigInteger))


def compact(schema: str) -> Select[int]:
    """Puts changes into the roll-ups, at most the bound `most` of each kind; how many it was."""
    most = bindparam("most", type_=Integer)
    return select(type_coerce(own_function(schema, "compact_rollups_v1", most), BigInteger))
