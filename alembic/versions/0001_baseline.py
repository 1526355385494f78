"""The schema as first released: tables, indexes, functions and the trigger that keeps the roll-ups true.

The functions are the files of `alembic/functions/`; its README.md says which calls which.
"""

from collections.abc import Mapping, Sequence

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

from session_lifecycle.entities import quoted
from session_lifecycle.postgres.function_files import function_files
from session_lifecycle.postgres.notes import drop_trigger_sql
from session_lifecycle.postgres.schema_objects import create_function_sql, create_search_index_sql, create_trigger_sql

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

INSTANT = sa.DateTime(timezone=True)
# Sorted by bytes: the order of the same texts in Python, and one that no update of the system's locales changes.
KEY = sa.Text(collation="C")
NOW = sa.text("statement_timestamp()")
IS_ERROR = "COALESCE((jsonb_typeof(errors) <> 'null'::text) AND (errors <> '[]'::jsonb), false)"
# A partial index is planned only for a statement that names its condition. So lookups by key, which name none, are
# never planned with one: while statistics are missing the planner could take it for as good as the primary key.
OF_EVERYBODY = "session_id <> ''"
NOT_ROLLED_UP = "NOT rolled_up"
SESSION_FIGURES: Mapping[str, type[sa.Numeric] | type[sa.BigInteger]] = {
    "sessions": sa.BigInteger,
    "cost_usd": sa.Numeric,
    "tokens_in": sa.Numeric,
    "tokens_out": sa.Numeric,
    "duration_us": sa.Numeric,
    "unpriced_events": sa.BigInteger,
    "unmeasured_events": sa.BigInteger,
    "late_events": sa.BigInteger,
    "late_cost_usd": sa.Numeric,
}
MODEL_FIGURES: Mapping[str, type[sa.Numeric] | type[sa.BigInteger]] = {
    "sessions": sa.BigInteger,
    "cost_usd": sa.Numeric,
    "tokens_in": sa.Numeric,
    "tokens_out": sa.Numeric,
    "cache_read_tokens": sa.Numeric,
    "cache_write_tokens": sa.Numeric,
    "reasoning_tokens": sa.Numeric,
    "events": sa.BigInteger,
    "unpriced_events": sa.BigInteger,
}
# Each after the functions that a body parsed at its creation calls.
FUNCTIONS = (
    "oldest_served_version_v1",
    "sum_totals_v1",
    "event_totals_v1",
    "refuse_erased",
    "lock_session",
    "lock_sessions",
    "keyed_event_id",
    "lock_runs",
    "follow_runs",
    "adjust_run",
    "settle_runs",
    "record_activity",
    "record_wave",
    "refuse_parent_cycles",
    "replaces_run_events",
    "record_locked",
    "create_sessions",
    "record_plain",
    "record_v1",
    "lock_items_v1",
    "update_session_v1",
    "annotate_session_v1",
    "reprice_v1",
    "notify_of_changes_v1",
    "lock_idle_sessions",
    "is_settled",
    "delete_settled",
    "window_begin",
    "applying_budgets_v1",
    "budget_use_v1",
    "reserve_v1",
    "set_budget_v1",
    "delete_runs",
    "delete_activity",
    "delete_unnamed_runs",
    "delete_locked",
    "delete_sessions_v1",
    "delete_waiting_runs_v1",
    "empty_sessions_v1",
    "anonymise_sessions_v1",
    "write_tombstone_v1",
    "density",
    "share",
    "model_shares_v1",
    "append_changes",
    "leave_roll_ups_v1",
    "session_models_v1",
    "roll_up_sessions_v1",
    "families",
    "levels",
    "lock_roll_ups",
    "members",
    "is_dense",
    "add_parts",
    "compact_roll_ups_v1",
    "take_out_of_roll_ups_v1",
    "holds",
    "depths",
    "expected_roll_ups_v1",
    "rebuild_roll_ups_v1",
)
TABLES = (
    "session_records",
    "session_annotations",
    "session_model_usage",
    "session_usage_events",
    "session_runs",
    "session_steps",
    "session_messages",
    "session_budgets",
    "session_reservations",
    "session_tombstones",
    "session_repricings",
    "session_buckets",
    "rolled_up_sessions",
    "session_roll_ups",
    "session_roll_up_changes",
    "session_model_roll_ups",
    "session_model_roll_up_changes",
)


