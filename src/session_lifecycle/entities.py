"""All tables, in the order in which a reader meets them. Callers get values, never entities.

Every primary key begins with `user_id`, except the keys of roll-ups, of their changes, of repricings, of budgets
and of buckets, which are about many users. There are no
foreign keys: a child row is only written under the row lock of its session, and a check of the parent would cost one
lookup per write.
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
from sqlalchemy.dialects.postgresql import JSON, JSONB
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.types import Uuid

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
"""Our tables, for a host's Alembic: in its `target_metadata`, or left out by `include_object`."""

# The collation "C" orders texts as Python does, so all programs take locks in one order. An update of the operating
# system cannot change this order, and so cannot break an index on it.
KeyText = Text(collation="C")
ZERO = text("0")
# The places of inherited columns: before or after the columns of the table's own class.
FIRST, LAST = -1, 1
TIMESTAMPTZ = DateTime(timezone=True)
MONEY = Numeric()
# The condition holds for every session. Postgres only plans with an index under this condition when the query repeats
# it, and only the queries over everybody's sessions do.
OF_EVERYBODY = "session_id <> ''"


class Base(DeclarativeBase):
    """The declarative base of our tables."""

    metadata = metadata


def quoted(name: str) -> str:
    """The name of a schema, table or column as SQL writes it."""
    return '"{}"'.format(name.replace('"', '""'))


def never_negative(*counts: str, costs: Sequence[str] = ("cost_usd",)) -> CheckConstraint:
    """The constraint that none of these columns is negative, and that each cost is a finite number.

    LEAST skips nulls, and one expression is ready sooner than one for each column: Postgres prepares it anew in each
    statement. NaN is greater than every number, infinity included.
    """
    sums = [f"LEAST({', '.join(counts)}) >= 0", *(f"{cost} >= 0 AND {cost} < 'Infinity'" for cost in costs)]
    return CheckConstraint(" AND ".join(sums), name="never_negative")


# Sessions, their totals by model, and the ledger of usage events from which the totals are derived


# The expression is spelt as Postgres reports it, so that Alembic sees no change.
ACTIVITY_MINUTE = "date_bin('00:01:00'::interval, last_activity_at, '2000-01-01 00:00:00+00'::timestamp with time zone)"
NOT_ROLLED_UP = "NOT rolled_up"
MAY_WAIT = f"{NOT_ROLLED_UP} AND waiting_since IS NOT NULL"


