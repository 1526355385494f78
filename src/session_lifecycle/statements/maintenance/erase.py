"""The sessions, runs and models of one user, and the tombstone that keeps an erased user from coming back."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import Select, any_, func, literal, select, update
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.sql.dml import ReturningUpdate
from sqlalchemy.types import Text, Uuid

from session_lifecycle.statements import tables
from session_lifecycle.statements.shared.clock import clock
from session_lifecycle.statements.shared.database_functions import database_function


def now() -> Select[datetime]:
    """One row: the current moment by the database's clock."""
    return select(clock().label("now"))


def sessions_of(user_id: UUID, after: Sequence[Any] | None, limit: int) -> Select[UUID, str]:
    """The next keys of the user's sessions, in the order of their ids, after a row of this statement."""
    statement = (
        select(tables.sessions.user_id, tables.sessions.session_id)
        .where(tables.sessions.user_id == user_id)
        .order_by(tables.sessions.session_id)
        .limit(limit)
    )
    return statement if after is None else statement.where(tables.sessions.session_id > after[1])


def runs_outside_sessions_of(user_id: UUID, after: Sequence[Any] | None, limit: int) -> Select[UUID, str]:
    """The next keys of the user's runs outside a session, in the order of their ids, after a row of this statement."""
    statement = (
        select(tables.runs.user_id, tables.runs.run_id)
        .where(tables.runs.user_id == user_id, tables.runs.session_id.is_(None))
        .order_by(tables.runs.run_id)
        .limit(limit)
    )
    return statement if after is None else statement.where(tables.runs.run_id > after[1])


def write_tombstone(schema: str, user_id: UUID) -> Select[bool]:
    """Writes the user's tombstone, once every transaction that is creating a session of theirs has ended.

    One row: whether the tombstone is new. A transaction that begins later finds the tombstone, so no session can appear
    behind the search for the user's sessions.
    """
    return select(database_function(schema, "write_tombstone_v1", literal(user_id, Uuid)))


def repriced_models_of(user_id: UUID) -> Select[str | None]:
    """The models of the user's events that the audit of repricings names."""
    used = select(tables.usage_events.event_id).where(
        tables.usage_events.user_id == user_id,
        func.lower(tables.usage_events.model) == func.lower(tables.repricings.model),
    )
    return select(tables.repricings.model).where(used.exists()).distinct()


def forget_models(models: Sequence[str], user_id: UUID) -> ReturningUpdate[UUID]:
    """Takes those of the models out of the audit of repricings that no other user has used. Returns a row for each."""
    of_others = select(tables.model_usage.model).where(
        tables.model_usage.model_key == func.lower(tables.repricings.model), tables.model_usage.user_id != user_id
    )
    return (
        update(tables.repricings)
        .where(tables.repricings.model == any_(literal(models, ARRAY(Text))), ~of_others.exists())
        .values(model=None)
        .returning(tables.repricings.repricing_id)
    )