def schema() -> str:
    return str(op.get_context().version_table_schema)


def execute(sql: str) -> None:
    """Runs the SQL as it stands: a colon in it begins no parameter."""
    op.execute(sa.text(sql.replace(":", "\\:")))


def key(name: str, *, nullable: bool = False) -> sa.Column[str]:
    return sa.Column(name, KEY, nullable=nullable)


def flag(name: str, default: str = "false") -> sa.Column[bool]:
    return sa.Column(name, sa.Boolean, server_default=sa.text(default), nullable=False)


def count(name: str) -> sa.Column[int]:
    return sa.Column(name, sa.BigInteger, server_default=sa.text("0"), nullable=False)


def money(name: str) -> sa.Column[sa.Numeric]:
    return sa.Column(name, sa.Numeric, server_default=sa.text("0"), nullable=False)


def recording() -> tuple[sa.Column[int], sa.Column[int]]:
    """The revision of the content, and the number that orders what happened at one moment."""
    return (
        sa.Column("revision", sa.Integer, server_default=sa.text("0"), nullable=False),
        sa.Column("record_no", sa.BigInteger, sa.Identity(always=False), nullable=False),
    )


def check(table: str, name: str, condition: str) -> sa.CheckConstraint:
    return sa.CheckConstraint(condition, name=op.f(f"ck_{table}_{name}"))


def further_totals() -> sa.Column[object]:
    return sa.Column("further_totals", postgresql.JSONB)


def never_negative(table: str, *counts: str, costs: Sequence[str] = ("cost_usd",)) -> sa.CheckConstraint:
    # LEAST skips nulls, and one expression is ready sooner than one for each column: Postgres prepares it anew in each
    # statement. NaN is greater than every number, infinity included.
    sums = [f"LEAST({', '.join(counts)}) >= 0", *(f"{cost} >= 0 AND {cost} < 'Infinity'" for cost in costs)]
    return check(table, "never_negative", " AND ".join(sums))


def create_table(name: str, *parts: sa.Column[object] | sa.CheckConstraint, key: Sequence[str]) -> None:
    op.create_table(name, *parts, sa.PrimaryKeyConstraint(*key, name=op.f(f"pk_{name}")), schema=schema())


def create_index(table: str, *columns: str, where: str | None = None, unique: bool = False, name: str = "") -> None:
    op.create_index(
        op.f(name or f"ix_{table}_{'_'.join(columns)}"),
        table,
        [sa.text(column) if "(" in column else column for column in columns],
        unique=unique,
        schema=schema(),
        postgresql_where=None if where is None else sa.text(where),
    )


def create_index_of_pages(table: str, column: str) -> None:
    """Of ranges of pages: rows come in about the order of time, and an entry costs a writer hardly anything."""
    op.create_index(
        op.f(f"ix_{table}_{column}"),
        table,
        [column],
        schema=schema(),
        postgresql_using="brin",
        postgresql_with={"autosummarize": "on"},
    )