class SessionRecordEntity(Base):
    """A session and its totals."""

    __tablename__ = "session_records"

    user_id: Mapped[UUID] = mapped_column(Uuid, primary_key=True)
    session_id: Mapped[str] = mapped_column(KeyText, primary_key=True)
    dataset_id: Mapped[UUID | None] = mapped_column(Uuid)
    status: Mapped[str] = mapped_column(Text, server_default=text("'running'"))
    started_at: Mapped[datetime] = mapped_column(TIMESTAMPTZ, server_default=text("statement_timestamp()"))
    last_activity_at: Mapped[datetime] = mapped_column(TIMESTAMPTZ, server_default=text("statement_timestamp()"))
    ended_at: Mapped[datetime | None] = mapped_column(TIMESTAMPTZ)
    tokens_in: Mapped[int] = mapped_column(BigInteger, server_default=ZERO)
    tokens_out: Mapped[int] = mapped_column(BigInteger, server_default=ZERO)
    cost_usd: Mapped[Decimal] = mapped_column(MONEY, server_default=ZERO)
    error_count: Mapped[int] = mapped_column(BigInteger, server_default=ZERO)
    last_model: Mapped[str | None] = mapped_column(Text)
    last_model_at: Mapped[datetime | None] = mapped_column(TIMESTAMPTZ)
    agent_name: Mapped[str | None] = mapped_column(Text)
    title: Mapped[str | None] = mapped_column(Text)
    # The declarative base already has an attribute `metadata`.
    session_metadata: Mapped[dict[str, Any]] = mapped_column("metadata", JSONB, server_default=text("'{}'"))
    cache_read_tokens: Mapped[int] = mapped_column(BigInteger, server_default=ZERO)
    cache_write_tokens: Mapped[int] = mapped_column(BigInteger, server_default=ZERO)
    reasoning_tokens: Mapped[int] = mapped_column(BigInteger, server_default=ZERO)
    unpriced_events: Mapped[int] = mapped_column(BigInteger, server_default=ZERO)
    unmeasured_events: Mapped[int] = mapped_column(BigInteger, server_default=ZERO)
    late_events: Mapped[int] = mapped_column(BigInteger, server_default=ZERO)
    late_cost_usd: Mapped[Decimal] = mapped_column(MONEY, server_default=ZERO)
    # The indexes have the minute in place of the exact moment: a touch within the same minute is a HOT update.
    activity_minute: Mapped[datetime] = mapped_column(TIMESTAMPTZ, Computed(ACTIVITY_MINUTE, persisted=True))
    # The session stands for the thread of a run that named no session, and no call has named the session yet. It is
    # deleted with its last run.
    derived: Mapped[bool] = mapped_column(Boolean, server_default=text("false"))
    # The session's times by the calls that name the session, where a run that is in the session by its thread alone was
    # seen earlier or later; else null. Such a run may leave the session, and takes its times along.
    own_started_at: Mapped[datetime | None] = mapped_column(TIMESTAMPTZ)
    own_last_activity_at: Mapped[datetime | None] = mapped_column(TIMESTAMPTZ)
    # Whether the session is in `rolled_up_sessions` and counted in the roll-ups. Every change of the row takes the
    # session out of both, by the trigger `leave_roll_ups`.
    rolled_up: Mapped[bool] = mapped_column(Boolean, server_default=text("false"))
    # The totals that few sessions have: classes of use that are billed apart, plan usage, lower bounds. An object of
    # numbers by name, without those that are zero; null where there are none, so that other sessions pay nothing.
    further_totals: Mapped[dict[str, Any] | None] = mapped_column(JSONB)
    # An object of texts by name; null where there are none.
    tags: Mapped[dict[str, Any] | None] = mapped_column(JSONB(none_as_null=True))
    # The session waits while no activity is later than this moment. So the next activity ends the waiting without a
    # write here, and a touch or a use pays nothing for it.
    waiting_since: Mapped[datetime | None] = mapped_column(TIMESTAMPTZ)
    end_reason: Mapped[str | None] = mapped_column(Text)
    # A session of the same user. It may be one that does not exist.
    parent_session_id: Mapped[str | None] = mapped_column(KeyText)

    __table_args__ = (
        CheckConstraint("status IN ('running', 'completed', 'failed')", name="status"),
        CheckConstraint("(status = 'running') = (ended_at IS NULL)", name="ended_at"),
        never_negative(
            "tokens_in",
            "tokens_out",
            "error_count",
            "cache_read_tokens",
            "cache_write_tokens",
            "reasoning_tokens",
            "unpriced_events",
            "unmeasured_events",
            "late_events",
            costs=("cost_usd", "late_cost_usd"),
        ),
        # The sessions that are not rolled up: of a user, of a dataset, of everybody. They are few once a job rolls up
        # the older sessions. All three indexes are partial, so that Postgres only plans with them for reads that repeat
        # the condition: while the table has no statistics, a lookup by key would rate them as good as the primary key.
        # Usage changes no indexed column except the minute, so most updates are HOT.
        Index(None, "user_id", "status", "activity_minute", postgresql_where=text(NOT_ROLLED_UP)),
        Index(
            None,
            "dataset_id",
            "status",
            "activity_minute",
            postgresql_where=text(f"{NOT_ROLLED_UP} AND dataset_id IS NOT NULL"),
        ),
        Index(None, "status", "activity_minute", postgresql_where=text(f"{NOT_ROLLED_UP} AND {OF_EVERYBODY}")),
        # The same three for the sessions that wait. They have those that waited once, too, until they are rolled up:
        # with a condition on the last activity, no touch of any session would be a HOT update.
        Index(
            "ix_session_records_waiting_user_id",
            "user_id",
            "status",
            "activity_minute",
            postgresql_where=text(MAY_WAIT),
        ),
        Index(
            "ix_session_records_waiting_dataset_id",
            "dataset_id",
            "status",
            "activity_minute",
            postgresql_where=text(f"{MAY_WAIT} AND dataset_id IS NOT NULL"),
        ),
        Index("ix_session_records_waiting", "status", "activity_minute", postgresql_where=text(MAY_WAIT)),
        # The latest session with an id, of everybody and of a dataset: `get_session_row` uses them where the viewer
        # does not own the session.
        Index(None, "session_id", "activity_minute"),
        Index(None, "session_id", "dataset_id", "activity_minute", postgresql_where=text("dataset_id IS NOT NULL")),
        # The children of a session. Partial, so that a session without a parent pays nothing for it.
        Index(None, "user_id", "parent_session_id", postgresql_where=text("parent_session_id IS NOT NULL")),
    )


class SessionAnnotationEntity(Base):
    """What somebody says about a session: at most one row for each name and annotator."""

    __tablename__ = "session_annotations"

    user_id: Mapped[UUID] = mapped_column(Uuid, primary_key=True)
    session_id: Mapped[str] = mapped_column(KeyText, primary_key=True)
    name: Mapped[str] = mapped_column(KeyText, primary_key=True)
    # The empty text where the annotator is not known: a column of a key cannot be null.
    annotator: Mapped[str] = mapped_column(KeyText, primary_key=True, server_default=text("''"))
    score: Mapped[float | None] = mapped_column(Double)
    label: Mapped[str | None] = mapped_column(Text)
    comment: Mapped[str | None] = mapped_column(Text)
    at: Mapped[datetime] = mapped_column(TIMESTAMPTZ, server_default=text("statement_timestamp()"))


