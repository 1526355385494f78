"""The roll-ups: the sessions in them, the sums over those, and what is still to be put into the sums."""

from collections.abc import Sequence
from datetime import datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

from sqlalchemy import BigInteger, Identity, Index, Numeric, PrimaryKeyConstraint, Text, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column
from sqlalchemy.types import Uuid

from session_lifecycle.entities.base import OF_EVERYBODY, Base, Instant, Money, SessionKey, Zero
from session_lifecycle.models.reads import SESSION_ORDERS


def _index(column: str, *key: str, of: Sequence[str] = ()) -> Index:
    """By status and in the order of a column, of a user, data set or agent."""
    shared = [f"{name} IS NOT NULL" for name in of if name != "user_id"] if of else [OF_EVERYBODY]
    where = text(" AND ".join(shared)) if shared else None
    return Index("_".join(("ix_rolled_up_sessions", *of, column)), *of, "status", column, *key, postgresql_where=where)


class RolledUpSessionEntity(Base):
    """A session that is over, as it is in the roll-ups; a change of the session takes it out.

    In a table of its own, so that it can be indexed in every order a page of sessions can have: what is written often
    would pay for that in `session_records`.
    """

    __tablename__ = "rolled_up_sessions"

    user_id: Mapped[UUID] = mapped_column(Uuid, primary_key=True)
    session_id: Mapped[str] = mapped_column(SessionKey, primary_key=True)
    dataset_id: Mapped[UUID | None] = mapped_column(Uuid)
    agent_name: Mapped[str | None] = mapped_column(Text)
    status: Mapped[str] = mapped_column(Text)
    started_at: Mapped[datetime] = mapped_column(Instant)
    last_activity_at: Mapped[datetime] = mapped_column(Instant)
    ended_at: Mapped[datetime | None] = mapped_column(Instant)
    tokens_in: Mapped[int] = mapped_column(BigInteger)
    tokens_out: Mapped[int] = mapped_column(BigInteger)
    cost_usd: Mapped[Decimal] = mapped_column(Money)
    unpriced_events: Mapped[int] = mapped_column(BigInteger)
    unmeasured_events: Mapped[int] = mapped_column(BigInteger)
    late_events: Mapped[int] = mapped_column(BigInteger)
    late_cost_usd: Mapped[Decimal] = mapped_column(Money)
    # Its share by model, as it is reported.
    models: Mapped[list[dict[str, Any]]] = mapped_column(JSONB)

    __table_args__ = (
        *(_index(column, "session_id", of=["user_id"]) for column in SESSION_ORDERS),
        *(_index(column, "user_id", "session_id", of=["dataset_id"]) for column in SESSION_ORDERS),
        _index("last_activity_at", "user_id", "session_id"),
        # Of an agent, and of what a user has in a data set, by activity.
        _index("last_activity_at", "session_id", of=["user_id", "agent_name"]),
        _index("last_activity_at", "user_id", "session_id", of=["dataset_id", "agent_name"]),
        _index("last_activity_at", "session_id", of=["user_id", "dataset_id"]),
    )


# Where the columns of the classes that follow stand in their tables.
FIRST, LAST = -1, 1


class _Figures:
    """What is added up of sessions."""

    sessions: Mapped[int] = mapped_column(BigInteger, server_default=Zero, sort_order=LAST)
    cost_usd: Mapped[Decimal] = mapped_column(Money, server_default=Zero, sort_order=LAST)
    tokens_in: Mapped[Decimal] = mapped_column(Numeric, server_default=Zero, sort_order=LAST)
    tokens_out: Mapped[Decimal] = mapped_column(Numeric, server_default=Zero, sort_order=LAST)
    duration_us: Mapped[Decimal] = mapped_column(Numeric, server_default=Zero, sort_order=LAST)
    unpriced_events: Mapped[int] = mapped_column(BigInteger, server_default=Zero, sort_order=LAST)
    unmeasured_events: Mapped[int] = mapped_column(BigInteger, server_default=Zero, sort_order=LAST)
    late_events: Mapped[int] = mapped_column(BigInteger, server_default=Zero, sort_order=LAST)
    late_cost_usd: Mapped[Decimal] = mapped_column(Money, server_default=Zero, sort_order=LAST)


