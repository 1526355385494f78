"""Runs, steps and messages; the adjustment of a run; tombstones of erased users; `record_v3`, which writes them all.

Upgrade the hosts together with the schema.
"""

from pathlib import Path

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

INSTANT = sa.DateTime(timezone=True)
KEY = sa.Text(collation="C")
IS_ERROR = "COALESCE((jsonb_typeof(errors) <> 'null'::text) AND (errors <> '[]'::jsonb), false)"
FOLDER = Path(__file__).parent.parent / "functions"
# In the order in which they need each other.
REMOVED = {
    "lock_session_v1": "uuid, text",
    "lock_sessions_v1": "jsonb",
    "record_wave_v1": "jsonb, timestamptz",
    "use_v1": "jsonb, timestamptz",
    "touch_v1": "jsonb, timestamptz",
    "record_v2": "jsonb, timestamptz",
    "reprice_v1": "jsonb, uuid",
}
ADDED = {
    "refuse_erased_v1": "uuid",
    "lock_session_v2": "uuid, text",
    "lock_sessions_v2": "jsonb, jsonb, jsonb",
    "lock_runs_v1": "jsonb, jsonb",
    "record_wave_v2": "jsonb, timestamptz",
    "record_activity_v1": "jsonb",
    "adjust_v1": "jsonb, timestamptz",
    "settle_runs_v1": "uuid[], text[], boolean[], uuid[], text[], timestamptz",
    "keyed_event_id_v1": "uuid, text, text",
    "follow_runs_v1": "jsonb, jsonb",
    "record_locked_v1": "jsonb, jsonb, jsonb, boolean, timestamptz",
    "use_v2": "jsonb, timestamptz",
    "touch_v2": "jsonb, timestamptz",
    "record_plain_v1": "jsonb, timestamptz",
    "record_v3": "jsonb, jsonb, timestamptz, boolean",
    "reprice_v2": "jsonb, uuid",
}
# Searching is right without this index, and slower. Not every database lets us have the extension.
CREATE_SEARCH_INDEX = """
DO $do$
DECLARE
    trigrams text;
BEGIN
    BEGIN
        CREATE EXTENSION IF NOT EXISTS pg_trgm;
    EXCEPTION WHEN insufficient_privilege OR undefined_file OR feature_not_supported THEN
        RAISE NOTICE 'pg_trgm cannot be created here: searching messages will read them all';
    END;
    SELECT quote_ident(n.nspname) INTO trigrams
    FROM pg_extension e JOIN pg_namespace n ON n.oid = e.extnamespace
    WHERE e.extname = 'pg_trgm';
    IF trigrams IS NOT NULL THEN
        EXECUTE format(
            'CREATE INDEX ix_session_messages_search ON %s.session_messages USING gin (content_folded %s.gin_trgm_ops)',
            {schema_literal}, trigrams
        );
    END IF;
END
$do$
"""


def quoted_schema() -> str:
    return '"{}"'.format(op.get_context().version_table_schema.replace('"', '""'))


def as_text(sql: str) -> sa.TextClause:
    """The SQL as it stands: a colon in it begins no parameter."""
    return sa.text(sql.replace(":", "\\:"))


def create(functions: dict[str, str]) -> None:
    schema = quoted_schema()
    tag = "$body$"
    while tag in schema:
        tag = f"{tag[:-1]}_$"
    for name in functions:
        source = (FOLDER / f"{name}.sql").read_text("utf-8")
        op.execute(as_text(source.replace("$body$", tag).replace("{schema}", schema)))


def drop(functions: dict[str, str]) -> None:
    for name, arguments in reversed(functions.items()):
        op.execute(as_text(f"DROP FUNCTION {quoted_schema()}.{name}({arguments})"))


def create_search_index() -> None:
    tag = "$do$"
    schema = quoted_schema()
    while tag in schema:
        tag = f"{tag[:-1]}_$"
    literal = "'{}'".format(schema.replace("'", "''"))
    op.execute(as_text(CREATE_SEARCH_INDEX.replace("$do$", tag).replace("{schema_literal}", literal)))


def key(name: str, *, nullable: bool = False) -> sa.Column[str]:
    return sa.Column(name, KEY, nullable=nullable)


def flag(name: str) -> sa.Column[bool]:
    return sa.Column(name, sa.Boolean, server_default=sa.text("false"), nullable=False)


def total(name: str, kind: type[sa.Numeric] | type[sa.BigInteger]) -> sa.Column[object]:
    return sa.Column(name, kind, server_default=sa.text("0"), nullable=False)