class SessionModelUsageEntity(Base):
    """The totals of one model in one session."""

    __tablename__ = "session_model_usage"

    user_id: Mapped[UUID] = mapped_column(Uuid, primary_key=True)
    session_id: Mapped[str] = mapped_column(KeyText, primary_key=True)
    # Usage without a model has the empty text here: a column of a key cannot be null.
    model: Mapped[str] = mapped_column(Text(collation="C"))
    tokens_in: Mapped[int] = mapped_column(BigInteger, server_default=ZERO)
    tokens_out: Mapped[int] = mapped_column(BigInteger, server_default=ZERO)
    cost_usd: Mapped[Decimal] = mapped_column(MONEY, server_default=ZERO)
    cache_read_tokens: Mapped[int] = mapped_column(BigInteger, server_default=ZERO)
    cache_write_tokens: Mapped[int] = mapped_column(BigInteger, server_default=ZERO)
    reasoning_tokens: Mapped[int] = mapped_column(BigInteger, server_default=ZERO)
    events: Mapped[int] = mapped_column(BigInteger, server_default=ZERO)
    unpriced_events: Mapped[int] = mapped_column(BigInteger, server_default=ZERO)
    unmeasured_events: Mapped[int] = mapped_column(BigInteger, server_default=ZERO)
    # Names that differ in case only are one model. `model` has the spelling that the session gave first.
    model_key: Mapped[str] = mapped_column(KeyText, Computed("lower(model)", persisted=True), primary_key=True)
    further_totals: Mapped[dict[str, Any] | None] = mapped_column(JSONB)

    __table_args__ = (
        never_negative(
            "tokens_in",
            "tokens_out",
            "cache_read_tokens",
            "cache_write_tokens",
            "reasoning_tokens",
            "events",
            "unpriced_events",
            "unmeasured_events",
        ),
    )


class SessionUsageEventEntity(Base):
    """The ledger: one row per usage event. All totals are derived from it."""

    __tablename__ = "session_usage_events"

    user_id: Mapped[UUID] = mapped_column(Uuid)
    # The id of an event with a key is derived from the key and its scope, so that a narrow index finds the duplicates
    # of any key.
    event_id: Mapped[UUID] = mapped_column(Uuid)
    session_id: Mapped[str] = mapped_column(KeyText)
    at: Mapped[datetime] = mapped_column(TIMESTAMPTZ)
    recorded_at: Mapped[datetime] = mapped_column(TIMESTAMPTZ, server_default=text("statement_timestamp()"))
    model: Mapped[str | None] = mapped_column(Text(collation="C"))
    provider: Mapped[str | None] = mapped_column(Text)
    tokens_in: Mapped[int] = mapped_column(BigInteger, server_default=ZERO)
    tokens_out: Mapped[int] = mapped_column(BigInteger, server_default=ZERO)
    cache_read_tokens: Mapped[int] = mapped_column(BigInteger, server_default=ZERO)
    cache_write_tokens: Mapped[int] = mapped_column(BigInteger, server_default=ZERO)
    reasoning_tokens: Mapped[int] = mapped_column(BigInteger, server_default=ZERO)
    # The cost that the totals count; null where the event is unpriced or unmeasured.
    cost_usd: Mapped[Decimal | None] = mapped_column(MONEY)
    # The cost that the caller gave; null where the caller gave none. It distinguishes a duplicate from a conflict.
    given_cost_usd: Mapped[Decimal | None] = mapped_column(MONEY)
    price_source: Mapped[str | None] = mapped_column(Text)
    unit_prices: Mapped[dict[str, Any] | None] = mapped_column(JSONB)
    errored: Mapped[bool] = mapped_column(Boolean, server_default=text("false"))
    measured: Mapped[bool] = mapped_column(Boolean, server_default=text("true"))
    late: Mapped[bool] = mapped_column(Boolean, server_default=text("false"))
    idempotency_key: Mapped[str | None] = mapped_column(Text)
    key_scope: Mapped[str] = mapped_column(Text, server_default=text("'session'"))
    revision: Mapped[int] = mapped_column(Integer, server_default=ZERO)
    run_id: Mapped[str | None] = mapped_column(Text)
    details: Mapped[dict[str, Any]] = mapped_column(JSONB, server_default=text("'{}'"))
    # The counts of the classes of use that are rare, by name (`models.usage_classes.RARE_CLASSES`), without zeros; null
    # where there are none.
    parts: Mapped[dict[str, Any] | None] = mapped_column(JSONB)
    billing: Mapped[str] = mapped_column(Text, server_default=text("'api'"))
    # The price of usage under a plan; null where it is unpriced. It is in no cost: `cost_usd` is zero there.
    plan_cost_usd: Mapped[Decimal | None] = mapped_column(MONEY)
    kind: Mapped[str] = mapped_column(Text, server_default=text("'llm'"))
    service_tier: Mapped[str] = mapped_column(Text, server_default=text("'standard'"))
    # Whether the counts are a lower bound.
    partial: Mapped[bool] = mapped_column(Boolean, server_default=text("false"))

    __table_args__ = (
        # The key finds one event, and all events of a session.
        PrimaryKeyConstraint("user_id", "session_id", "event_id"),
        # A run has at most one row of scope 'run': the cost that it reports beyond its events.
        CheckConstraint(
            "billing = 'api' AND plan_cost_usd IS NULL OR billing = 'plan' AND cost_usd = 0", name="billing"
        ),
        CheckConstraint("key_scope IN ('session', 'user', 'run')", name="key_scope"),
        CheckConstraint("cache_read_tokens + cache_write_tokens <= tokens_in", name="parts_of_input"),
        CheckConstraint("reasoning_tokens <= tokens_out", name="part_of_output"),
        never_negative(
            "tokens_in",
            "tokens_out",
            "cache_read_tokens",
            "cache_write_tokens",
            "reasoning_tokens",
            "revision",
            costs=("cost_usd", "plan_cost_usd"),
        ),
        # Finds a key of scope 'user' in whichever session counted it, and keeps it from being counted twice.
        Index(None, "user_id", "event_id", unique=True, postgresql_where=text("key_scope = 'user'")),
        # Finds the row of scope 'run' of a run, in whichever session counted it.
        Index(None, "user_id", "run_id", unique=True, postgresql_where=text("key_scope = 'run'")),
        # Reports by the time of use. BRIN indexes ranges of pages: the ledger is written in about this order.
        Index(None, "at", postgresql_using="brin", postgresql_with={"autosummarize": "on"}),
    )


