"""Writing by sets: `record_v2`, the ledger's key by session, and the audit of prices changed afterwards.

`record_v1` and its steps count on the ledger's old key, so they go with it: upgrade the hosts together with the schema.
"""

from pathlib import Path

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

FOLDER = Path(__file__).parent.parent / "functions"
# In the order in which they need each other.
REMOVED = {
    "touch_session_v1": "jsonb, timestamptz",
    "accumulate_usage_v1": "jsonb, timestamptz",
    "end_session_v1": "jsonb, timestamptz",
    "reopen_session_v1": "jsonb, timestamptz",
    "record_v1": "jsonb",
}
ADDED = {
    "lock_sessions_v1": "jsonb",
    "record_wave_v1": "jsonb, timestamptz",
    "use_v1": "jsonb, timestamptz",
    "touch_v1": "jsonb, timestamptz",
    "record_v2": "jsonb, timestamptz",
    "reprice_v1": "jsonb, uuid",
}


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


def change_ledgers_key(*columns: str) -> None:
    schema = op.get_context().version_table_schema
    op.drop_constraint(op.f("pk_session_usage_events"), "session_usage_events", schema=schema, type_="primary")
    op.create_primary_key(op.f("pk_session_usage_events"), "session_usage_events", list(columns), schema=schema)


def upgrade() -> None:
    schema = op.get_context().version_table_schema
    instant, now = sa.DateTime(timezone=True), sa.text("statement_timestamp()")
    drop(REMOVED)

    # The key by session also finds all events of one, which an index of its own did before.
    change_ledgers_key("user_id", "session_id", "event_id")
    op.drop_index(op.f("ix_session_usage_events_user_id_session_id"), "session_usage_events", schema=schema)
    op.create_index(
        op.f("ix_session_usage_events_user_id_event_id"),
        "session_usage_events",
        ["user_id", "event_id"],
        unique=True,
        schema=schema,
        postgresql_where=sa.text("key_scope = 'user'"),
    )

    # Lookups by key must not take these for as good as the primary key.
    op.drop_index(op.f("ix_session_records_user_id_activity_minute"), "session_records", schema=schema)
    op.create_index(
        op.f("ix_session_records_user_id_activity_minute"),
        "session_records",
        ["user_id", "activity_minute"],
        schema=schema,
        postgresql_where=sa.text("session_id <> ''"),
    )
    op.drop_index(op.f("ix_session_records_session_id"), "session_records", schema=schema)
    op.create_index(
        op.f("ix_session_records_session_id_user_id"), "session_records", ["session_id", "user_id"], schema=schema
    )

    op.create_table(
        "session_repricings",
        sa.Column("repricing_id", sa.Uuid, nullable=False),
        sa.Column("model", sa.Text(collation="C")),
        sa.Column("since", instant),
        sa.Column("until", instant),
        sa.Column("began_at", instant, server_default=now, nullable=False),
        sa.Column("last_written_at", instant, server_default=now, nullable=False),
        sa.Column("events", sa.BigInteger, server_default=sa.text("0"), nullable=False),
        sa.Column("cost_before_usd", sa.Numeric, server_default=sa.text("0"), nullable=False),
        sa.Column("cost_after_usd", sa.Numeric, server_default=sa.text("0"), nullable=False),
        sa.PrimaryKeyConstraint("repricing_id", name=op.f("pk_session_repricings")),
        schema=schema,
    )
    create(ADDED)


def downgrade() -> None:
    schema = op.get_context().version_table_schema
    drop(ADDED)
    op.drop_table("session_repricings", schema=schema)
    op.drop_index(op.f("ix_session_records_session_id_user_id"), "session_records", schema=schema)
    op.create_index(op.f("ix_session_records_session_id"), "session_records", ["session_id"], schema=schema)
    op.drop_index(op.f("ix_session_records_user_id_activity_minute"), "session_records", schema=schema)
    op.create_index(
        op.f("ix_session_records_user_id_activity_minute"),
        "session_records",
        ["user_id", "activity_minute"],
        schema=schema,
    )
    op.drop_index(op.f("ix_session_usage_events_user_id_event_id"), "session_usage_events", schema=schema)
    op.create_index(
        op.f("ix_session_usage_events_user_id_session_id"),
        "session_usage_events",
        ["user_id", "session_id"],
        schema=schema,
    )
    change_ledgers_key("user_id", "event_id")
    create(REMOVED)