def index(table: str, *columns: str, where: str | None = None, unique: bool = False) -> None:
    op.create_index(
        op.f("ix_{}_{}".format(table, "_".join(columns))),
        table,
        list(columns),
        unique=unique,
        schema=op.get_context().version_table_schema,
        postgresql_where=None if where is None else sa.text(where),
    )


def change_key_scopes(scopes: str) -> None:
    schema = op.get_context().version_table_schema
    name = op.f("ck_session_usage_events_key_scope")
    op.drop_constraint(name, "session_usage_events", schema=schema)
    op.create_check_constraint(name, "session_usage_events", f"key_scope IN ({scopes})", schema=schema)


def upgrade() -> None:
    schema = op.get_context().version_table_schema
    drop(REMOVED)

    op.add_column("session_records", flag("derived"), schema=schema)
    change_key_scopes("'session', 'user', 'run'")
    index("session_usage_events", "user_id", "run_id", where="key_scope = 'run'", unique=True)

    op.create_table(
        "session_runs",
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
        total("events_cost_usd", sa.Numeric),
        total("events_tokens_in", sa.BigInteger),
        total("events_tokens_out", sa.BigInteger),
        total("events_cache_read_tokens", sa.BigInteger),
        total("events_cache_write_tokens", sa.BigInteger),
        sa.Column("first_seen", INSTANT),
        sa.Column("last_seen", INSTANT),
        sa.PrimaryKeyConstraint("user_id", "run_id", name=op.f("pk_session_runs")),
        sa.CheckConstraint(
            "status IN ('running', 'completed', 'failed', 'cancelled')", name=op.f("ck_session_runs_status")
        ),
        schema=schema,
    )
    index("session_runs", "user_id", "session_id", "started_at", "run_id", where="started_at IS NOT NULL")
    index("session_runs", "user_id", "parent_run_id", where="parent_run_id IS NOT NULL")
    index("session_runs", "user_id", "root_run_id", where="root_run_id IS NOT NULL")
    index("session_runs", "user_id", "parent_tool_call_id", where="parent_tool_call_id IS NOT NULL")
    index("session_runs", "model", "user_id", "session_id")
    index("session_runs", "client", "user_id", "session_id")
    index("session_runs", "user_id", "started_at", "run_id", where="started_at IS NOT NULL")

    op.create_table(
        "session_steps",
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
        sa.PrimaryKeyConstraint("user_id", "run_id", "step_id", name=op.f("pk_session_steps")),
        schema=schema,
    )
    index("session_steps", "user_id", "tool_call_id", "started_at", where="tool_call_id IS NOT NULL")

    op.create_table(
        "session_messages",
        sa.Column("user_id", sa.Uuid, nullable=False),
        key("session_id"),
        key("message_id"),
        key("run_id", nullable=True),
        sa.Column("role", sa.Text, nullable=False),
        sa.Column("content", sa.Text, nullable=False),
        sa.Column("content_folded", sa.Text, nullable=False),
        sa.Column("created_at", INSTANT, nullable=False),
        sa.Column("metadata", postgresql.JSONB),
        sa.PrimaryKeyConstraint("user_id", "session_id", "message_id", name=op.f("pk_session_messages")),
        sa.CheckConstraint(
            "role IN ('user', 'assistant', 'system', 'tool', 'thought')", name=op.f("ck_session_messages_role")
        ),
        schema=schema,
    )
    index("session_messages", "user_id", "session_id", "created_at", "message_id")
    index("session_messages", "user_id", "run_id", "created_at", where="run_id IS NOT NULL")
    create_search_index()

    op.create_table(
        "session_tombstones",
        sa.Column("user_id", sa.Uuid, nullable=False),
        sa.Column("erased_at", INSTANT, server_default=sa.text("statement_timestamp()"), nullable=False),
        sa.PrimaryKeyConstraint("user_id", name=op.f("pk_session_tombstones")),
        schema=schema,
    )
    create(ADDED)


def downgrade() -> None:
    schema = op.get_context().version_table_schema
    drop(ADDED)
    op.drop_table("session_tombstones", schema=schema)
    op.drop_table("session_messages", schema=schema)
    op.drop_table("session_steps", schema=schema)
    op.drop_table("session_runs", schema=schema)
    op.drop_index(op.f("ix_session_usage_events_user_id_run_id"), "session_usage_events", schema=schema)
    # The totals keep what these accounted for; the ledger of this revision has no word for it.
    events = sa.table("session_usage_events", sa.column("key_scope"), schema=schema)
    op.execute(events.update().where(events.c.key_scope == "run").values(key_scope="session"))
    change_key_scopes("'session', 'user'")
    op.drop_column("session_records", "derived", schema=schema)
    create(REMOVED)