# Activity: runs, their steps, and messages


class _Recording:
    """What a run, a step and a message have in common."""

    # The revision of the content. A recording with a higher one replaces the content.
    revision: Mapped[int] = mapped_column(Integer, server_default=ZERO, sort_order=LAST)
    # The number of the first recording. It orders what happened at one moment, and recording again leaves it as it is.
    record_no: Mapped[int] = mapped_column(BigInteger, Identity(), sort_order=LAST)


IS_ERROR = "COALESCE((jsonb_typeof(errors) <> 'null'::text) AND (errors <> '[]'::jsonb), false)"


class SessionRunEntity(_Recording, Base):
    """A unit of agent work. A row without a start stands for a run that others named and that is not recorded yet."""

    __tablename__ = "session_runs"

    user_id: Mapped[UUID] = mapped_column(Uuid, primary_key=True)
    run_id: Mapped[str] = mapped_column(KeyText, primary_key=True)
    # The session that counts the run; null where the run is outside a session, because the root of its thread is
    # unknown.
    session_id: Mapped[str | None] = mapped_column(KeyText)
    # Whether the caller gave the session; otherwise it is derived from the root of the thread. `parent_given` and
    # `root_given` say the same of the parent and the root.
    session_given: Mapped[bool] = mapped_column(Boolean, server_default=text("false"))
    parent_run_id: Mapped[str | None] = mapped_column(KeyText)
    parent_given: Mapped[bool] = mapped_column(Boolean, server_default=text("false"))
    root_run_id: Mapped[str | None] = mapped_column(KeyText)
    root_given: Mapped[bool] = mapped_column(Boolean, server_default=text("false"))
    parent_tool_call_id: Mapped[str | None] = mapped_column(KeyText)
    dataset_id: Mapped[UUID | None] = mapped_column(Uuid)
    project: Mapped[str | None] = mapped_column(KeyText)
    agent_name: Mapped[str | None] = mapped_column(KeyText)
    client: Mapped[str | None] = mapped_column(KeyText)
    provider: Mapped[str | None] = mapped_column(KeyText)
    model: Mapped[str | None] = mapped_column(KeyText)
    name: Mapped[str | None] = mapped_column(Text)
    started_at: Mapped[datetime | None] = mapped_column(TIMESTAMPTZ)
    ended_at: Mapped[datetime | None] = mapped_column(TIMESTAMPTZ)
    status: Mapped[str] = mapped_column(Text, server_default=text("'running'"))
    error: Mapped[str | None] = mapped_column(Text)
    input: Mapped[Any | None] = mapped_column(JSONB)
    output: Mapped[Any | None] = mapped_column(JSONB)
    run_metadata: Mapped[dict[str, Any] | None] = mapped_column("metadata", JSONB)
    quality_score: Mapped[float | None] = mapped_column(Double)
    reported_cost_usd: Mapped[Decimal | None] = mapped_column(MONEY)
    reported_tokens: Mapped[int | None] = mapped_column(BigInteger)
    # The totals of the run's events that are not late. The writers of the events keep them.
    events_cost_usd: Mapped[Decimal] = mapped_column(MONEY, server_default=ZERO)
    events_tokens_in: Mapped[int] = mapped_column(BigInteger, server_default=ZERO)
    events_tokens_out: Mapped[int] = mapped_column(BigInteger, server_default=ZERO)
    events_cache_read_tokens: Mapped[int] = mapped_column(BigInteger, server_default=ZERO)
    events_cache_write_tokens: Mapped[int] = mapped_column(BigInteger, server_default=ZERO)
    # The price of the events under a plan; null where there are none.
    events_plan_cost_usd: Mapped[Decimal | None] = mapped_column(MONEY)
    # The earliest start, and the latest start or end, of the run and its steps.
    first_seen: Mapped[datetime | None] = mapped_column(TIMESTAMPTZ)
    last_seen: Mapped[datetime | None] = mapped_column(TIMESTAMPTZ)

    __table_args__ = (
        CheckConstraint("status IN ('running', 'completed', 'failed', 'cancelled')", name="status"),
        # All indexes are partial, so that Postgres never plans a lookup by key with them (see `SessionRecordEntity`).
        # From version 18 on it could skip over a leading column.
        # The runs of a session.
        Index(
            None,
            "user_id",
            "session_id",
            "started_at",
            "record_no",
            postgresql_where=text("started_at IS NOT NULL"),
        ),
        # The runs that were recorded before their parent; and the runs of a thread.
        Index(None, "user_id", "parent_run_id", postgresql_where=text("parent_run_id IS NOT NULL")),
        Index(None, "user_id", "root_run_id", postgresql_where=text("root_run_id IS NOT NULL")),
        # The runs that were recorded before the run that made their tool call.
        Index(None, "user_id", "parent_tool_call_id", postgresql_where=text("parent_tool_call_id IS NOT NULL")),
        # The sessions of all users by model and by client. Postgres takes no statistics of an expression from a partial
        # index, and would expect 200 models of as many runs each. So the migration creates statistics, too.
        Index(
            "ix_session_runs_lower_model_user_id_session_id",
            text("lower(model)"),
            "user_id",
            "session_id",
            postgresql_where=text("model IS NOT NULL"),
        ),
        Index(None, "client", "user_id", "session_id", postgresql_where=text("client IS NOT NULL")),
        # A user's runs by time: run telemetry, and pages of runs.
        Index(None, "user_id", "started_at", "record_no", postgresql_where=text("started_at IS NOT NULL")),
        # Reports by the end of the run, as those by the time of use.
        Index(None, "ended_at", postgresql_using="brin", postgresql_with={"autosummarize": "on"}),
    )