def create_sessions() -> None:
    table = "session_records"
    counted = ("tokens_in", "tokens_out", "error_count", "cache_read_tokens", "cache_write_tokens", "reasoning_tokens")
    counted += ("unpriced_events", "unmeasured_events", "late_events")
    create_table(
        table,
        sa.Column("user_id", sa.Uuid, nullable=False),
        key("session_id"),
        sa.Column("dataset_id", sa.Uuid),
        sa.Column("status", sa.Text, server_default=sa.text("'running'"), nullable=False),
        sa.Column("started_at", INSTANT, server_default=NOW, nullable=False),
        sa.Column("last_activity_at", INSTANT, server_default=NOW, nullable=False),
        sa.Column("ended_at", INSTANT),
        count("tokens_in"),
        count("tokens_out"),
        money("cost_usd"),
        count("error_count"),
        sa.Column("last_model", sa.Text),
        sa.Column("last_model_at", INSTANT),
        sa.Column("agent_name", sa.Text),
        sa.Column("title", sa.Text),
        sa.Column("metadata", postgresql.JSONB, server_default=sa.text("'{}'"), nullable=False),
        count("cache_read_tokens"),
        count("cache_write_tokens"),
        count("reasoning_tokens"),
        count("unpriced_events"),
        count("unmeasured_events"),
        count("late_events"),
        money("late_cost_usd"),
        sa.Column(
            "activity_minute",
            INSTANT,
            sa.Computed("date_bin('1 minute', last_activity_at, '2000-01-01 00:00:00+00')", persisted=True),
            nullable=False,
        ),
        flag("derived"),
        sa.Column("own_started_at", INSTANT),
        sa.Column("own_last_activity_at", INSTANT),
        flag("rolled_up"),
        further_totals(),
        sa.Column("tags", postgresql.JSONB),
        sa.Column("waiting_since", INSTANT),
        sa.Column("end_reason", sa.Text),
        key("parent_session_id", nullable=True),
        check(table, "status", "status IN ('running', 'completed', 'failed')"),
        check(table, "ended_at", "(status = 'running') = (ended_at IS NULL)"),
        never_negative(table, *counted, costs=("cost_usd", "late_cost_usd")),
        key=("user_id", "session_id"),
    )
    shared = f"{NOT_ROLLED_UP} AND dataset_id IS NOT NULL"
    create_index(table, "user_id", "status", "activity_minute", where=NOT_ROLLED_UP)
    create_index(table, "dataset_id", "status", "activity_minute", where=shared)
    create_index(table, "status", "activity_minute", where=f"{NOT_ROLLED_UP} AND {OF_EVERYBODY}")
    may_wait = f"{NOT_ROLLED_UP} AND waiting_since IS NOT NULL"
    waiting = f"ix_{table}_waiting"
    create_index(table, "user_id", "status", "activity_minute", where=may_wait, name=f"{waiting}_user_id")
    create_index(
        table,
        "dataset_id",
        "status",
        "activity_minute",
        where=f"{may_wait} AND dataset_id IS NOT NULL",
        name=f"{waiting}_dataset_id",
    )
    create_index(table, "status", "activity_minute", where=may_wait, name=waiting)
    create_index(table, "session_id", "activity_minute")
    create_index(table, "session_id", "dataset_id", "activity_minute", where="dataset_id IS NOT NULL")
    create_index(table, "user_id", "parent_session_id", where="parent_session_id IS NOT NULL")
    create_table(
        "session_annotations",
        sa.Column("user_id", sa.Uuid, nullable=False),
        key("session_id"),
        key("name"),
        sa.Column("annotator", KEY, server_default=sa.text("''"), nullable=False),
        sa.Column("score", sa.Double),
        sa.Column("label", sa.Text),
        sa.Column("comment", sa.Text),
        sa.Column("at", INSTANT, server_default=NOW, nullable=False),
        key=("user_id", "session_id", "name", "annotator"),
    )


