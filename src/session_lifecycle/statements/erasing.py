"""What one user has, and the tombstone that keeps them from coming back."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import BigInteger, Select, Text, cast, func, literal, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.sql.dml import ReturningInsert
from sqlalchemy.types import Uuid

from session_lifecycle.entities import SessionRecordEntity as S
from session_lifecycle.entities import SessionRunEntity as R
from session_lifecycle.entities import SessionTombstoneEntity as T
from session_lifecycle.statements.status import clock

CREATING_SEED = 5
"""Of the lock that whoever creates a session of a user shares, and whoever writes their tombstone has alone."""


def now() -> Select[datetime]:
    """The moment it is, by the database's clock."""
    return select(clock().label("now"))


def sessions_of(user_id: UUID, after: Sequence[Any] | None, limit: int) -> Select[UUID, str]:
    """The user's sessions by id, after a row of this."""
    statement = select(S.user_id, S.session_id).where(S.user_id == user_id).order_by(S.session_id).limit(limit)
    return statement if after is None else statement.where(S.session_id > after[1])


def waiting_runs_of(user_id: UUID, after: Sequence[Any] | None, limit: int) -> Select[UUID, str]:
    """The user's runs that are in no session by id, after a row of this."""
    waiting = (R.user_id == user_id, R.session_id.is_(None))
    statement = select(R.user_id, R.run_id).where(*waiting).order_by(R.run_id).limit(limit)
    return statement if after is None else statement.where(R.run_id > after[1])


def write_tombstone(user_id: UUID) -> ReturningInsert[UUID]:
    """Writes the user's tombstone, once everybody who is creating a session of theirs has done so.

    Whoever begins after that finds the tombstone, so no session can appear behind what looks for them next.
    """
    of_user = func.hashtextextended(cast(literal(user_id, Uuid), Text), literal(CREATING_SEED, BigInteger))
    alone = select(func.pg_advisory_xact_lock(of_user)).subquery("alone")
    row = insert(T).from_select(["user_id"], select(literal(user_id, Uuid)).select_from(alone))
    return row.on_conflict_do_nothing().returning(T.user_id)