class SessionStepEntity(_Recording, Base):
    """A part of a run: a task, a tool call or a span."""

    __tablename__ = "session_steps"

    user_id: Mapped[UUID] = mapped_column(Uuid, primary_key=True)
    run_id: Mapped[str] = mapped_column(KeyText, primary_key=True)
    step_id: Mapped[str] = mapped_column(KeyText, primary_key=True)
    parent_step_id: Mapped[str | None] = mapped_column(KeyText)
    seq: Mapped[int | None] = mapped_column(BigInteger)
    kind: Mapped[str] = mapped_column(KeyText)
    name: Mapped[str | None] = mapped_column(Text)
    started_at: Mapped[datetime] = mapped_column(TIMESTAMPTZ)
    ended_at: Mapped[datetime | None] = mapped_column(TIMESTAMPTZ)
    inputs: Mapped[Any | None] = mapped_column(JSONB)
    output: Mapped[Any | None] = mapped_column(JSONB)
    prompt: Mapped[Any | None] = mapped_column(JSONB)
    errors: Mapped[Any | None] = mapped_column(JSONB)
    tool_call_id: Mapped[str | None] = mapped_column(KeyText)
    server_url: Mapped[str | None] = mapped_column(Text)
    injected: Mapped[bool] = mapped_column(Boolean, server_default=text("false"))
    step_metadata: Mapped[dict[str, Any] | None] = mapped_column("metadata", JSONB)
    # True where `errors` is a non-empty array, or any JSON value that is neither an array nor null.
    is_error: Mapped[bool] = mapped_column(Boolean, Computed(IS_ERROR, persisted=True))

    __table_args__ = (
        # Finds the run that made a tool call, the newest first.
        Index(None, "user_id", "tool_call_id", "started_at", postgresql_where=text("tool_call_id IS NOT NULL")),
    )


class SessionMessageEntity(_Recording, Base):
    """A message of a session: a user's prompt, an assistant's reply or a model's thought."""

    __tablename__ = "session_messages"

    user_id: Mapped[UUID] = mapped_column(Uuid, primary_key=True)
    session_id: Mapped[str] = mapped_column(KeyText, primary_key=True)
    message_id: Mapped[str] = mapped_column(KeyText, primary_key=True)
    run_id: Mapped[str | None] = mapped_column(KeyText)
    role: Mapped[str] = mapped_column(Text)
    content: Mapped[str] = mapped_column(Text)
    # The content with its case folded by Unicode, whatever the database's locale. A search reads this column.
    content_folded: Mapped[str] = mapped_column(Text)
    created_at: Mapped[datetime] = mapped_column(TIMESTAMPTZ)
    message_metadata: Mapped[dict[str, Any] | None] = mapped_column("metadata", JSONB)

    __table_args__ = (
        CheckConstraint("role IN ('user', 'assistant', 'system', 'tool', 'thought')", name="role"),
        # The messages of a session in their order.
        Index(None, "user_id", "session_id", "created_at", "record_no"),
        # The messages of a run: its prompt and its thoughts.
        Index(None, "user_id", "run_id", "created_at", postgresql_where=text("run_id IS NOT NULL")),
    )


# Roll-ups: the rolled-up sessions, the totals over them, and the changes that are not yet put into the totals


# Each status begins with another letter, and an index on the letter is a fifth smaller.
STATUS_INITIAL = '"left"(status, 1)'


def _activity_index(*of: str) -> Index:
    """An index by status and activity, of each user, dataset or agent."""
    conditions = [f"{name} IS NOT NULL" for name in of if name != "user_id"] if of else [OF_EVERYBODY]
    where = text(" AND ".join(conditions)) if conditions else None
    name = "_".join(("ix_rolled_up_sessions", *of, "last_activity_at"))
    return Index(name, *of, text(STATUS_INITIAL), "last_activity_at", postgresql_where=where)


