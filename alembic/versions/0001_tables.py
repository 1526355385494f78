"""The tables: session_records, session_model_usage, session_usage_events."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

INSTANT = sa.DateTime(timezone=True)
KEY = sa.Text(collation="C")


def count(name: str) -> sa.Column[int]:
    return sa.Column(name, sa.BigInteger, server_default=sa.text("0"), nullable=False)


def money(name: str) -> sa.Column[sa.Numeric]:
    return sa.Column(name, sa.Numeric, server_default=sa.text("0"), nullable=False)


def never_negative(table: str, *columns: str) -> sa.CheckConstraint:
    return sa.CheckConstraint(
        " AND ".join(f"{column} >= 0" for column in columns), name=op.f(f"ck_{table}_never_negative")
    )


def upgrade() -> None:
    schema = op.get_context().version_table_schema
    now = sa.text("statement_timestamp()")

    op.create_table(
        "session_records",
        sa.Column("user_id", sa.Uuid, nullable=False),
        sa.Column("session_id", KEY, nullable=False),
        sa.Column("dataset_id", sa.Uuid),
        sa.Column("status", sa.Text, server_default=sa.text("'running'"), nullable=False),
        sa.Column("started_at", INSTANT, server_default=now, nullable=False),
        sa.Column("last_activity_at", INSTANT, server_default=now, nullable=False),
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
        sa.PrimaryKeyConstraint("user_id", "session_id", name=op.f("pk_session_records")),
        sa.CheckConstraint("status IN ('running', 'completed', 'failed')", name=op.f("ck_session_records_status")),
        sa.CheckConstraint("(status = 'running') = (ended_at IS NULL)", name=op.f("ck_session_records_ended_at")),
        never_negative(
            "session_records",
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
        schema=schema,
    )
    op.create_index(
        op.f("ix_session_records_user_id_activity_minute"),
        "session_records",
        ["user_id", "activity_minute"],
        schema=schema,
    )
    op.create_index(
        op.f("ix_session_records_dataset_id_activity_minute"),
        "session_records",
        ["dataset_id", "activity_minute"],
        schema=schema,
        postgresql_where=sa.text("dataset_id IS NOT NULL"),
    )
    op.create_index(op.f("ix_session_records_session_id"), "session_records", ["session_id"], schema=schema)

    op.create_table(
        "session_model_usage",
        sa.Column("user_id", sa.Uuid, nullable=False),
        sa.Column("session_id", KEY, nullable=False),
        sa.Column("model", KEY, nullable=False),
        count("tokens_in"),
        count("tokens_out"),
        money("cost_usd"),
        count("cache_read_tokens"),
        count("cache_write_tokens"),
        count("reasoning_tokens"),
        count("events"),
        count("unpriced_events"),
        count("unmeasured_events"),
        sa.PrimaryKeyConstraint("user_id", "session_id", "model", name=op.f("pk_session_model_usage")),
        never_negative(
            "session_model_usage",
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
        schema=schema,
    )

    op.create_table(
        "session_usage_events",
        sa.Column("user_id", sa.Uuid, nullable=False),
        sa.Column("event_id", sa.Uuid, nullable=False),
        sa.Column("session_id", KEY, nullable=False),
        sa.Column("at", INSTANT, nullable=False),
        sa.Column("recorded_at", INSTANT, server_default=now, nullable=False),
        sa.Column("model", KEY),
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
        sa.Column("errored", sa.Boolean, server_default=sa.text("false"), nullable=False),
        sa.Column("measured", sa.Boolean, server_default=sa.text("true"), nullable=False),
        sa.Column("late", sa.Boolean, server_default=sa.text("false"), nullable=False),
        sa.Column("idempotency_key", sa.Text),
        sa.Column("key_scope", sa.Text, server_default=sa.text("'session'"), nullable=False),
        sa.Column("revision", sa.Integer, server_default=sa.text("0"), nullable=False),
        sa.Column("run_id", sa.Text),
        sa.Column("details", postgresql.JSONB, server_default=sa.text("'{}'"), nullable=False),
        sa.PrimaryKeyConstraint("user_id", "event_id", name=op.f("pk_session_usage_events")),
        sa.CheckConstraint("key_scope IN ('session', 'user')", name=op.f("ck_session_usage_events_key_scope")),
        sa.CheckConstraint(
            "cache_read_tokens + cache_write_tokens <= tokens_in", name=op.f("ck_session_usage_events_parts_of_input")
        ),
        sa.CheckConstraint("reasoning_tokens <= tokens_out", name=op.f("ck_session_usage_events_part_of_output")),
        never_negative(
            "session_usage_events",
            "tokens_in",
            "tokens_out",
            "cost_usd",
            "cache_read_tokens",
            "cache_write_tokens",
            "reasoning_tokens",
            "revision",
        ),
        schema=schema,
    )
    op.create_index(
        op.f("ix_session_usage_events_user_id_session_id"),
        "session_usage_events",
        ["user_id", "session_id"],
        schema=schema,
    )

    # Room on a page for the next version of a row, which a HOT update needs.
    quoted = '"{}"'.format(schema.replace('"', '""')).replace(":", "\\:")
    for table in ("session_records", "session_model_usage"):
        op.execute(sa.text(f"ALTER TABLE {quoted}.{table} SET (fillfactor = 80)"))


def downgrade() -> None:
    schema = op.get_context().version_table_schema
    for table in ("session_usage_events", "session_model_usage", "session_records"):
        op.drop_table(table, schema=schema)