def create_usage() -> None:
    table = "session_model_usage"
    counted = ("tokens_in", "tokens_out", "cache_read_tokens", "cache_write_tokens", "reasoning_tokens")
    create_table(
        table,
        sa.Column("user_id", sa.Uuid, nullable=False),
        key("session_id"),
        key("model"),
        count("tokens_in"),
        count("tokens_out"),
        money("cost_usd"),
        count("cache_read_tokens"),
        count("cache_write_tokens"),
        count("reasoning_tokens"),
        count("events"),
        count("unpriced_events"),
        count("unmeasured_events"),
        sa.Column("model_key", KEY, sa.Computed("lower(model)", persisted=True), nullable=False),
        further_totals(),
        never_negative(table, *counted, "events", "unpriced_events", "unmeasured_events"),
        key=("user_id", "session_id", "model_key"),
    )

    table = "session_usage_events"
    create_table(
        table,
        sa.Column("user_id", sa.Uuid, nullable=False),
        sa.Column("event_id", sa.Uuid, nullable=False),
        key("session_id"),
        sa.Column("at", INSTANT, nullable=False),
        sa.Column("recorded_at", INSTANT, server_default=NOW, nullable=False),
        key("model", nullable=True),
        sa.Column("provider", sa.Text),
        count("tokens_in"),
        count("tokens_out"),
        count("cache_read_tokens"),
        count("cache_write_tokens"),
        count("reasoning_tokens"),
        sa.Column("cost_usd", sa.Numeric),
        sa.Column("given_cost_usd", sa.Numeric),
        sa.Column("price_source", sa.Text),
        sa.Column("unit_prices", postgresql.JSONB),
        flag("errored"),
        flag("measured", "true"),
        flag("late"),
        sa.Column("idempotency_key", sa.Text),
        sa.Column("key_scope", sa.Text, server_default=sa.text("'session'"), nullable=False),
        sa.Column("revision", sa.Integer, server_default=sa.text("0"), nullable=False),
        sa.Column("run_id", sa.Text),
        sa.Column("details", postgresql.JSONB, server_default=sa.text("'{}'"), nullable=False),
        sa.Column("parts", postgresql.JSONB),
        sa.Column("billing", sa.Text, server_default=sa.text("'api'"), nullable=False),
        sa.Column("plan_cost_usd", sa.Numeric),
        sa.Column("kind", sa.Text, server_default=sa.text("'llm'"), nullable=False),
        sa.Column("service_tier", sa.Text, server_default=sa.text("'standard'"), nullable=False),
        flag("partial"),
        check(table, "billing", "billing = 'api' AND plan_cost_usd IS NULL OR billing = 'plan' AND cost_usd = 0"),
        check(table, "key_scope", "key_scope IN ('session', 'user', 'run')"),
        check(table, "parts_of_input", "cache_read_tokens + cache_write_tokens <= tokens_in"),
        check(table, "part_of_output", "reasoning_tokens <= tokens_out"),
        never_negative(table, *counted, "revision", costs=("cost_usd", "plan_cost_usd")),
        # It finds all events of a session, too.
        key=("user_id", "session_id", "event_id"),
    )
    create_index(table, "user_id", "event_id", where="key_scope = 'user'", unique=True)
    create_index(table, "user_id", "run_id", where="key_scope = 'run'", unique=True)
    create_index_of_pages(table, "at")


