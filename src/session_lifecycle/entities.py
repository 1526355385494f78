"""The tables. They are never handed to a caller: what goes out are the values of `models`.

Every key begins with `user_id`, so that the tables can be distributed by it. There are no foreign keys between them:
a child is only ever written under its session's row lock, and a check of the parent would cost a lookup on every write.
"""

from collections.abc import Sequence
from datetime import datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Computed,
    DateTime,
    Double,
    Identity,
    Index,
    Integer,
    MetaData,
    Numeric,
    PrimaryKeyConstraint,
    Text,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.types import Uuid

from session_lifecycle.models.reads import SESSION_ORDERS
from session_lifecycle.settings import DEFAULT_SCHEMA

metadata = MetaData(
    schema=DEFAULT_SCHEMA,
    naming_convention={
        "pk": "pk_%(table_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    },
)
"""Our tables, for a host's Alembic: in its `target_metadata`, or kept out by `include_object`."""

# Equal to Python's order of the same texts, one lock order everywhere, and indexes no system update can break.
SessionKey = Text(collation="C")
Zero = text("0")
Instant = DateTime(timezone=True)
Money = Numeric()
# As Postgres writes it, so that Alembic finds it unchanged.
ACTIVITY_MINUTE = "date_bin('00:01:00'::interval, last_activity_at, '2000-01-01 00:00:00+00'::timestamp with time zone)"
NOT_ROLLED_UP = "NOT rolled_up"
# True of every session: an index with this condition is only planned with for what is asked of everybody, and says so.
OF_EVERYBODY = "session_id <> ''"
IS_ERROR = "COALESCE((jsonb_typeof(errors) <> 'null'::text) AND (errors <> '[]'::jsonb), false)"


class Base(DeclarativeBase):
    """The declarative base of our tables."""

    metadata = metadata


def _never_negative(*columns: str) -> CheckConstraint:
    return CheckConstraint(" AND ".join(f"{column} >= 0" for column in columns), name="never_negative")


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
        _never_negative(
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
        _never_negative(
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
        _never_negative(
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


class SessionRunEntity(Base):
    """One unit of agent work. A row without a start stands for a run others named, not recorded yet."""

    __tablename__ = "session_runs"

    user_id: Mapped[UUID] = mapped_column(Uuid, primary_key=True)
    run_id: Mapped[str] = mapped_column(SessionKey, primary_key=True)
    # The session it is counted in; null as long as the root of its thread is unknown.
    session_id: Mapped[str | None] = mapped_column(SessionKey)
    # Whether that was given, and not derived from the thread's root; so with the parent and the root.
    session_given: Mapped[bool] = mapped_column(Boolean, server_default=text("false"))
    parent_run_id: Mapped[str | None] = mapped_column(SessionKey)
    parent_given: Mapped[bool] = mapped_column(Boolean, server_default=text("false"))
    root_run_id: Mapped[str | None] = mapped_column(SessionKey)
    root_given: Mapped[bool] = mapped_column(Boolean, server_default=text("false"))
    parent_tool_call_id: Mapped[str | None] = mapped_column(SessionKey)
    dataset_id: Mapped[UUID | None] = mapped_column(Uuid)
    project: Mapped[str | None] = mapped_column(SessionKey)
    agent_name: Mapped[str | None] = mapped_column(SessionKey)
    client: Mapped[str | None] = mapped_column(SessionKey)
    provider: Mapped[str | None] = mapped_column(SessionKey)
    model: Mapped[str | None] = mapped_column(SessionKey)
    name: Mapped[str | None] = mapped_column(Text)
    started_at: Mapped[datetime | None] = mapped_column(Instant)
    ended_at: Mapped[datetime | None] = mapped_column(Instant)
    status: Mapped[str] = mapped_column(Text, server_default=text("'running'"))
    error: Mapped[str | None] = mapped_column(Text)
    input: Mapped[Any | None] = mapped_column(JSONB)
    output: Mapped[Any | None] = mapped_column(JSONB)
    run_metadata: Mapped[dict[str, Any] | None] = mapped_column("metadata", JSONB)
    quality_score: Mapped[float | None] = mapped_column(Double)
    reported_cost_usd: Mapped[Decimal | None] = mapped_column(Money)
    reported_tokens: Mapped[int | None] = mapped_column(BigInteger)
    # The sums of its events that are not late, kept by what writes those.
    events_cost_usd: Mapped[Decimal] = mapped_column(Money, server_default=Zero)
    events_tokens_in: Mapped[int] = mapped_column(BigInteger, server_default=Zero)
    events_tokens_out: Mapped[int] = mapped_column(BigInteger, server_default=Zero)
    events_cache_read_tokens: Mapped[int] = mapped_column(BigInteger, server_default=Zero)
    events_cache_write_tokens: Mapped[int] = mapped_column(BigInteger, server_default=Zero)
    # The earliest start, and the latest start or end, of itself and its steps.
    first_seen: Mapped[datetime | None] = mapped_column(Instant)
    last_seen: Mapped[datetime | None] = mapped_column(Instant)

    __table_args__ = (
        CheckConstraint("status IN ('running', 'completed', 'failed', 'cancelled')", name="status"),
        # All are partial, so that a lookup by key is never planned with them (see `SessionRecordEntity`).
        # The runs of a session.
        Index(None, "user_id", "session_id", "started_at", "run_id", postgresql_where=text("started_at IS NOT NULL")),
        # Those whose parent was recorded after them; and all of a thread.
        Index(None, "user_id", "parent_run_id", postgresql_where=text("parent_run_id IS NOT NULL")),
        Index(None, "user_id", "root_run_id", postgresql_where=text("root_run_id IS NOT NULL")),
        # Those waiting for the run that made a tool call.
        Index(None, "user_id", "parent_tool_call_id", postgresql_where=text("parent_tool_call_id IS NOT NULL")),
        # Sessions by model and by client, whoever's.
        Index(None, "model", "user_id", "session_id"),
        Index(None, "client", "user_id", "session_id"),
        # Runs by time: reports over all runs, and pages of runs.
        Index(None, "user_id", "started_at", "run_id", postgresql_where=text("started_at IS NOT NULL")),
    )


class SessionStepEntity(Base):
    """A piece of a run: a task, a tool call, a span."""

    __tablename__ = "session_steps"

    user_id: Mapped[UUID] = mapped_column(Uuid, primary_key=True)
    run_id: Mapped[str] = mapped_column(SessionKey, primary_key=True)
    step_id: Mapped[str] = mapped_column(SessionKey, primary_key=True)
    parent_step_id: Mapped[str | None] = mapped_column(SessionKey)
    seq: Mapped[int | None] = mapped_column(BigInteger)
    kind: Mapped[str] = mapped_column(SessionKey)
    name: Mapped[str | None] = mapped_column(Text)
    started_at: Mapped[datetime] = mapped_column(Instant)
    ended_at: Mapped[datetime | None] = mapped_column(Instant)
    inputs: Mapped[Any | None] = mapped_column(JSONB)
    output: Mapped[Any | None] = mapped_column(JSONB)
    prompt: Mapped[Any | None] = mapped_column(JSONB)
    errors: Mapped[Any | None] = mapped_column(JSONB)
    tool_call_id: Mapped[str | None] = mapped_column(SessionKey)
    server_url: Mapped[str | None] = mapped_column(Text)
    injected: Mapped[bool] = mapped_column(Boolean, server_default=text("false"))
    step_metadata: Mapped[dict[str, Any] | None] = mapped_column("metadata", JSONB)
    # A non-empty array, or anything that is neither an array nor null.
    is_error: Mapped[bool] = mapped_column(Boolean, Computed(IS_ERROR, persisted=True))

    __table_args__ = (
        # The run that made a tool call, the newest first.
        Index(None, "user_id", "tool_call_id", "started_at", postgresql_where=text("tool_call_id IS NOT NULL")),
    )


class SessionMessageEntity(Base):
    """A user's prompt, an assistant's reply, a model's thought."""

    __tablename__ = "session_messages"

    user_id: Mapped[UUID] = mapped_column(Uuid, primary_key=True)
    session_id: Mapped[str] = mapped_column(SessionKey, primary_key=True)
    message_id: Mapped[str] = mapped_column(SessionKey, primary_key=True)
    run_id: Mapped[str | None] = mapped_column(SessionKey)
    role: Mapped[str] = mapped_column(Text)
    content: Mapped[str] = mapped_column(Text)
    # Case-folded by Unicode, whatever the database's locale; what a search looks into.
    content_folded: Mapped[str] = mapped_column(Text)
    created_at: Mapped[datetime] = mapped_column(Instant)
    message_metadata: Mapped[dict[str, Any] | None] = mapped_column("metadata", JSONB)

    __table_args__ = (
        CheckConstraint("role IN ('user', 'assistant', 'system', 'tool', 'thought')", name="role"),
        # A session's messages in their order.
        Index(None, "user_id", "session_id", "created_at", "message_id"),
        # A run's messages: its prompt, its thoughts.
        Index(None, "user_id", "run_id", "created_at", postgresql_where=text("run_id IS NOT NULL")),
    )


class SessionTombstoneEntity(Base):
    """A user who was erased and must not come back: what names them is refused."""

    __tablename__ = "session_tombstones"

    user_id: Mapped[UUID] = mapped_column(Uuid, primary_key=True)
    erased_at: Mapped[datetime] = mapped_column(Instant, server_default=text("statement_timestamp()"))


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
    """Figures over the sessions of one family and status, last active in one quarter of an hour, day or month (UTC)."""

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


class SessionRepricingEntity(Base):
    """The audit of prices changed afterwards: one row per run, its figures written together with what it changed."""

    __tablename__ = "session_repricings"

    repricing_id: Mapped[UUID] = mapped_column(Uuid, primary_key=True)
    model: Mapped[str | None] = mapped_column(Text(collation="C"))
    since: Mapped[datetime | None] = mapped_column(Instant)
    until: Mapped[datetime | None] = mapped_column(Instant)
    began_at: Mapped[datetime] = mapped_column(Instant, server_default=text("statement_timestamp()"))
    last_written_at: Mapped[datetime] = mapped_column(Instant, server_default=text("statement_timestamp()"))
    events: Mapped[int] = mapped_column(BigInteger, server_default=Zero)
    cost_before_usd: Mapped[Decimal] = mapped_column(Money, server_default=Zero)
    cost_after_usd: Mapped[Decimal] = mapped_column(Money, server_default=Zero)
