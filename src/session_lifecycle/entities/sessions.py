"""Sessions, their totals by model, and the ledger those are derived from."""

from datetime import datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Computed,
    Index,
    Integer,
    PrimaryKeyConstraint,
    Text,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column
from sqlalchemy.types import Uuid

from session_lifecycle.entities.base import OF_EVERYBODY, Base, Instant, Money, SessionKey, Zero, never_negative

# As Postgres writes it, so that Alembic finds it unchanged.
ACTIVITY_MINUTE = "date_bin('00:01:00'::interval, last_activity_at, '2000-01-01 00:00:00+00'::timestamp with time zone)"
NOT_ROLLED_UP = "NOT rolled_up"


class SessionRecordEntity(Base):
    """One session, with its totals."""

    __tablename__ = "session_records"

    user_id: Mapped[UUID] = mapped_column(Uuid, primary_key=True)
    session_id: Mapped[str] = mapped_column(SessionKey, primary_key=True)
    dataset_id: Mapped[UUID | None] = mapped_column(Uuid)
    status: Mapped[str] = mapped_column(Text, server_default=text("'running'"))
    started_at: Mapped[datetime] = mapped_column(Instant, server_default=text("statement_timestamp()"))
    last_activity_at: Mapped[datetime] = mapped_column(Instant, server_default=text("statement_timestamp()"))
    ended_at: Mapped[datetime | None] = mapped_column(Instant)
    tokens_in: Mapped[int] = mapped_column(BigInteger, server_default=Zero)
    tokens_out: Mapped[int] = mapped_column(BigInteger, server_default=Zero)
    cost_usd: Mapped[Decimal] = mapped_column(Money, server_default=Zero)
    error_count: Mapped[int] = mapped_column(BigInteger, server_default=Zero)
    last_model: Mapped[str | None] = mapped_column(Text)
    last_model_at: Mapped[datetime | None] = mapped_column(Instant)
    agent_name: Mapped[str | None] = mapped_column(Text)
    title: Mapped[str | None] = mapped_column(Text)
    # `metadata` is taken by the declarative base.
    session_metadata: Mapped[dict[str, Any]] = mapped_column("metadata", JSONB, server_default=text("'{}'"))
    cache_read_tokens: Mapped[int] = mapped_column(BigInteger, server_default=Zero)
    cache_write_tokens: Mapped[int] = mapped_column(BigInteger, server_default=Zero)
    reasoning_tokens: Mapped[int] = mapped_column(BigInteger, server_default=Zero)
    unpriced_events: Mapped[int] = mapped_column(BigInteger, server_default=Zero)
    unmeasured_events: Mapped[int] = mapped_column(BigInteger, server_default=Zero)
    late_events: Mapped[int] = mapped_column(BigInteger, server_default=Zero)
    late_cost_usd: Mapped[Decimal] = mapped_column(Money, server_default=Zero)
    # What the indexes name instead of the instant: as long as the minute stays the same, touching is a HOT update.
    activity_minute: Mapped[datetime] = mapped_column(Instant, Computed(ACTIVITY_MINUTE, persisted=True))
    # Nobody named it so far: it stands for the thread of a run that named no session, and goes with its last run.
    derived: Mapped[bool] = mapped_column(Boolean, server_default=text("false"))
    # Whether it is in `rolled_up_sessions`, and added up in the roll-ups. Whatever changes the row takes it out of
    # both, by the trigger `leave_rollups`.
    rolled_up: Mapped[bool] = mapped_column(Boolean, server_default=text("false"))

    __table_args__ = (
        CheckConstraint("status IN ('running', 'completed', 'failed')", name="status"),
        CheckConstraint("(status = 'running') = (ended_at IS NULL)", name="ended_at"),
        never_negative(
            "tokens_in",
            "tokens_out",
            "cost_usd",
            "error_count",
            "cache_read_tokens",
            "cache_write_tokens",
            "reasoning_tokens",
            "unpriced_events",
            "unmeasured_events",
            "late_events",
            "late_cost_usd",
        ),
        # Those not rolled up: of a user, of a data set, of everybody. Few, once older ones are rolled up. All are
        # partial, so that only reads that name the condition are planned with them: a lookup by key would take one for
        # as good as the primary key while the table has no statistics yet. None names a column that usage changes, but
        # by the minute: an update is then HOT.
        Index(None, "user_id", "status", "activity_minute", postgresql_where=text(NOT_ROLLED_UP)),
        Index(
            None,
            "dataset_id",
            "status",
            "activity_minute",
            postgresql_where=text(f"{NOT_ROLLED_UP} AND dataset_id IS NOT NULL"),
        ),
        Index(None, "status", "activity_minute", postgresql_where=text(f"{NOT_ROLLED_UP} AND {OF_EVERYBODY}")),
        # get_session_row, when the id is visible through a data set and not the viewer's own.
        Index(None, "session_id", "user_id"),
    )


