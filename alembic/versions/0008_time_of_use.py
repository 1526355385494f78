"""The ledger by the time of use: reports of a window read the part of the ledger it is in."""

from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

TABLE = "session_usage_events"
INDEX = f"ix_{TABLE}_at"


def upgrade() -> None:
    # Of ranges of pages: the ledger is written in about the order of time, and those who write hardly pay for it.
    op.create_index(
        op.f(INDEX),
        TABLE,
        ["at"],
        schema=op.get_context().version_table_schema,
        postgresql_using="brin",
        postgresql_with={"autosummarize": "on"},
    )


def downgrade() -> None:
    op.drop_index(op.f(INDEX), TABLE, schema=op.get_context().version_table_schema)