def create_runs() -> None:
    table = "session_runs"
    create_table(
        table,
        sa.Column("user_id", sa.Uuid, nullable=False),
        key("run_id"),
        key("session_id", nullable=True),
        flag("session_given"),
        key("parent_run_id", nullable=True),
        flag("parent_given"),
        key("root_run_id", nullable=True),
        flag("root_given"),
        key("parent_tool_call_id", nullable=True),
        sa.Column("dataset_id", sa.Uuid),
        key("project", nullable=True),
        key("agent_name", nullable=True),
        key("client", nullable=True),
        key("provider", nullable=True),
        key("model", nullable=True),
        sa.Column("name", sa.Text),
        sa.Column("started_at", INSTANT),
        sa.Column("ended_at", INSTANT),
        sa.Column("status", sa.Text, server_default=sa.text("'running'"), nullable=False),
        sa.Column("error", sa.Text),
        sa.Column("input", postgresql.JSONB),
        sa.Column("output", postgresql.JSONB),
        sa.Column("metadata", postgresql.JSONB),
        sa.Column("quality_score", sa.Double),
        sa.Column("reported_cost_usd", sa.Numeric),
        sa.Column("reported_tokens", sa.BigInteger),
        money("events_cost_usd"),
        count("events_tokens_in"),
        count("events_tokens_out"),
        count("events_cache_read_tokens"),
        count("events_cache_write_tokens"),
        sa.Column("events_plan_cost_usd", sa.Numeric),
        sa.Column("first_seen", INSTANT),
        sa.Column("last_seen", INSTANT),
        *recording(),
        check(table, "status", "status IN ('running', 'completed', 'failed', 'cancelled')"),
        key=("user_id", "run_id"),
    )
    create_index(table, "user_id", "session_id", "started_at", "record_no", where="started_at IS NOT NULL")
    create_index(table, "user_id", "parent_run_id", where="parent_run_id IS NOT NULL")
    create_index(table, "user_id", "root_run_id", where="root_run_id IS NOT NULL")
    create_index(table, "user_id", "parent_tool_call_id", where="parent_tool_call_id IS NOT NULL")
    op.create_index(
        op.f(f"ix_{table}_lower_model_user_id_session_id"),
        table,
        [sa.text("lower(model)"), "user_id", "session_id"],
        schema=schema(),
        postgresql_where=sa.text("model IS NOT NULL"),
    )
    ours = quoted(schema())
    execute(f"CREATE STATISTICS {ours}.st_{table}_lower_model ON (lower(model)) FROM {ours}.{table}")
    create_index(table, "client", "user_id", "session_id", where="client IS NOT NULL")
    create_index(table, "user_id", "started_at", "record_no", where="started_at IS NOT NULL")
    create_index_of_pages(table, "ended_at")

    table = "session_steps"
    create_table(
        table,
        sa.Column("user_id", sa.Uuid, nullable=False),
        key("run_id"),
        key("step_id"),
        key("parent_step_id", nullable=True),
        sa.Column("seq", sa.BigInteger),
        key("kind"),
        sa.Column("name", sa.Text),
        sa.Column("started_at", INSTANT, nullable=False),
        sa.Column("ended_at", INSTANT),
        sa.Column("inputs", postgresql.JSONB),
        sa.Column("output", postgresql.JSONB),
        sa.Column("prompt", postgresql.JSONB),
        sa.Column("errors", postgresql.JSONB),
        key("tool_call_id", nullable=True),
        sa.Column("server_url", sa.Text),
        flag("injected"),
        sa.Column("metadata", postgresql.JSONB),
        sa.Column("is_error", sa.Boolean, sa.Computed(IS_ERROR, persisted=True), nullable=False),
        *recording(),
        key=("user_id", "run_id", "step_id"),
    )
    create_index(table, "user_id", "tool_call_id", "started_at", where="tool_call_id IS NOT NULL")


def create_messages() -> None:
    table = "session_messages"
    create_table(
        table,
        sa.Column("user_id", sa.Uuid, nullable=False),
        key("session_id"),
        key("message_id"),
        key("run_id", nullable=True),
        sa.Column("role", sa.Text, nullable=False),
        sa.Column("content", sa.Text, nullable=False),
        sa.Column("content_folded", sa.Text, nullable=False),
        sa.Column("created_at", INSTANT, nullable=False),
        sa.Column("metadata", postgresql.JSONB),
        *recording(),
        check(table, "role", "role IN ('user', 'assistant', 'system', 'tool', 'thought')"),
        key=("user_id", "session_id", "message_id"),
    )
    create_index(table, "user_id", "session_id", "created_at", "record_no")
    create_index(table, "user_id", "run_id", "created_at", where="run_id IS NOT NULL")
    op.execute(sa.text(create_search_index_sql(schema())))


