"""Runs, their steps, and messages."""

from datetime import datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

from sqlalchemy import BigInteger, Boolean, CheckConstraint, Computed, Double, Index, Text, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column
from sqlalchemy.types import Uuid

from session_lifecycle.entities.base import Base, Instant, Money, SessionKey, Zero

IS_ERROR = "COALESCE((jsonb_typeof(errors) <> 'null'::text) AND (errors <> '[]'::jsonb), false)"


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
