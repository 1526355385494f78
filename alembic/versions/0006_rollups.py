"""Roll-ups of sessions that are over, and indexes under which a page reads a page's worth of rows.

The functions that write are as they were: a trigger takes a session out of the roll-ups again.
"""

from pathlib import Path

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

INSTANT = sa.DateTime(timezone=True)
KEY = sa.Text(collation="C")
FOLDER = Path(__file__).parent.parent / "functions"
# In the order in which they need each other.
ADDED = {
    "rollup_share_v1": "{schema}.rolled_up_sessions, integer",
    "rollup_model_shares_v1": "{schema}.rolled_up_sessions, integer",
    "append_rollup_changes_v1": "{schema}.rolled_up_sessions, integer",
    "leave_rollups_v1": "",
    "session_models_v1": "uuid, text",
    "roll_up_sessions_v1": "jsonb, timestamptz",
    "rollup_families_v1": "uuid, uuid",
    "rollup_levels_v1": "timestamptz",
    "lock_rollups_v1": "",
    "compact_rollups_v1": "integer",
    "take_out_of_rollups_v1": "uuid, text",
    "in_rollups_v1": "text, uuid, uuid, uuid, uuid",
    "expected_rollups_v1": "text, uuid, uuid",
    "expected_model_rollups_v1": "text, uuid, uuid",
    "rebuild_rollups_v1": "text, uuid, uuid",
}
NOT_ROLLED_UP = "NOT rolled_up"
OF_EVERYBODY = "session_id <> ''"
ORDERS = ("last_activity_at", "started_at", "ended_at", "cost_usd", "tokens_in", "tokens_out")
FIGURES = {
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
MODEL_FIGURES = {
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
    schema = quoted_schema()
    for name, arguments in reversed(functions.items()):
        op.execute(as_text(f"DROP FUNCTION {schema}.{name}({arguments.replace('{schema}', schema)})"))


def create_index(name: str, *columns: str, where: str | None = None, table: str = "session_records") -> None:
    op.create_index(
        op.f(name),
        table,
        list(columns),
        schema=op.get_context().version_table_schema,
        postgresql_where=None if where is None else sa.text(where),
    )


def create_rolled_up_sessions() -> None:
    table = "rolled_up_sessions"
    op.create_table(
        table,
        sa.Column("user_id", sa.Uuid, nullable=False),
        sa.Column("session_id", KEY, nullable=False),
        sa.Column("dataset_id", sa.Uuid),
        sa.Column("agent_name", sa.Text),
        sa.Column("status", sa.Text, nullable=False),
        sa.Column("started_at", INSTANT, nullable=False),
        sa.Column("last_activity_at", INSTANT, nullable=False),
        sa.Column("ended_at", INSTANT),
        sa.Column("tokens_in", sa.BigInteger, nullable=False),
        sa.Column("tokens_out", sa.BigInteger, nullable=False),
        sa.Column("cost_usd", sa.Numeric, nullable=False),
        sa.Column("unpriced_events", sa.BigInteger, nullable=False),
        sa.Column("unmeasured_events", sa.BigInteger, nullable=False),
        sa.Column("late_events", sa.BigInteger, nullable=False),
        sa.Column("late_cost_usd", sa.Numeric, nullable=False),
        sa.Column("models", postgresql.JSONB, nullable=False),
        sa.PrimaryKeyConstraint("user_id", "session_id", name=op.f(f"pk_{table}")),
        schema=op.get_context().version_table_schema,
    )

    def index(of: tuple[str, ...], column: str, *key: str) -> None:
        name = "_".join((f"ix_{table}", *of, column))
        shared = [f"{one} IS NOT NULL" for one in of if one != "user_id"] if of else [OF_EVERYBODY]
        create_index(name, *of, "status", column, *key, where=" AND ".join(shared) or None, table=table)

    for column in ORDERS:
        index(("user_id",), column, "session_id")
        index(("dataset_id",), column, "user_id", "session_id")
    index((), "last_activity_at", "user_id", "session_id")
    index(("user_id", "agent_name"), "last_activity_at", "session_id")
    index(("dataset_id", "agent_name"), "last_activity_at", "user_id", "session_id")
    index(("user_id", "dataset_id"), "last_activity_at", "session_id")


def drop_indexes(*names: str) -> None:
    for name in names:
        op.drop_index(op.f(name), "session_records", schema=op.get_context().version_table_schema)


def totals(figures: dict[str, type[sa.Numeric] | type[sa.BigInteger]]) -> list[sa.Column[object]]:
    return [sa.Column(name, kind, server_default=sa.text("0"), nullable=False) for name, kind in figures.items()]


def create_rollups(
    name: str,
    changes: str,
    figures: dict[str, type[sa.Numeric] | type[sa.BigInteger]],
    *by: str,
) -> None:
    schema = op.get_context().version_table_schema

    def told_apart() -> list[sa.Column[object]]:
        return [sa.Column(one, INSTANT if one == "starts_at" else KEY, nullable=False) for one in by]

    op.create_table(
        name,
        sa.Column("family", KEY, nullable=False),
        sa.Column("user_id", sa.Uuid, nullable=False),
        sa.Column("dataset_id", sa.Uuid, nullable=False),
        sa.Column("level", KEY, nullable=False),
        *told_apart(),
        *totals(figures),
        sa.PrimaryKeyConstraint("family", "user_id", "dataset_id", "level", *by, name=op.f(f"pk_{name}")),
        schema=schema,
    )
    op.create_table(
        changes,
        sa.Column("change_id", sa.BigInteger, sa.Identity(always=True), nullable=False),
        sa.Column("user_id", sa.Uuid, nullable=False),
        sa.Column("dataset_id", sa.Uuid),
        *told_apart(),
        *totals(figures),
        sa.PrimaryKeyConstraint("change_id", name=op.f(f"pk_{changes}")),
        schema=schema,
    )
    create_index(f"ix_{changes}_user_id_starts_at", "user_id", "starts_at", table=changes)
    create_index(
        f"ix_{changes}_dataset_id_starts_at", "dataset_id", "starts_at", where="dataset_id IS NOT NULL", table=changes
    )


def upgrade() -> None:
    schema = op.get_context().version_table_schema
    op.add_column(
        "session_records",
        sa.Column("rolled_up", sa.Boolean, server_default=sa.text("false"), nullable=False),
        schema=schema,
    )
    drop_indexes("ix_session_records_user_id_activity_minute", "ix_session_records_dataset_id_activity_minute")
    prefix = "ix_session_records"
    shared = f"{NOT_ROLLED_UP} AND dataset_id IS NOT NULL"
    create_index(
        f"{prefix}_user_id_status_activity_minute", "user_id", "status", "activity_minute", where=NOT_ROLLED_UP
    )
    create_index(f"{prefix}_dataset_id_status_activity_minute", "dataset_id", "status", "activity_minute", where=shared)
    create_index(
        f"{prefix}_status_activity_minute", "status", "activity_minute", where=f"{NOT_ROLLED_UP} AND {OF_EVERYBODY}"
    )

    create_rolled_up_sessions()
    create_rollups("session_rollups", "session_rollup_changes", FIGURES, "status", "starts_at")
    create_rollups("session_model_rollups", "session_model_rollup_changes", MODEL_FIGURES, "starts_at", "model")
    create(ADDED)
    op.execute(
        as_text(
            f"CREATE TRIGGER leave_rollups BEFORE UPDATE OR DELETE ON {quoted_schema()}.session_records "
            f"FOR EACH ROW WHEN (OLD.rolled_up) EXECUTE FUNCTION {quoted_schema()}.leave_rollups_v1()"
        )
    )


def downgrade() -> None:
    schema = op.get_context().version_table_schema
    op.execute(as_text(f"DROP TRIGGER leave_rollups ON {quoted_schema()}.session_records"))
    drop(ADDED)
    for name in ("session_model_rollup_changes", "session_model_rollups", "session_rollup_changes", "session_rollups"):
        op.drop_table(name, schema=schema)
    op.drop_table("rolled_up_sessions", schema=schema)
    # Every index of this revision of this revision names the column, and goes with it.
    op.drop_column("session_records", "rolled_up", schema=schema)
    create_index("ix_session_records_user_id_activity_minute", "user_id", "activity_minute", where="session_id <> ''")
    create_index(
        "ix_session_records_dataset_id_activity_minute", "dataset_id", "activity_minute", where="dataset_id IS NOT NULL"
    )