class RolledUpSessionEntity(Base):
    """A rolled-up session, as the roll-ups count it. Every change of the session deletes the row.

    Its indexes serve pages of sessions by activity, and the sums over sessions that no bucket counts. The same indexes
    on `session_records` would slow down writers, who update that table often and this one never. There is a row for
    each session that ever ended, so a row is short.
    """

    __tablename__ = "rolled_up_sessions"

    # The columns of a fixed length come first: Postgres leaves room between a text and a number. A figure that
    # may be null is null where it is zero, as nearly everywhere.
    user_id: Mapped[UUID] = mapped_column(Uuid, primary_key=True)
    dataset_id: Mapped[UUID | None] = mapped_column(Uuid)
    started_at: Mapped[datetime] = mapped_column(TIMESTAMPTZ)
    last_activity_at: Mapped[datetime] = mapped_column(TIMESTAMPTZ)
    ended_at: Mapped[datetime | None] = mapped_column(TIMESTAMPTZ)
    tokens_in: Mapped[int] = mapped_column(BigInteger)
    tokens_out: Mapped[int] = mapped_column(BigInteger)
    unpriced_events: Mapped[int | None] = mapped_column(BigInteger)
    unmeasured_events: Mapped[int | None] = mapped_column(BigInteger)
    late_events: Mapped[int | None] = mapped_column(BigInteger)
    session_id: Mapped[str] = mapped_column(KeyText, primary_key=True)
    agent_name: Mapped[str | None] = mapped_column(Text)
    status: Mapped[str] = mapped_column(Text)
    cost_usd: Mapped[Decimal] = mapped_column(MONEY)
    late_cost_usd: Mapped[Decimal | None] = mapped_column(MONEY)
    # The usage by model, with the models' names as they are reported. JSON as text is half as long as JSONB, and the
    # names of its fields are short too: `session_models_v1` has them.
    models: Mapped[list[dict[str, Any]]] = mapped_column(JSON)
    further_totals: Mapped[dict[str, Any] | None] = mapped_column(JSONB)

    __table_args__ = (
        _activity_index("user_id"),
        _activity_index("dataset_id"),
        _activity_index(),
        # The sessions of an agent, and a user's sessions in a dataset.
        _activity_index("user_id", "agent_name"),
        _activity_index("dataset_id", "agent_name"),
        _activity_index("user_id", "dataset_id"),
        # The sessions of all scopes by cost. One for each kind of scope would take three times the space.
        Index(None, "cost_usd"),
    )


class _Totals:
    """The totals over sessions."""

    sessions: Mapped[int] = mapped_column(BigInteger, server_default=ZERO, sort_order=LAST)
    cost_usd: Mapped[Decimal] = mapped_column(MONEY, server_default=ZERO, sort_order=LAST)
    tokens_in: Mapped[Decimal] = mapped_column(Numeric, server_default=ZERO, sort_order=LAST)
    tokens_out: Mapped[Decimal] = mapped_column(Numeric, server_default=ZERO, sort_order=LAST)
    duration_us: Mapped[Decimal] = mapped_column(Numeric, server_default=ZERO, sort_order=LAST)
    unpriced_events: Mapped[int] = mapped_column(BigInteger, server_default=ZERO, sort_order=LAST)
    unmeasured_events: Mapped[int] = mapped_column(BigInteger, server_default=ZERO, sort_order=LAST)
    late_events: Mapped[int] = mapped_column(BigInteger, server_default=ZERO, sort_order=LAST)
    late_cost_usd: Mapped[Decimal] = mapped_column(MONEY, server_default=ZERO, sort_order=LAST)
    further_totals: Mapped[dict[str, Any] | None] = mapped_column(JSONB, sort_order=LAST)


class _ModelTotals:
    """The totals over one model in sessions."""

    sessions: Mapped[int] = mapped_column(BigInteger, server_default=ZERO, sort_order=LAST)
    cost_usd: Mapped[Decimal] = mapped_column(MONEY, server_default=ZERO, sort_order=LAST)
    tokens_in: Mapped[Decimal] = mapped_column(Numeric, server_default=ZERO, sort_order=LAST)
    tokens_out: Mapped[Decimal] = mapped_column(Numeric, server_default=ZERO, sort_order=LAST)
    cache_read_tokens: Mapped[Decimal] = mapped_column(Numeric, server_default=ZERO, sort_order=LAST)
    cache_write_tokens: Mapped[Decimal] = mapped_column(Numeric, server_default=ZERO, sort_order=LAST)
    reasoning_tokens: Mapped[Decimal] = mapped_column(Numeric, server_default=ZERO, sort_order=LAST)
    events: Mapped[int] = mapped_column(BigInteger, server_default=ZERO, sort_order=LAST)
    unpriced_events: Mapped[int] = mapped_column(BigInteger, server_default=ZERO, sort_order=LAST)
    further_totals: Mapped[dict[str, Any] | None] = mapped_column(JSONB, sort_order=LAST)