def create_budgets() -> None:
    table = "session_budgets"
    named = "num_nonnulls(user_id, agent_name, dataset_id) > 0 AND (session_id IS NULL OR user_id IS NOT NULL)"
    window = (
        "num_nonnulls(calendar, rolling_us) < 2 AND calendar IN ('hour', 'day', 'week', 'month') AND rolling_us > 0"
    )
    create_table(
        table,
        key("budget_id"),
        sa.Column("user_id", sa.Uuid),
        key("session_id", nullable=True),
        key("agent_name", nullable=True),
        sa.Column("dataset_id", sa.Uuid),
        sa.Column("limit_usd", sa.Numeric),
        sa.Column("limit_tokens", sa.BigInteger),
        sa.Column("calendar", sa.Text),
        sa.Column("rolling_us", sa.BigInteger),
        sa.Column("timezone", sa.Text, server_default=sa.text("'UTC'"), nullable=False),
        sa.Column("on_unpriced", sa.Text, server_default=sa.text("'refuse'"), nullable=False),
        check(table, "names", named),
        check(table, "limits", "num_nonnulls(limit_usd, limit_tokens) > 0"),
        check(table, "window", window),
        check(table, "on_unpriced", "on_unpriced IN ('refuse', 'admit')"),
        never_negative(table, "limit_tokens", costs=("limit_usd",)),
        key=("budget_id",),
    )
    create_index(table, "user_id", "session_id", where="user_id IS NOT NULL")
    create_index(table, "agent_name", where="user_id IS NULL")
    create_index(table, "dataset_id", where="user_id IS NULL AND agent_name IS NULL")

    table = "session_reservations"
    create_table(
        table,
        sa.Column("user_id", sa.Uuid, nullable=False),
        key("session_id"),
        sa.Column("event_id", sa.Uuid, nullable=False),
        sa.Column("key_scope", sa.Text, server_default=sa.text("'session'"), nullable=False),
        key("agent_name", nullable=True),
        sa.Column("dataset_id", sa.Uuid),
        money("cost_usd"),
        count("tokens"),
        sa.Column("reserved_at", INSTANT, server_default=NOW, nullable=False),
        sa.Column("expires_at", INSTANT, nullable=False),
        check(table, "key_scope", "key_scope IN ('session', 'user')"),
        never_negative(table, "tokens"),
        key=("user_id", "session_id", "event_id"),
    )
    create_index(table, "expires_at")


def create_maintenance() -> None:
    create_table(
        "session_tombstones",
        sa.Column("user_id", sa.Uuid, nullable=False),
        sa.Column("erased_at", INSTANT, server_default=NOW, nullable=False),
        key=("user_id",),
    )
    create_table(
        "session_repricings",
        sa.Column("repricing_id", sa.Uuid, nullable=False),
        key("model", nullable=True),
        sa.Column("since", INSTANT),
        sa.Column("until", INSTANT),
        sa.Column("began_at", INSTANT, server_default=NOW, nullable=False),
        sa.Column("last_written_at", INSTANT, server_default=NOW, nullable=False),
        count("events"),
        money("cost_before_usd"),
        money("cost_after_usd"),
        key=("repricing_id",),
    )


def create_buckets() -> None:
    table = "session_buckets"
    create_table(
        table,
        sa.Column("number", sa.Integer, autoincrement=False, nullable=False),
        sa.Column("bucket_count", sa.Integer, nullable=False),
        key("hash_name"),
        sa.Column("deployment_id", sa.Uuid, nullable=False),
        sa.Column("moved_to", sa.Text),
        sa.Column("move_id", sa.Uuid),
        check(table, "number", "bucket_count BETWEEN 1 AND 64 AND number >= 0 AND number < bucket_count"),
        key=("number",),
    )