class _ModelFigures:
    """What is added up of one model in sessions."""

    sessions: Mapped[int] = mapped_column(BigInteger, server_default=Zero, sort_order=LAST)
    cost_usd: Mapped[Decimal] = mapped_column(Money, server_default=Zero, sort_order=LAST)
    tokens_in: Mapped[Decimal] = mapped_column(Numeric, server_default=Zero, sort_order=LAST)
    tokens_out: Mapped[Decimal] = mapped_column(Numeric, server_default=Zero, sort_order=LAST)
    cache_read_tokens: Mapped[Decimal] = mapped_column(Numeric, server_default=Zero, sort_order=LAST)
    cache_write_tokens: Mapped[Decimal] = mapped_column(Numeric, server_default=Zero, sort_order=LAST)
    reasoning_tokens: Mapped[Decimal] = mapped_column(Numeric, server_default=Zero, sort_order=LAST)
    events: Mapped[int] = mapped_column(BigInteger, server_default=Zero, sort_order=LAST)
    unpriced_events: Mapped[int] = mapped_column(BigInteger, server_default=Zero, sort_order=LAST)


class _Bucket:
    """Of which sessions a row of the roll-ups is the sum, and of which time.

    Each session is in four families: everybody's, its user's, its data set's, and that of its user and data set. What a
    viewer sees is the sum over their users and data sets, less that of those users in those data sets: no session is
    counted twice.
    """

    family: Mapped[str] = mapped_column(SessionKey, primary_key=True, sort_order=FIRST)
    # Zero where the family has none.
    user_id: Mapped[UUID] = mapped_column(Uuid, primary_key=True, sort_order=FIRST)
    dataset_id: Mapped[UUID] = mapped_column(Uuid, primary_key=True, sort_order=FIRST)
    level: Mapped[str] = mapped_column(SessionKey, primary_key=True, sort_order=FIRST)


class _Change:
    """What one session adds to the roll-ups or, negative, takes away; until `roll_up` puts it into them."""

    change_id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True, sort_order=FIRST)
    user_id: Mapped[UUID] = mapped_column(Uuid, sort_order=FIRST)
    dataset_id: Mapped[UUID | None] = mapped_column(Uuid, sort_order=FIRST)


def _of_its_owner() -> tuple[Index, Index]:
    return (
        Index(None, "user_id", "starts_at"),
        Index(None, "dataset_id", "starts_at", postgresql_where=text("dataset_id IS NOT NULL")),
    )


class SessionRollupEntity(_Bucket, _Figures, Base):
    """Figures over the sessions of one family and status, last active in one time.

    That is, by its level, a quarter of an hour, a day, a month or a year of UTC.
    """

    __tablename__ = "session_rollups"

    status: Mapped[str] = mapped_column(SessionKey, primary_key=True)
    starts_at: Mapped[datetime] = mapped_column(Instant, primary_key=True)

    __table_args__ = (PrimaryKeyConstraint("family", "user_id", "dataset_id", "level", "status", "starts_at"),)


class SessionModelRollupEntity(_Bucket, _ModelFigures, Base):
    """The same by model."""

    __tablename__ = "session_model_rollups"

    starts_at: Mapped[datetime] = mapped_column(Instant, primary_key=True)
    # As it is reported: usage without a model is `unknown`.
    model: Mapped[str] = mapped_column(SessionKey, primary_key=True)

    __table_args__ = (PrimaryKeyConstraint("family", "user_id", "dataset_id", "level", "starts_at", "model"),)


class SessionRollupChangeEntity(_Change, _Figures, Base):
    """A change of `session_rollups`, by the quarter of an hour."""

    __tablename__ = "session_rollup_changes"

    status: Mapped[str] = mapped_column(SessionKey)
    starts_at: Mapped[datetime] = mapped_column(Instant)

    __table_args__ = _of_its_owner()


class SessionModelRollupChangeEntity(_Change, _ModelFigures, Base):
    """A change of `session_model_rollups`, by the quarter of an hour."""

    __tablename__ = "session_model_rollup_changes"

    starts_at: Mapped[datetime] = mapped_column(Instant)
    model: Mapped[str] = mapped_column(SessionKey)

    __table_args__ = _of_its_owner()