class _Bucket:
    """The sessions and the time that a row of the roll-ups counts.

    Four families count each session: everybody's, its user's, its dataset's, and the family of its user in its data
    set. The figures of a viewer are the sum over their users and datasets, minus the sum over those users in those
    datasets, so that no session is counted twice.
    """

    family: Mapped[str] = mapped_column(KeyText, primary_key=True, sort_order=FIRST)
    # The zero UUID where the family has no user or no dataset.
    user_id: Mapped[UUID] = mapped_column(Uuid, primary_key=True, sort_order=FIRST)
    dataset_id: Mapped[UUID] = mapped_column(Uuid, primary_key=True, sort_order=FIRST)
    level: Mapped[str] = mapped_column(KeyText, primary_key=True, sort_order=FIRST)


class _Change:
    """The amounts that a session adds to the totals, or takes away where they are negative. `roll_up` puts them in."""

    change_id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True, sort_order=FIRST)
    user_id: Mapped[UUID] = mapped_column(Uuid, sort_order=FIRST)
    dataset_id: Mapped[UUID | None] = mapped_column(Uuid, sort_order=FIRST)


def _owner_indexes() -> tuple[Index, Index]:
    return (
        Index(None, "user_id", "starts_at"),
        Index(None, "dataset_id", "starts_at", postgresql_where=text("dataset_id IS NOT NULL")),
    )


class SessionRollUpEntity(_Bucket, _Totals, Base):
    """The totals over the sessions of one family and one status that were last active in one bucket of time.

    A bucket's level is its length: an hour, 6 hours, 36 hours, 9, 54 or 324 days. The six parts of a bucket are kept
    only where it has many sessions for each (`levels` in `alembic/functions/`). Where they are not, reads count the
    rows of `rolled_up_sessions`.
    """

    __tablename__ = "session_roll_ups"

    starts_at: Mapped[datetime] = mapped_column(TIMESTAMPTZ, primary_key=True)
    status: Mapped[str] = mapped_column(KeyText, primary_key=True)

    __table_args__ = (PrimaryKeyConstraint("family", "user_id", "dataset_id", "level", "starts_at", "status"),)


class SessionModelRollUpEntity(_Bucket, _ModelTotals, Base):
    """The totals of one model over the sessions of one family that were last active in one bucket of time."""

    __tablename__ = "session_model_roll_ups"

    starts_at: Mapped[datetime] = mapped_column(TIMESTAMPTZ, primary_key=True)
    # The name as it is reported: usage without a model is `unknown`.
    model: Mapped[str] = mapped_column(KeyText, primary_key=True)

    __table_args__ = (PrimaryKeyConstraint("family", "user_id", "dataset_id", "level", "starts_at", "model"),)


class SessionRollUpChangeEntity(_Change, _Totals, Base):
    """A change of `session_roll_ups`, in a bucket of an hour."""

    __tablename__ = "session_roll_up_changes"

    starts_at: Mapped[datetime] = mapped_column(TIMESTAMPTZ)
    status: Mapped[str] = mapped_column(KeyText)

    __table_args__ = _owner_indexes()


class SessionModelRollUpChangeEntity(_Change, _ModelTotals, Base):
    """A change of `session_model_roll_ups`, in a bucket of an hour."""

    __tablename__ = "session_model_roll_up_changes"

    starts_at: Mapped[datetime] = mapped_column(TIMESTAMPTZ)
    model: Mapped[str] = mapped_column(KeyText)

    __table_args__ = _owner_indexes()


# Budgets, and what is reserved in them


class SessionBudgetEntity(Base):
    """A limit on what sessions use in a window. It counts the sessions that have every user, session, agent and dataset
    that it names.
    """

    __tablename__ = "session_budgets"

    budget_id: Mapped[str] = mapped_column(KeyText, primary_key=True)
    user_id: Mapped[UUID | None] = mapped_column(Uuid)
    session_id: Mapped[str | None] = mapped_column(KeyText)
    agent_name: Mapped[str | None] = mapped_column(KeyText)
    dataset_id: Mapped[UUID | None] = mapped_column(Uuid)
    limit_usd: Mapped[Decimal | None] = mapped_column(MONEY)
    limit_tokens: Mapped[int | None] = mapped_column(BigInteger)
    # The window: a calendar's unit or a length in microseconds; both null for all time.
    calendar: Mapped[str | None] = mapped_column(Text)
    rolling_us: Mapped[int | None] = mapped_column(BigInteger)
    timezone: Mapped[str] = mapped_column(Text, server_default=text("'UTC'"))
    on_unpriced: Mapped[str] = mapped_column(Text, server_default=text("'refuse'"))

    __table_args__ = (
        CheckConstraint(
            "num_nonnulls(user_id, agent_name, dataset_id) > 0 AND (session_id IS NULL OR user_id IS NOT NULL)",
            name="names",
        ),
        CheckConstraint("num_nonnulls(limit_usd, limit_tokens) > 0", name="limits"),
        CheckConstraint(
            "num_nonnulls(calendar, rolling_us) < 2 AND calendar IN ('hour', 'day', 'week', 'month') "
            "AND rolling_us > 0",
            name="window",
        ),
        CheckConstraint("on_unpriced IN ('refuse', 'admit')", name="on_unpriced"),
        never_negative("limit_tokens", costs=("limit_usd",)),
        # The budgets that apply to a session: those of its user, and those of everybody with its agent or its dataset.
        Index(None, "user_id", "session_id", postgresql_where=text("user_id IS NOT NULL")),
        Index(None, "agent_name", postgresql_where=text("user_id IS NULL")),
        Index(None, "dataset_id", postgresql_where=text("user_id IS NULL AND agent_name IS NULL")),
    )