class SessionModelUsageEntity(Base):
    """What one model used in one session: the session's totals by model."""

    __tablename__ = "session_model_usage"

    user_id: Mapped[UUID] = mapped_column(Uuid, primary_key=True)
    session_id: Mapped[str] = mapped_column(SessionKey, primary_key=True)
    # Empty for usage that named no model, so that it can be part of the key.
    model: Mapped[str] = mapped_column(Text(collation="C"), primary_key=True)
    tokens_in: Mapped[int] = mapped_column(BigInteger, server_default=Zero)
    tokens_out: Mapped[int] = mapped_column(BigInteger, server_default=Zero)
    cost_usd: Mapped[Decimal] = mapped_column(Money, server_default=Zero)
    cache_read_tokens: Mapped[int] = mapped_column(BigInteger, server_default=Zero)
    cache_write_tokens: Mapped[int] = mapped_column(BigInteger, server_default=Zero)
    reasoning_tokens: Mapped[int] = mapped_column(BigInteger, server_default=Zero)
    events: Mapped[int] = mapped_column(BigInteger, server_default=Zero)
    unpriced_events: Mapped[int] = mapped_column(BigInteger, server_default=Zero)
    unmeasured_events: Mapped[int] = mapped_column(BigInteger, server_default=Zero)

    __table_args__ = (
        never_negative(
            "tokens_in",
            "tokens_out",
            "cost_usd",
            "cache_read_tokens",
            "cache_write_tokens",
            "reasoning_tokens",
            "events",
            "unpriced_events",
            "unmeasured_events",
        ),
    )


class SessionUsageEventEntity(Base):
    """The ledger: one row per usage event, the truth every total is derived from."""

    __tablename__ = "session_usage_events"

    user_id: Mapped[UUID] = mapped_column(Uuid)
    # Of an event with a key: derived from the key and its scope, so that a narrow index finds duplicates of any key.
    event_id: Mapped[UUID] = mapped_column(Uuid)
    session_id: Mapped[str] = mapped_column(SessionKey)
    at: Mapped[datetime] = mapped_column(Instant)
    recorded_at: Mapped[datetime] = mapped_column(Instant, server_default=text("statement_timestamp()"))
    model: Mapped[str | None] = mapped_column(Text(collation="C"))
    provider: Mapped[str | None] = mapped_column(Text)
    tokens_in: Mapped[int] = mapped_column(BigInteger, server_default=Zero)
    tokens_out: Mapped[int] = mapped_column(BigInteger, server_default=Zero)
    cache_read_tokens: Mapped[int] = mapped_column(BigInteger, server_default=Zero)
    cache_write_tokens: Mapped[int] = mapped_column(BigInteger, server_default=Zero)
    reasoning_tokens: Mapped[int] = mapped_column(BigInteger, server_default=Zero)
    # What it adds to the totals; null: unpriced or unmeasured.
    cost_usd: Mapped[Decimal | None] = mapped_column(Money)
    # What the caller gave, to tell a duplicate from a conflict; null: it was priced, or not.
    given_cost_usd: Mapped[Decimal | None] = mapped_column(Money)
    price_source: Mapped[str | None] = mapped_column(Text)
    unit_prices: Mapped[dict[str, Any] | None] = mapped_column(JSONB)
    errored: Mapped[bool] = mapped_column(Boolean, server_default=text("false"))
    measured: Mapped[bool] = mapped_column(Boolean, server_default=text("true"))
    late: Mapped[bool] = mapped_column(Boolean, server_default=text("false"))
    idempotency_key: Mapped[str | None] = mapped_column(Text)
    key_scope: Mapped[str] = mapped_column(Text, server_default=text("'session'"))
    revision: Mapped[int] = mapped_column(Integer, server_default=Zero)
    run_id: Mapped[str | None] = mapped_column(Text)
    details: Mapped[dict[str, Any]] = mapped_column(JSONB, server_default=text("'{}'"))

    __table_args__ = (
        # Finds an event by its key, and all events of a session.
        PrimaryKeyConstraint("user_id", "session_id", "event_id"),
        # 'run': what a run reports to have cost beyond its events, one row of each run.
        CheckConstraint("key_scope IN ('session', 'user', 'run')", name="key_scope"),
        CheckConstraint("cache_read_tokens + cache_write_tokens <= tokens_in", name="parts_of_input"),
        CheckConstraint("reasoning_tokens <= tokens_out", name="part_of_output"),
        never_negative(
            "tokens_in",
            "tokens_out",
            "cost_usd",
            "cache_read_tokens",
            "cache_write_tokens",
            "reasoning_tokens",
            "revision",
        ),
        # A key of the user's scope, whichever session it was counted in; and that it is counted once.
        Index(None, "user_id", "event_id", unique=True, postgresql_where=text("key_scope = 'user'")),
        # The adjustment of a run, whichever session it was counted in.
        Index(None, "user_id", "run_id", unique=True, postgresql_where=text("key_scope = 'run'")),
        # Reports by the time of use: of ranges of pages, since the ledger is written in about that order.
        Index(None, "at", postgresql_using="brin", postgresql_with={"autosummarize": "on"}),
    )