def create_rolled_up_sessions() -> None:
    table = "rolled_up_sessions"
    create_table(
        table,
        sa.Column("user_id", sa.Uuid, nullable=False),
        sa.Column("dataset_id", sa.Uuid),
        sa.Column("started_at", INSTANT, nullable=False),
        sa.Column("last_activity_at", INSTANT, nullable=False),
        sa.Column("ended_at", INSTANT),
        sa.Column("tokens_in", sa.BigInteger, nullable=False),
        sa.Column("tokens_out", sa.BigInteger, nullable=False),
        sa.Column("unpriced_events", sa.BigInteger),
        sa.Column("unmeasured_events", sa.BigInteger),
        sa.Column("late_events", sa.BigInteger),
        key("session_id"),
        sa.Column("agent_name", sa.Text),
        sa.Column("status", sa.Text, nullable=False),
        sa.Column("cost_usd", sa.Numeric, nullable=False),
        sa.Column("late_cost_usd", sa.Numeric),
        sa.Column("models", postgresql.JSON, nullable=False),
        further_totals(),
        key=("user_id", "session_id"),
    )

    def index(*of: str) -> None:
        conditions = [f"{one} IS NOT NULL" for one in of if one != "user_id"] if of else [OF_EVERYBODY]
        name = "_".join((f"ix_{table}", *of, "last_activity_at"))
        create_index(
            table, *of, '"left"(status, 1)', "last_activity_at", where=" AND ".join(conditions) or None, name=name
        )

    index("user_id")
    index("dataset_id")
    index()
    index("user_id", "agent_name")
    index("dataset_id", "agent_name")
    index("user_id", "dataset_id")
    create_index(table, "cost_usd")


def create_roll_ups(name: str, figures: Mapping[str, type[sa.Numeric] | type[sa.BigInteger]], *by: str) -> None:
    """A table of buckets, and the one of the changes that are not put into them yet."""

    def columns() -> list[sa.Column[object]]:
        keys = [sa.Column(one, INSTANT if one == "starts_at" else KEY, nullable=False) for one in by]
        zero = sa.text("0")
        sums = [sa.Column(one, kind, server_default=zero, nullable=False) for one, kind in figures.items()]
        return [*keys, *sums, further_totals()]

    create_table(
        f"{name}s",
        key("family"),
        sa.Column("user_id", sa.Uuid, nullable=False),
        sa.Column("dataset_id", sa.Uuid, nullable=False),
        key("level"),
        *columns(),
        key=("family", "user_id", "dataset_id", "level", *by),
    )
    changes = f"{name}_changes"
    create_table(
        changes,
        sa.Column("change_id", sa.BigInteger, sa.Identity(always=True), nullable=False),
        sa.Column("user_id", sa.Uuid, nullable=False),
        sa.Column("dataset_id", sa.Uuid),
        *columns(),
        key=("change_id",),
    )
    create_index(changes, "user_id", "starts_at")
    create_index(changes, "dataset_id", "starts_at", where="dataset_id IS NOT NULL")


def upgrade() -> None:
    create_sessions()
    create_usage()
    create_runs()
    create_messages()
    create_budgets()
    create_maintenance()
    create_buckets()
    create_rolled_up_sessions()
    create_roll_ups("session_roll_up", SESSION_FIGURES, "starts_at", "status")
    create_roll_ups("session_model_roll_up", MODEL_FIGURES, "starts_at", "model")

    ours = quoted(schema())
    # Room on a page for the next version of a row, which a HOT update needs.
    for table in ("session_records", "session_model_usage"):
        execute(f"ALTER TABLE {ours}.{table} SET (fillfactor = 80)")
    for name in FUNCTIONS:
        op.execute(sa.text(create_function_sql(name, schema())))
    op.execute(sa.text(create_trigger_sql(schema())))


def downgrade() -> None:
    ours = quoted(schema())
    execute(f"DROP TRIGGER leave_roll_ups ON {ours}.session_records")
    for sql in drop_trigger_sql(schema()):
        execute(sql)
    for name in reversed(FUNCTIONS):
        execute(f"DROP FUNCTION {ours}.{function_files()[name].signature}")
    for table in reversed(TABLES):
        op.drop_table(table, schema=schema())