class SessionReservationEntity(Base):
    """An amount that a call in flight may use.

    It counts in every budget that counts its session, until its lease ends or the ledger has the event.
    """

    __tablename__ = "session_reservations"

    user_id: Mapped[UUID] = mapped_column(Uuid, primary_key=True)
    session_id: Mapped[str] = mapped_column(KeyText, primary_key=True)
    # The id that the event with this key will have.
    event_id: Mapped[UUID] = mapped_column(Uuid, primary_key=True)
    key_scope: Mapped[str] = mapped_column(Text, server_default=text("'session'"))
    # Those of the session count, where it has any.
    agent_name: Mapped[str | None] = mapped_column(KeyText)
    dataset_id: Mapped[UUID | None] = mapped_column(Uuid)
    cost_usd: Mapped[Decimal] = mapped_column(MONEY, server_default=ZERO)
    tokens: Mapped[int] = mapped_column(BigInteger, server_default=ZERO)
    reserved_at: Mapped[datetime] = mapped_column(TIMESTAMPTZ, server_default=text("statement_timestamp()"))
    expires_at: Mapped[datetime] = mapped_column(TIMESTAMPTZ)

    __table_args__ = (
        CheckConstraint("key_scope IN ('session', 'user')", name="key_scope"),
        never_negative("tokens"),
        # The reservations that have expired are deleted.
        Index(None, "expires_at"),
    )


# Maintenance: erased users and repricings


class SessionTombstoneEntity(Base):
    """An erased user, who must not come back. Every write that names the user is refused."""

    __tablename__ = "session_tombstones"

    user_id: Mapped[UUID] = mapped_column(Uuid, primary_key=True)
    erased_at: Mapped[datetime] = mapped_column(TIMESTAMPTZ, server_default=text("statement_timestamp()"))


class SessionRepricingEntity(Base):
    """The audit of repricings: one row per repricing.

    Each batch of a repricing updates the figures in the transaction that changes the events.
    """

    __tablename__ = "session_repricings"

    repricing_id: Mapped[UUID] = mapped_column(Uuid, primary_key=True)
    model: Mapped[str | None] = mapped_column(Text(collation="C"))
    since: Mapped[datetime | None] = mapped_column(TIMESTAMPTZ)
    until: Mapped[datetime | None] = mapped_column(TIMESTAMPTZ)
    began_at: Mapped[datetime] = mapped_column(TIMESTAMPTZ, server_default=text("statement_timestamp()"))
    last_written_at: Mapped[datetime] = mapped_column(TIMESTAMPTZ, server_default=text("statement_timestamp()"))
    events: Mapped[int] = mapped_column(BigInteger, server_default=ZERO)
    cost_before_usd: Mapped[Decimal] = mapped_column(MONEY, server_default=ZERO)
    cost_after_usd: Mapped[Decimal] = mapped_column(MONEY, server_default=ZERO)


# Buckets of users


class SessionBucketEntity(Base):
    """What this schema is, where it is one of several buckets of users: one row. Without a row it is no bucket.

    Where a bucket was before it moved, its schema has nothing but this table, and the row says where the bucket went.
    """

    __tablename__ = "session_buckets"

    number: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    bucket_count: Mapped[int] = mapped_column(Integer)
    # Which function chooses the bucket of a user. It is fixed for ever, as the number of buckets is.
    hash_name: Mapped[str] = mapped_column(KeyText)
    # The same in all buckets that belong together.
    deployment_id: Mapped[UUID] = mapped_column(Uuid)
    # The URL of the place to which the bucket went, without a password.
    moved_to: Mapped[str | None] = mapped_column(Text)
    # The move that brought the bucket here or, beside `moved_to`, took it away.
    move_id: Mapped[UUID | None] = mapped_column(Uuid)

    __table_args__ = (
        CheckConstraint("bucket_count BETWEEN 1 AND 64 AND number >= 0 AND number < bucket_count", name="number"),
    )


# For a host's Alembic

VERSION_TABLE = "session_lifecycle_version"
"""The table with the schema's revision. The name is specific to this library, so a host's own Alembic never uses it."""

KEY_TABLE = "session_viewer_key"
"""The table with the key of row-level security, where an operator has enabled it."""


def include_object(obj: Any, _name: str | None, type_: str, _reflected: bool, _compare_to: Any, /) -> bool:
    """Leaves our tables out of a host's autogenerate. The host passes it to `context.configure(include_object=…)`.

    Returns:
        False for our tables and their parts, in any schema; True for everything else. The name and the key columns
        decide whether a table is ours, so a host's own table `session_records` still counts as the host's.
    """
    table = obj if type_ == "table" else getattr(obj, "table", None)
    if table is None:
        return True
    keys = {ours.name: set(ours.primary_key.columns.keys()) for ours in metadata.tables.values()}
    keys[VERSION_TABLE] = {"version_num"}
    keys[KEY_TABLE] = {"only_row"}
    return not (table.name in keys and keys[table.name] <= set(table.columns.keys()))
